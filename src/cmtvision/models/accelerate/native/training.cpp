// Training: LayerNorm, and what an IRFFN does between its two products, each forward and backward. PyTorch passes over
// these maps some thirty times, this five. Maps are (B, H, W, C) in memory, float32 or bfloat16, with C >= P L.
//
//   e --GELU--> g --batch norm--> n --depthwise 3 x 3, zeros around--> d --GELU--> out
//
// A batch norm is a scale and a shift per channel: the caller has put the first into the taps of the convolution, and
// puts the second, of out, into the product that follows. What is missing for that are sums over the map. They are
// float32 over some hundred positions and double beyond, part by part in an order that only the number of threads
// changes. g is never kept: GELU is cheaper than reading a map.

#include <vector>

#include "vectors.h"

namespace {

typedef double D __attribute__((vector_size(2 * BYTES)));
typedef double UD __attribute__((vector_size(2 * BYTES), aligned(8), may_alias));

struct Gelu {
    V value, slope;
};
inline Gelu gelu_and_slope(V x) {
    const V below = 0.5f + 0.5f * erf_of(x);  // the normal distribution's share below x
    return {x * below, below + x * exp_of(-0.5f * x * x) * 0.39894228040143268f};
}

inline void add_to(double* to, D v, int64_t done) {
    for (int64_t i = 0; i < std::min<int64_t>(done, L); i++) v[i] = 0;
    *reinterpret_cast<UD*>(to) += v;
}
inline void add_to(double* to, V v, int64_t done) { add_to(to, __builtin_convertvector(v, D), done); }

// Moments of channels: sums and sums of squares, 2 C, of each thread.
struct Moments {
    int64_t C, threads = omp_get_max_threads();
    std::vector<double> parts = std::vector<double>(threads * 2 * C);

    // n values with the sum n near + s and squares about `near` that sum to q
    void add(int64_t c, V near, V s, V q, double n, int64_t done) {
        double* own = parts.data() + omp_get_thread_num() * 2 * C + c;
        const D k = __builtin_convertvector(near, D), shifted = __builtin_convertvector(s, D);
        add_to(own, shifted + n * k, done);
        add_to(own + C, __builtin_convertvector(q, D) + k * (2 * shifted + n * k), done);
    }

    void write(double n, float* mean, float* variance) const {
        for (int64_t c = 0; c < C; c++) {
            double s = 0, q = 0;
            for (int64_t t = 0; t < threads; t++) {
                s += parts[t * 2 * C + c];
                q += parts[t * 2 * C + C + c];
            }
            s /= n;
            mean[c] = float(s);
            variance[c] = float(std::max(q / n - s * s, 0.0));
        }
    }
};

constexpr int P = 2;           // vectors of channels at a time
constexpr int64_t SOME = 128;  // positions whose sum is float32

inline int64_t blocks(int64_t C) { return (C + P * L - 1) / (P * L); }
inline int64_t block_begin(int64_t C, int64_t block) { return std::min(block * P * L, C - P * L); }
inline int64_t block_done(int64_t C, int64_t block) { return block * P * L - block_begin(C, block); }  // lanes

struct MapSize {
    int64_t B, H, W, C;
};

// Rows of an image and a block of its channels.
struct Part {
    MapSize size;
    int64_t image, begin, end, c, done;  // the first `done` lanes belong to the block before
    int64_t at(int64_t y, int64_t x) const { return ((image * size.H + y) * size.W + x) * size.C + c; }
};

// Three rows of a part of a map in float32, zeros around.
class Strip {
    int64_t W;
    std::vector<float> room;
    float* row(int64_t y) { return room.data() + (y + 3) % 3 * (W + 2) * P * L; }

    template <typename T, typename F>
    void read(const T* map, const Part& part, int64_t y, F f) {
        float* to = row(y) + P * L;
        if (y < 0 || y >= part.size.H) {
            std::memset(to, 0, W * P * L * sizeof(float));
            return;
        }
        for (int64_t x = 0; x < W; x++) {
            const T* from = map + part.at(y, x);
            for (int j = 0; j < P; j++) store(to + (x * P + j) * L, f(get(from + j * L)));
        }
    }

public:
    explicit Strip(int64_t W) : W(W), room((W + 2) * P * L * 3) {}

    struct Rows {
        const float* rows[3];
        V tap(int k, int64_t x, int j) const { return load(rows[k / 3] + ((x + k % 3) * P + j) * L); }
    };

    // Row y of a part and its neighbours; rows of a part are asked for one after the other.
    template <typename T, typename F>
    Rows around(const T* map, const Part& part, int64_t y, F f) {
        if (y == part.begin) {
            read(map, part, y - 1, f);
            read(map, part, y, f);
        }
        read(map, part, y + 1, f);
        return {{row(y - 1), row(y), row(y + 1)}};
    }
};

// f(part, strip) for all parts: as many rows at a time as keep four maps of them in a core's own cache.
template <typename F>
void all_parts(const MapSize& size, F f) {
    const int64_t most = std::max<int64_t>(4, (1 << 16) / (size.W * size.C));
    const int64_t groups = (size.H + most - 1) / most, rows = (size.H + groups - 1) / groups;
#pragma omp parallel
    {
        Strip strip(size.W);
#pragma omp for collapse(3) schedule(static)
        for (int64_t image = 0; image < size.B; image++)
            for (int64_t group = 0; group < groups; group++)
                for (int64_t block = 0; block < blocks(size.C); block++) {
                    const int64_t begin = group * rows, end = std::min(size.H, begin + rows);
                    f(Part{size, image, begin, end, block_begin(size.C, block), block_done(size.C, block)}, strip);
                }
    }
}

// Where tap k of row y is in the zeros above or below.
inline bool outside(int k, int64_t y, int64_t H) { return (k < 3 && y == 0) || (k >= 6 && y == H - 1); }

template <typename T>
void gelu_moments(const T* e, int64_t rows, int64_t C, float* mean, float* variance) {
    constexpr int64_t CHUNK = 32;
    Moments moments{C};
#pragma omp parallel for schedule(static)
    for (int64_t chunk = 0; chunk < (rows + CHUNK - 1) / CHUNK; chunk++) {
        const int64_t begin = chunk * CHUNK, end = std::min(rows, begin + CHUNK);
        for (int64_t block = 0; block < blocks(C); block++) {
            const int64_t c = block_begin(C, block), done = block_done(C, block);
            V near[P], s[P] = {}, q[P] = {};
            for (int j = 0; j < P; j++) near[j] = gelu(get(e + begin * C + c + j * L));
            for (int64_t r = begin; r < end; r++)
                for (int j = 0; j < P; j++) {
                    const T* from = e + r * C + c + j * L;
                    __builtin_prefetch(from + CHUNK * C);
                    const V v = gelu(get(from)) - near[j];
                    s[j] += v;
                    q[j] += v * v;
                }
            for (int j = 0; j < P; j++) moments.add(c + j * L, near[j], s[j], q[j], double(end - begin), done - j * L);
        }
    }
    moments.write(double(rows), mean, variance);
}

// absent (9, C): what a tap that meets the zeros takes away from the bias.
template <typename T>
void irffn_forward(const T* e, T* d, T* out, const MapSize& size, const float* taps, const float* bias,
                   const float* absent, float* mean, float* variance) {
    const int64_t H = size.H, W = size.W, C = size.C;
    Moments moments{C};
    all_parts(size, [&](const Part& part, Strip& strip) {
        const int64_t c = part.c;
        V w[9][P], near[P], s[P] = {}, q[P] = {};
        for (int k = 0; k < 9; k++)
            for (int j = 0; j < P; j++) w[k][j] = load(taps + k * C + c + j * L);
        int64_t count = 0;
        for (int64_t y = part.begin; y < part.end; y++) {
            const auto rows = strip.around(e, part, y, gelu);
            V left[P], middle[P], right[P];
            for (int j = 0; j < P; j++) {
                middle[j] = load(bias + c + j * L);
                V first = {}, last = {};
                for (int k = 0; k < 9; k++) {
                    const V lost = load(absent + k * C + c + j * L);
                    if (outside(k, y, H)) middle[j] -= lost;
                    else if (k % 3 == 0) first += lost;
                    else if (k % 3 == 2) last += lost;
                }
                left[j] = middle[j] - first - (W == 1 ? last : V{});
                right[j] = middle[j] - last;
            }
            for (int64_t x = 0; x < W; x++) {
                V v[P];
                for (int j = 0; j < P; j++) v[j] = x == 0 ? left[j] : x == W - 1 ? right[j] : middle[j];
                for (int k = 0; k < 9; k++)
                    for (int j = 0; j < P; j++) v[j] += w[k][j] * rows.tap(k, x, j);
                const int64_t at = part.at(y, x);
                for (int j = 0; j < P; j++) {
                    __builtin_prefetch(e + at + 3 * W * C + j * L);
                    __builtin_prefetch(d + at + W * C + j * L, 1);
                    __builtin_prefetch(out + at + W * C + j * L, 1);
                    V g = put(out + at + j * L, gelu(put(d + at + j * L, v[j])));
                    if (count == 0) near[j] = g;
                    g -= near[j];
                    s[j] += g;
                    q[j] += g * g;
                }
                count++;
            }
            if (count >= SOME || y == part.end - 1) {
                for (int j = 0; j < P; j++) {
                    moments.add(c + j * L, near[j], s[j], q[j], double(count), part.done - j * L);
                    s[j] = q[j] = V{};
                }
                count = 0;
            }
        }
    });
    moments.write(double(size.B * H * W), mean, variance);
}

// dout, with `add` + `times` out from the moments of out, -> dd; sums (18, C): of dd g by taps, and of dd where the tap
// is not in the zeros.
template <typename T>
void irffn_backward_to_d(const T* dout, const T* d, const T* e, T* dd, const MapSize& size, const float* add,
                         const float* times, float* sums) {
    const int64_t H = size.H, W = size.W, C = size.C, each = 19 * C, threads = omp_get_max_threads();
    std::vector<double> parts(threads * each);  // dd g by taps, dd lost by taps, dd
    all_parts(size, [&](const Part& part, Strip& strip) {
        const int64_t c = part.c;
        double* own = parts.data() + omp_get_thread_num() * each + c;
        V s[9][P] = {}, lost[9][P] = {}, whole[P] = {}, a[P], m[P];
        for (int j = 0; j < P; j++) {
            a[j] = load(add + c + j * L);
            m[j] = load(times + c + j * L);
        }
        int64_t count = 0;
        for (int64_t y = part.begin; y < part.end; y++) {
            const auto rows = strip.around(e, part, y, gelu);
            V row[P] = {}, left[P] = {}, right[P] = {};
            for (int64_t x = 0; x < W; x++) {
                const int64_t at = part.at(y, x);
                V v[P];
                for (int j = 0; j < P; j++) {
                    __builtin_prefetch(d + at + W * C + j * L);
                    __builtin_prefetch(dout + at + W * C + j * L);
                    __builtin_prefetch(e + at + 3 * W * C + j * L);
                    __builtin_prefetch(dd + at + W * C + j * L, 1);
                    const Gelu g = gelu_and_slope(get(d + at + j * L));
                    v[j] = put(dd + at + j * L, (get(dout + at + j * L) + a[j] + m[j] * g.value) * g.slope);
                    row[j] += v[j];
                    if (x == 0) left[j] = v[j];
                    right[j] = v[j];
                }
                for (int k = 0; k < 9; k++)
                    for (int j = 0; j < P; j++) s[k][j] += v[j] * rows.tap(k, x, j);
            }
            for (int j = 0; j < P; j++) {
                whole[j] += row[j];
                for (int k = 0; k < 9; k++) {
                    if (outside(k, y, H)) lost[k][j] += row[j];
                    else if (k % 3 == 0) lost[k][j] += left[j];
                    else if (k % 3 == 2) lost[k][j] += right[j];
                }
            }
            count += W;
            if (count >= SOME || y == part.end - 1) {
                for (int j = 0; j < P; j++) {
                    double* to = own + j * L;
                    const int64_t done = part.done - j * L;
                    for (int k = 0; k < 9; k++) {
                        add_to(to + k * C, s[k][j], done);
                        add_to(to + (9 + k) * C, lost[k][j], done);
                        s[k][j] = lost[k][j] = V{};
                    }
                    add_to(to + 18 * C, whole[j], done);
                    whole[j] = V{};
                }
                count = 0;
            }
        }
    });
    for (int64_t t = 1; t < threads; t++)
        for (int64_t i = 0; i < each; i++) parts[i] += parts[t * each + i];
    for (int64_t i = 0; i < 9 * C; i++) {
        sums[i] = float(parts[i]);
        sums[9 * C + i] = float(parts[18 * C + i % C] - parts[9 * C + i]);
    }
}

// dd -> de, with `add` + `times` g from the moments of g.
template <typename T>
void irffn_backward_to_e(const T* dd, const T* e, T* de, const MapSize& size, const float* taps, const float* add,
                         const float* times) {
    const int64_t W = size.W, C = size.C;
    all_parts(size, [&](const Part& part, Strip& strip) {
        const auto as_it_is = [](V v) { return v; };
        const int64_t c = part.c;
        V w[9][P], a[P], m[P];
        for (int j = 0; j < P; j++) {
            for (int k = 0; k < 9; k++) w[k][j] = load(taps + (8 - k) * C + c + j * L);
            a[j] = load(add + c + j * L);
            m[j] = load(times + c + j * L);
        }
        for (int64_t y = part.begin; y < part.end; y++) {
            const auto rows = strip.around(dd, part, y, as_it_is);
            for (int64_t x = 0; x < W; x++) {
                V v[P];
                for (int j = 0; j < P; j++) v[j] = a[j];
                for (int k = 0; k < 9; k++)
                    for (int j = 0; j < P; j++) v[j] += w[k][j] * rows.tap(k, x, j);
                const int64_t at = part.at(y, x);
                for (int j = 0; j < P; j++) {
                    __builtin_prefetch(dd + at + 3 * W * C + j * L);
                    __builtin_prefetch(e + at + W * C + j * L);
                    __builtin_prefetch(de + at + W * C + j * L, 1);
                    const Gelu g = gelu_and_slope(get(e + at + j * L));
                    put(de + at + j * L, (v[j] + m[j] * g.value) * g.slope);
                }
            }
        }
    });
}

template <typename T>
void norm_forward(const T* x, T* out, int64_t rows, int64_t C, float eps, const float* weight, const float* bias,
                  float* mean, float* scale) {
    const Channels channels(C);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T* a = x + row * C;
        T* o = out + row * C;
        V s = {}, q = {};
        channels.each([&](int64_t c, V fresh) { s += fresh * get(a + c); });
        const float m = sum(s) / float(C);
        channels.each([&](int64_t c, V fresh) {
            const V v = (get(a + c) - m) * fresh;
            q += v * v;
        });
        const float by = 1.0f / std::sqrt(sum(q) / float(C) + eps);
        channels.each([&](int64_t c, V) { put(o + c, (get(a + c) - m) * by * load(weight + c) + load(bias + c)); });
        mean[row] = m;
        scale[row] = by;
    }
}

template <typename T>
void norm_backward(const T* dout, const T* x, T* dx, int64_t rows, int64_t C, const float* weight, const float* mean,
                   const float* scale, float* dweight, float* dbias) {
    const Channels channels(C);
    const int64_t threads = omp_get_max_threads();
    std::vector<double> parts(threads * 2 * C);
#pragma omp parallel
    {
        double* own = parts.data() + omp_get_thread_num() * 2 * C;
        std::vector<float> sums(2 * C);
        float *dw = sums.data(), *db = dw + C;
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < (rows + SOME - 1) / SOME; chunk++) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t row = chunk * SOME; row < std::min(rows, (chunk + 1) * SOME); row++) {
                const T *a = x + row * C, *g = dout + row * C;
                T* o = dx + row * C;
                const float m = mean[row], by = scale[row];
                V s = {}, q = {};
                channels.each([&](int64_t c, V fresh) {
                    const V d = fresh * get(g + c), n = (get(a + c) - m) * by, v = d * load(weight + c);
                    s += v;
                    q += v * n;
                    store(dw + c, load(dw + c) + d * n);
                    store(db + c, load(db + c) + d);
                });
                const float s1 = sum(s) / float(C), s2 = sum(q) / float(C);
                channels.each([&](int64_t c, V) {
                    const V n = (get(a + c) - m) * by;
                    put(o + c, by * (get(g + c) * load(weight + c) - s1 - n * s2));
                });
            }
            for (int64_t c = 0; c < 2 * C; c++) own[c] += sums[c];
        }
    }
    for (int64_t c = 0; c < C; c++) {
        double w = 0, b = 0;
        for (int64_t t = 0; t < threads; t++) {
            w += parts[t * 2 * C + c];
            b += parts[t * 2 * C + C + c];
        }
        dweight[c] = float(w);
        dbias[c] = float(b);
    }
}

}  // namespace

// `is_bf16`: the maps are bfloat16. Everything else is float32.
extern "C" {

int cmt_gelu_moments(int is_bf16, In e, int64_t rows, int64_t C, float* mean, float* variance) {
    return with_memory([&] {
        if (is_bf16) gelu_moments(as_bf16(e), rows, C, mean, variance);
        else gelu_moments(as_float(e), rows, C, mean, variance);
    });
}

int cmt_irffn_forward(int is_bf16, In e, Out d, Out out, int64_t B, int64_t H, int64_t W, int64_t C, const float* taps,
                      const float* bias, const float* absent, float* mean, float* variance) {
    const MapSize size{B, H, W, C};
    return with_memory([&] {
        if (is_bf16) irffn_forward(as_bf16(e), as_bf16(d), as_bf16(out), size, taps, bias, absent, mean, variance);
        else irffn_forward(as_float(e), as_float(d), as_float(out), size, taps, bias, absent, mean, variance);
    });
}

int cmt_irffn_backward_to_d(int is_bf16, In dout, In d, In e, Out dd, int64_t B, int64_t H, int64_t W, int64_t C,
                            const float* add, const float* times, float* sums) {
    const MapSize size{B, H, W, C};
    return with_memory([&] {
        if (is_bf16) irffn_backward_to_d(as_bf16(dout), as_bf16(d), as_bf16(e), as_bf16(dd), size, add, times, sums);
        else irffn_backward_to_d(as_float(dout), as_float(d), as_float(e), as_float(dd), size, add, times, sums);
    });
}

int cmt_irffn_backward_to_e(int is_bf16, In dd, In e, Out de, int64_t B, int64_t H, int64_t W, int64_t C,
                            const float* taps, const float* add, const float* times) {
    const MapSize size{B, H, W, C};
    return with_memory([&] {
        if (is_bf16) irffn_backward_to_e(as_bf16(dd), as_bf16(e), as_bf16(de), size, taps, add, times);
        else irffn_backward_to_e(as_float(dd), as_float(e), as_float(de), size, taps, add, times);
    });
}

int cmt_norm_forward(int is_bf16, In x, Out out, int64_t rows, int64_t C, float eps, const float* weight,
                     const float* bias, float* mean, float* scale) {
    return with_memory([&] {
        if (is_bf16) norm_forward(as_bf16(x), as_bf16(out), rows, C, eps, weight, bias, mean, scale);
        else norm_forward(as_float(x), as_float(out), rows, C, eps, weight, bias, mean, scale);
    });
}

int cmt_norm_backward(int is_bf16, In dout, In x, Out dx, int64_t rows, int64_t C, const float* weight,
                      const float* mean, const float* scale, float* dweight, float* dbias) {
    return with_memory([&] {
        if (is_bf16) norm_backward(as_bf16(dout), as_bf16(x), as_bf16(dx), rows, C, weight, mean, scale, dweight, dbias);
        else norm_backward(as_float(dout), as_float(x), as_float(dx), rows, C, weight, mean, scale, dweight, dbias);
    });
}

int cmt_narrowest() { return P * L; }  // channels that a map must have

}  // extern "C"
