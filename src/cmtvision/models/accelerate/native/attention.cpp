// Attention of many queries to few keys, forward and backward: softmax(q k^T scale + bias) v.
//
// q and out are (B, N, h, d) in memory, keys and values (B, M, h, d) with kv_step between the positions, the bias
// (h, N, M); float32 or, all but the bias, bfloat16. Every product and sum is float32. Keys and values are laid out once
// for each head: transposed, or as they are with zeros up to a whole vector.

#include <memory>
#include <vector>

#include "vectors.h"

namespace {

// Rows at a time: with four vectors of the other matrix as many sums as there are registers.
constexpr int ROWS = BYTES == 64 ? 6 : 3;
constexpr int64_t QUERIES = 8 * ROWS;

inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// out[r][0 .. width) = sum over k of a_r[k] b[k][0 .. width), added to what is there where ADD. Rows of b are `width`
// long, a multiple of L. a_r[k] is a[r a_step + k], or where ACROSS a[k a_step + r]: a transposed.
template <int R, int COLS, bool ACROSS, bool ADD>
inline void columns_of_product(const float* a, int64_t a_step, const float* b, int64_t depth, int64_t width,
                               float* out, int64_t out_step) {
    V s[R][COLS] = {};
    if (ADD)
        for (int r = 0; r < R; r++)
            for (int j = 0; j < COLS; j++) s[r][j] = load(out + r * out_step + j * L);
    for (int64_t k = 0; k < depth; k++) {
        V c[COLS];
        for (int j = 0; j < COLS; j++) c[j] = load(b + k * width + j * L);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < COLS; j++) s[r][j] += a[ACROSS ? k * a_step + r : r * a_step + k] * c[j];
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < COLS; j++) store(out + r * out_step + j * L, s[r][j]);
}

template <int R, bool ACROSS, bool ADD>
void product(const float* a, int64_t a_step, const float* b, int64_t depth, int64_t width, float* out,
             int64_t out_step) {
    int64_t at = 0;
    for (; at + 4 * L <= width; at += 4 * L)
        columns_of_product<R, 4, ACROSS, ADD>(a, a_step, b + at, depth, width, out + at, out_step);
    if (width - at == 3 * L) columns_of_product<R, 3, ACROSS, ADD>(a, a_step, b + at, depth, width, out + at, out_step);
    if (width - at == 2 * L) columns_of_product<R, 2, ACROSS, ADD>(a, a_step, b + at, depth, width, out + at, out_step);
    if (width - at == 1 * L) columns_of_product<R, 1, ACROSS, ADD>(a, a_step, b + at, depth, width, out + at, out_step);
}

struct AttentionSize {
    int64_t B, N, M, h, d, kv_step;
    int64_t keys() const { return up_to(M, L); }
    int64_t width() const { return up_to(d, L); }
};

// One position of a head as float32, zeros up to a whole vector.
template <typename T>
inline void unpack(const T* from, float* to, int64_t d, int64_t width) {
    store(to + width - L, V{});
    for (int64_t i = 0; i + L <= d; i += L) store(to + i, get(from + i));
    if (d >= L) {
        store(to + d - L, get(from + d - L));
    } else {
        for (int64_t i = 0; i < d; i++) to[i] = get_one(from + i);
    }
}

template <typename T>
inline void pack(const float* from, T* to, int64_t d, float by) {
    for (int64_t i = 0; i + L <= d; i += L) put(to + i, load(from + i) * by);
    if (d >= L) {
        put(to + d - L, load(from + d - L) * by);
    } else {
        for (int64_t i = 0; i < d; i++) put_one(to + i, from[i] * by);
    }
}

// Keys or values of a head: (M, width) into `rows`, (d, keys) into `columns`, where they are wanted.
template <typename T>
void lay_out(const T* from, const AttentionSize& size, float* rows, float* columns, float* one) {
    const int64_t width = size.width(), keys = size.keys();
    for (int64_t m = 0; m < keys; m++) {
        float* to = rows != nullptr && m < size.M ? rows + m * width : one;
        if (m < size.M) unpack(from + m * size.kv_step, to, size.d, width);
        if (columns != nullptr)
            for (int64_t i = 0; i < size.d; i++) columns[i * keys + m] = m < size.M ? to[i] : 0;
    }
}

// The bias in rows of whole vectors, so low beyond the last key that nothing there has a weight; one row of zeros
// where there is no bias.
class Bias {
    std::unique_ptr<float[]> rows;
    const float* from;
    int64_t N, keys;

public:
    Bias(const float* bias, const AttentionSize& size) : from(bias), N(size.N), keys(size.keys()) {
        const int64_t count = bias == nullptr ? 1 : size.h * N, M = size.M;
        rows.reset(new float[count * keys]);
#pragma omp parallel for schedule(static)
        for (int64_t row = 0; row < count; row++)
            for (int64_t m = 0; m < keys; m++)
                rows[row * keys + m] = m >= M ? -1e30f : bias == nullptr ? 0.0f : bias[row * M + m];
    }
    const float* of(int64_t head, int64_t n) const { return rows.get() + (from == nullptr ? 0 : (head * N + n) * keys); }
};

// Scores of a query -> softmax times its sum. Returns 1 / sum; log_sum: its logarithm and the largest score, or null.
inline float weigh(float* s, const float* bias, int64_t keys, float scale, float* log_sum) {
    V tops = all(-1e30f), total = {};
    for (int64_t m = 0; m < keys; m += L) {
        const V v = load(s + m) * scale + load(bias + m);
        store(s + m, v);
        tops = most(tops, v);
    }
    const float top = largest(tops);
    for (int64_t m = 0; m < keys; m += L) {
        const V e = exp_of(load(s + m) - top);
        store(s + m, e);
        total += e;
    }
    const float whole = sum(total);
    if (log_sum != nullptr) *log_sum = top + std::log(whole);
    return 1.0f / whole;
}

template <int R, typename T>
void attend(const T* q, T* out, const float* keys, const float* values, const Bias& bias, int64_t head, int64_t n,
            const AttentionSize& size, float scale, float* log_sum, float* room) {
    const int64_t step = size.h * size.d, width = size.width();
    float *rows = room, *scores = rows + R * width, *found = scores + R * size.keys();
    for (int r = 0; r < R; r++) unpack(q + r * step, rows + r * width, size.d, width);
    product<R, false, false>(rows, width, keys, size.d, size.keys(), scores, size.keys());
    float share[R];
    for (int r = 0; r < R; r++)
        share[r] = weigh(scores + r * size.keys(), bias.of(head, n + r), size.keys(), scale,
                         log_sum == nullptr ? nullptr : log_sum + r);
    product<R, false, false>(scores, size.keys(), values, size.M, width, found, width);
    for (int r = 0; r < R; r++) pack(found + r * width, out + r * step, size.d, share[r]);
}

// log_sums (B, h, N), or null
template <typename T>
void forward(const T* q, const T* k, const T* v, const float* bias, T* out, float* log_sums, const AttentionSize& size,
             float scale) {
    const int64_t width = size.width(), keys = size.keys(), N = size.N, each = size.d * keys + size.M * width;
    const Bias biases(bias, size);
    const std::unique_ptr<float[]> laid_out(new float[size.B * size.h * each]);
#pragma omp parallel
    {
        std::vector<float> room(ROWS * (2 * width + keys));
#pragma omp for schedule(static)
        for (int64_t one = 0; one < size.B * size.h; one++) {
            const int64_t at = one / size.h * size.M * size.kv_step + one % size.h * size.d;
            float* columns = laid_out.get() + one * each;
            lay_out(k + at, size, nullptr, columns, room.data());
            lay_out(v + at, size, columns + size.d * keys, nullptr, room.data());
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t one = 0; one < size.B * size.h; one++)
            for (int64_t block = 0; block < (N + ROWS - 1) / ROWS; block++) {
                const float* columns = laid_out.get() + one * each;
                const int64_t n = block * ROWS, head = one % size.h;
                auto some = [&](auto attend_these, int64_t n) {
                    const int64_t at = (one / size.h * N + n) * size.h * size.d + head * size.d;
                    attend_these(q + at, out + at, columns, columns + size.d * keys, biases, head, n, size, scale,
                                 log_sums == nullptr ? nullptr : log_sums + one * N + n, room.data());
                };
                if (N - n >= ROWS) some(attend<ROWS, T>, n);
                else
                    for (int64_t r = n; r < N; r++) some(attend<1, T>, r);
            }
    }
}

// dq, dk and dv as q, k and v; dbias (h, N, M), or null.
template <typename T>
void backward(const T* dout, const T* q, const T* k, const T* v, const T* out, const float* bias,
              const float* log_sums, T* dq, T* dk, T* dv, float* dbias, const AttentionSize& size, float scale) {
    const int64_t width = size.width(), keys = size.keys(), N = size.N, M = size.M, d = size.d, step = size.h * d;
    const int64_t all_rows = up_to(M, ROWS), threads = omp_get_max_threads(), each = size.h * N * keys;
    const Bias biases(bias, size);
    std::vector<float> parts(dbias == nullptr ? 0 : threads * each);
#pragma omp parallel
    {
        // keys in rows and columns, values in columns; gradients of keys and values in rows; blocks of queries
        std::vector<float> room(M * width + 2 * d * keys + 2 * all_rows * width +
                                QUERIES * (3 * width + 2 * keys + 1) + ROWS);
        float *k_rows = room.data(), *k_columns = k_rows + M * width, *v_columns = k_columns + d * keys;
        float *dk_rows = v_columns + d * keys, *dv_rows = dk_rows + all_rows * width;
        float *q_rows = dv_rows + all_rows * width, *dout_rows = q_rows + QUERIES * width;
        float *dq_rows = dout_rows + QUERIES * width, *weights = dq_rows + QUERIES * width;
        float *slopes = weights + QUERIES * keys, *dots = slopes + QUERIES * keys;
        float* own = parts.data() + omp_get_thread_num() * each;
#pragma omp for schedule(static)
        for (int64_t one = 0; one < size.B * size.h; one++) {
            const int64_t head = one % size.h, at_kv = one / size.h * M * size.kv_step + head * d;
            lay_out(k + at_kv, size, k_rows, k_columns, dq_rows);
            lay_out(v + at_kv, size, static_cast<float*>(nullptr), v_columns, dq_rows);
            std::memset(dk_rows, 0, 2 * all_rows * width * sizeof(float));
            for (int64_t n = 0; n < N; n += QUERIES) {
                const int64_t count = std::min(QUERIES, N - n), rows = up_to(count, ROWS);
                const int64_t at = (one / size.h * N + n) * step + head * d;
                for (int64_t r = 0; r < rows; r++) {
                    float *to_q = q_rows + r * width, *to_d = dout_rows + r * width, *o = dq_rows;
                    if (r >= count) {
                        std::memset(to_q, 0, width * sizeof(float));
                        std::memset(to_d, 0, width * sizeof(float));
                        continue;
                    }
                    unpack(q + at + r * step, to_q, d, width);
                    unpack(dout + at + r * step, to_d, d, width);
                    unpack(out + at + r * step, o, d, width);
                    V s = {};
                    for (int64_t i = 0; i < width; i += L) s += load(to_d + i) * load(o + i);
                    dots[r] = sum(s);
                }
                for (int64_t r = 0; r < rows; r += ROWS) {
                    product<ROWS, false, false>(q_rows + r * width, width, k_columns, d, keys, weights + r * keys, keys);
                    product<ROWS, false, false>(dout_rows + r * width, width, v_columns, d, keys, slopes + r * keys, keys);
                }
                for (int64_t r = 0; r < rows; r++) {
                    float *w = weights + r * keys, *g = slopes + r * keys;
                    if (r >= count) {
                        std::memset(w, 0, keys * sizeof(float));
                        std::memset(g, 0, keys * sizeof(float));
                        continue;
                    }
                    const float* b = biases.of(head, n + r);
                    float* to = dbias == nullptr ? nullptr : own + (head * N + n + r) * keys;
                    const float log_sum = log_sums[one * N + n + r], dot = dots[r];
                    for (int64_t m = 0; m < keys; m += L) {
                        const V p = exp_of(least(V{}, load(w + m) * scale + load(b + m) - log_sum));
                        const V s = p * (load(g + m) - dot);
                        store(w + m, p);
                        store(g + m, s);
                        if (to != nullptr) store(to + m, load(to + m) + s);
                    }
                }
                for (int64_t r = 0; r < rows; r += ROWS)
                    product<ROWS, false, false>(slopes + r * keys, keys, k_rows, M, width, dq_rows + r * width, width);
                for (int64_t r = 0; r < count; r++) pack(dq_rows + r * width, dq + at + r * step, d, scale);
                for (int64_t m = 0; m < M; m += ROWS) {
                    product<ROWS, true, true>(slopes + m, keys, q_rows, count, width, dk_rows + m * width, width);
                    product<ROWS, true, true>(weights + m, keys, dout_rows, count, width, dv_rows + m * width, width);
                }
            }
            for (int64_t m = 0; m < M; m++) {
                pack(dk_rows + m * width, dk + at_kv + m * size.kv_step, d, scale);
                pack(dv_rows + m * width, dv + at_kv + m * size.kv_step, d, 1.0f);
            }
        }
    }
    if (dbias == nullptr) return;
    for (int64_t row = 0; row < size.h * N; row++)
        for (int64_t m = 0; m < M; m++) {
            float s = 0;
            for (int64_t t = 0; t < threads; t++) s += parts[t * each + row * keys + m];
            dbias[row * M + m] = s;
        }
}

}  // namespace

// `is_bf16`: bfloat16. The bias, log_sums (B, h, N) and the bias's gradient are float32; each of them may be null.
extern "C" {

int cmt_attention(int is_bf16, In q, In k, In v, const float* bias, Out out, float* log_sums, int64_t B, int64_t N,
                  int64_t M, int64_t h, int64_t d, int64_t kv_step, float scale) {
    const AttentionSize size{B, N, M, h, d, kv_step};
    return with_memory([&] {
        if (is_bf16) forward(as_bf16(q), as_bf16(k), as_bf16(v), bias, as_bf16(out), log_sums, size, scale);
        else forward(as_float(q), as_float(k), as_float(v), bias, as_float(out), log_sums, size, scale);
    });
}

int cmt_attention_backward(int is_bf16, In dout, In q, In k, In v, In out, const float* bias, const float* log_sums,
                           Out dq, Out dk, Out dv, float* dbias, int64_t B, int64_t N, int64_t M, int64_t h,
                           int64_t d, int64_t kv_step, float scale) {
    const AttentionSize size{B, N, M, h, d, kv_step};
    return with_memory([&] {
        if (is_bf16)
            backward(as_bf16(dout), as_bf16(q), as_bf16(k), as_bf16(v), as_bf16(out), bias, log_sums, as_bf16(dq),
                     as_bf16(dk), as_bf16(dv), dbias, size, scale);
        else
            backward(as_float(dout), as_float(q), as_float(k), as_float(v), as_float(out), bias, log_sums, as_float(dq),
                     as_float(dk), as_float(dv), dbias, size, scale);
    });
}

}  // extern "C"
