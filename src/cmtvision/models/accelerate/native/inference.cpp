// Loops that a fused CMT runs between its products, one pass over memory each. Maps are (B, H, W, C) in memory,
// float32 or bfloat16; every product and sum is float32.

#include "vectors.h"

namespace {

template <typename T>
struct Map {
    const T* x;
    T* out;
    int64_t H, W, C;
};

struct Taps {
    const float* weight;
    const float* bias;
    const float* absent;
    bool with_gelu;
};

// P vectors of channels from c on along a row; where they are not WHOLE, the first n values of one vector. Each value of
// the map is read once for a row of the output: it belongs to three of its columns, whose sums are in registers.
template <int P, bool WHOLE, typename T>
void convolve(const Map<T>& map, const Taps& taps, int64_t row, int64_t c, int64_t n) {
    const int64_t C = map.C, W = map.W, y = row % map.H;
    const bool inside[3] = {y > 0, true, y + 1 < map.H};
    const T* rows[3];
    for (int r = 0; r < 3; r++) rows[r] = map.x + (row + (inside[r] ? r - 1 : 0)) * W * C + c;
    V w[9][P], inner[P], left[P], right[P];  // the bias where no side, the left one or the right one is at the border
    for (int j = 0; j < P; j++) inner[j] = some<WHOLE>(taps.bias + c + j * L, n);
    for (int k = 0; k < 9; k++)
        for (int j = 0; j < P; j++) {
            const bool there = inside[k / 3];
            w[k][j] = there ? some<WHOLE>(taps.weight + k * C + c + j * L, n) : V{};
            if (!there && taps.absent != nullptr) inner[j] -= some<WHOLE>(taps.absent + k * C + c + j * L, n);
        }
    for (int j = 0; j < P; j++) left[j] = right[j] = V{};
    if (taps.absent != nullptr)
        for (int r = 0; r < 3; r++)
            for (int j = 0; j < P; j++)
                if (inside[r]) {
                    left[j] += some<WHOLE>(taps.absent + 3 * r * C + c + j * L, n);
                    right[j] += some<WHOLE>(taps.absent + (3 * r + 2) * C + c + j * L, n);
                }
    V before[P], here[P];  // sums of the columns at - 1 and at
    for (int j = 0; j < P; j++) {
        before[j] = V{};
        here[j] = W == 1 ? inner[j] - left[j] - right[j] : inner[j] - left[j];
    }
    T* to = map.out + row * W * C + c;
    auto finish = [&](int64_t at, int j) {
        put_some<WHOLE>(to + at * C + j * L, taps.with_gelu ? gelu(before[j]) : before[j], n);
    };
    for (int64_t at = 0; at < W; at++) {
        for (int j = 0; j < P; j++) {
            const V a = some<WHOLE>(rows[0] + at * C + j * L, n), b = some<WHOLE>(rows[1] + at * C + j * L, n),
                    d = some<WHOLE>(rows[2] + at * C + j * L, n);
            before[j] += w[2][j] * a + w[5][j] * b + w[8][j] * d;
            here[j] += w[1][j] * a + w[4][j] * b + w[7][j] * d;
            const V after = (at + 2 == W ? inner[j] - right[j] : inner[j]) + (w[0][j] * a + w[3][j] * b + w[6][j] * d);
            if (at > 0) finish(at - 1, j);
            before[j] = here[j];
            here[j] = after;
        }
    }
    for (int j = 0; j < P; j++) finish(W - 1, j);
}

template <typename T>
void depthwise(const Map<T>& map, const Taps& taps, int64_t B) {
    const int64_t H = map.H, C = map.C, pairs = C / (2 * L), singles = (C - pairs * 2 * L) / L, rest = C % L;
    const int64_t blocks = pairs + singles + (rest > 0);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t row = 0; row < B * H; row++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t c = block < pairs ? block * 2 * L : pairs * 2 * L + (block - pairs) * L;
            if (block < pairs) {
                convolve<2, true>(map, taps, row, c, L);
            } else if (block < pairs + singles) {
                convolve<1, true>(map, taps, row, c, L);
            } else {
                convolve<1, false>(map, taps, row, c, rest);
            }
        }
    }
}

// A row of the output of a depthwise convolution of kernel and stride k: each value of the map belongs to one sum.
template <bool WHOLE, typename T>
void reduce_row(const Map<T>& map, const float* weight, const float* bias, int64_t k, int64_t row, int64_t c, int64_t n) {
    const int64_t C = map.C, W = map.W, out_W = W / k;
    for (int64_t at = 0; at < out_W; at++) {
        V s = some<WHOLE>(bias + c, n);
        for (int64_t y = 0; y < k; y++) {
            const T* from = map.x + ((row * k + y) * W + at * k) * C + c;
            for (int64_t x = 0; x < k; x++)
                s += some<WHOLE>(weight + (y * k + x) * C + c, n) * some<WHOLE>(from + x * C, n);
        }
        put_some<WHOLE>(map.out + (row * out_W + at) * C + c, s, n);
    }
}

template <typename T>
void reduce(const Map<T>& map, const float* weight, const float* bias, int64_t k, int64_t B) {
    const int64_t C = map.C, whole = C / L, rest = C % L, blocks = whole + (rest > 0);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t row = 0; row < B * map.H / k; row++)
        for (int64_t block = 0; block < blocks; block++) {
            if (block < whole) reduce_row<true>(map, weight, bias, k, row, block * L, L);
            else reduce_row<false>(map, weight, bias, k, row, block * L, rest);
        }
}

// R rows of C >= L at a time, since the sums of one row wait for each other.
template <int R, typename T>
inline void norm_rows(const T* x, T* out, const Channels& channels, float eps) {
    const int64_t C = channels.C;
    V s[R] = {}, q[R] = {};
    channels.each([&](int64_t c, V fresh) {
        for (int r = 0; r < R; r++) s[r] += fresh * get(x + r * C + c);
    });
    float mean[R], by[R];
    for (int r = 0; r < R; r++) mean[r] = sum(s[r]) / float(C);
    channels.each([&](int64_t c, V fresh) {
        for (int r = 0; r < R; r++) {
            const V v = (get(x + r * C + c) - mean[r]) * fresh;
            q[r] += v * v;
        }
    });
    for (int r = 0; r < R; r++) by[r] = 1.0f / std::sqrt(sum(q[r]) / float(C) + eps);
    channels.each([&](int64_t c, V) {
        for (int r = 0; r < R; r++) put(out + r * C + c, (get(x + r * C + c) - mean[r]) * by[r]);
    });
}

// A row of fewer than L.
template <typename T>
inline void norm_narrow(const T* x, T* out, int64_t C, float eps) {
    float mean = 0, squares = 0;
    for (int64_t c = 0; c < C; c++) mean += get_one(x + c) / float(C);
    for (int64_t c = 0; c < C; c++) squares += (get_one(x + c) - mean) * (get_one(x + c) - mean);
    const float by = 1.0f / std::sqrt(squares / float(C) + eps);
    for (int64_t c = 0; c < C; c++) put_one(out + c, (get_one(x + c) - mean) * by);
}

template <typename T>
void layer_norm(const T* x, T* out, int64_t rows, int64_t C, float eps) {
    constexpr int R = 4;
    const Channels channels(C);
#pragma omp parallel for schedule(static)
    for (int64_t group = 0; group < (rows + R - 1) / R; group++) {
        const int64_t row = group * R;
        if (C >= L && row + R <= rows) {
            norm_rows<R>(x + row * C, out + row * C, channels, eps);
            continue;
        }
        for (int64_t one = row; one < std::min(rows, row + R); one++) {
            if (C >= L) norm_rows<1>(x + one * C, out + one * C, channels, eps);
            else norm_narrow(x + one * C, out + one * C, C, eps);
        }
    }
}

}  // namespace

// `is_bf16`: the maps are bfloat16. Everything else is float32.
extern "C" {

// LayerNorm without scale and shift.
int cmt_layer_norm(int is_bf16, In x, Out out, int64_t rows, int64_t C, float eps) {
    if (is_bf16) layer_norm(as_bf16(x), as_bf16(out), rows, C, eps);
    else layer_norm(as_float(x), as_float(out), rows, C, eps);
    return 0;
}

// Depthwise 3 x 3, stride 1, zeros around: weight (9, C), bias (C,); absent (9, C), what a tap that meets the border
// takes away from the bias, or null; then GELU.
int cmt_depthwise(int is_bf16, In x, Out out, int64_t B, int64_t H, int64_t W, int64_t C, const float* weight,
                  const float* bias, const float* absent, int with_gelu) {
    const Taps taps{weight, bias, absent, with_gelu != 0};
    if (is_bf16) depthwise(Map<bf16>{as_bf16(x), as_bf16(out), H, W, C}, taps, B);
    else depthwise(Map<float>{as_float(x), as_float(out), H, W, C}, taps, B);
    return 0;
}

// Depthwise k x k of stride k, which divides H and W: weight (k k, C), bias (C,); out (B, H / k, W / k, C).
int cmt_reduce(int is_bf16, In x, Out out, int64_t B, int64_t H, int64_t W, int64_t C, int64_t k, const float* weight,
               const float* bias) {
    if (is_bf16) reduce(Map<bf16>{as_bf16(x), as_bf16(out), H, W, C}, weight, bias, k, B);
    else reduce(Map<float>{as_float(x), as_float(out), H, W, C}, weight, bias, k, B);
    return 0;
}

}  // extern "C"
