// Loops that a fused CMT runs between its products, one pass over memory each. Maps are (B, H, W, C) in memory, float32.

#include "vectors.h"

namespace {

// Queries at a time, and vectors of keys or values at a time: as many sums as there are registers.
constexpr int ROWS = BYTES == 64 ? 6 : 3;
constexpr int COLS = 4;

template <int R>
void products(const float* const* a, const float* b, int64_t depth, int64_t width, float* const* out) {
    // out[r][0 .. width) = sum over k of a[r][k] b[k][0 .. width), width in vectors
    for (int64_t start = 0; start < width; start += COLS) {
        const int cols = int(std::min<int64_t>(COLS, width - start));
        V s[R][COLS] = {};
        if (cols == COLS) {
            for (int64_t k = 0; k < depth; k++) {
                const float* row = b + (k * width + start) * L;
                V c[COLS];
                for (int j = 0; j < COLS; j++) c[j] = load(row + j * L);
                for (int r = 0; r < R; r++)
                    for (int j = 0; j < COLS; j++) s[r][j] += a[r][k] * c[j];
            }
        } else {
            for (int64_t k = 0; k < depth; k++) {
                const float* row = b + (k * width + start) * L;
                for (int j = 0; j < cols; j++) {
                    V c = load(row + j * L);
                    for (int r = 0; r < R; r++) s[r][j] += a[r][k] * c;
                }
            }
        }
        for (int r = 0; r < R; r++)
            for (int j = 0; j < cols; j++) store(out[r] + (start + j) * L, s[r][j]);
    }
}

struct Head {
    const float* keys;    // (d, width of keys), transposed, zeros at the end
    const float* values;  // (M, width of values), zeros at the end
    int64_t keys_width, values_width;  // in vectors
};

template <int R>
void attend(const float* q, int64_t q_step, const Head& head, const float* bias, float* out, int64_t M, int64_t d,
            float scale, float* scores, float* answer) {
    const float* rows[R];
    float* scored[R];
    float* found[R];
    for (int r = 0; r < R; r++) {
        rows[r] = q + r * q_step;
        scored[r] = scores + r * head.keys_width * L;
        found[r] = answer + r * head.values_width * L;
    }
    products<R>(rows, head.keys, d, head.keys_width, scored);
    float share[R];
    for (int r = 0; r < R; r++) {
        float* s = scored[r];
        const float* b = bias == nullptr ? nullptr : bias + r * M;
        float top = -1e30f;
        int64_t m = 0;
        V tops = all(-1e30f);
        for (; m + L <= M; m += L) {
            V v = load(s + m) * scale;
            if (b != nullptr) v += load(b + m);
            store(s + m, v);
            tops = most(tops, v);
        }
        top = largest(tops);
        for (int64_t i = m; i < M; i++) {
            s[i] = s[i] * scale + (b == nullptr ? 0.0f : b[i]);
            top = std::max(top, s[i]);
        }
        for (int64_t i = M; i < head.keys_width * L; i++) s[i] = -1e30f;
        V total = {};
        for (m = 0; m < head.keys_width * L; m += L) {
            V e = exp_of(load(s + m) - top);
            store(s + m, e);
            total += e;
        }
        float whole = 0;
        for (int64_t i = M; i < head.keys_width * L; i++) whole -= s[i];
        share[r] = 1.0f / (sum(total) + whole);
    }
    const float* weights[R];
    for (int r = 0; r < R; r++) weights[r] = scored[r];
    products<R>(weights, head.values, M, head.values_width, found);
    for (int r = 0; r < R; r++)
        for (int64_t i = 0; i < d; i++) out[r * q_step + i] = found[r][i] * share[r];
}

struct Map {
    const float* x;
    float* out;
    int64_t H, W, C;
};

struct Taps {
    const float* weight;
    const float* bias;
    const float* absent;
    bool with_gelu;
};

// P vectors of channels from c on along a row; where they are not WHOLE, the first n floats of one vector.
template <int P, bool WHOLE>
void convolve(const Map& map, const Taps& taps, int64_t row, int64_t c, int64_t n) {
    const int64_t C = map.C, y = row % map.H;
    V w[9][P], b[P];
    for (int k = 0; k < 9; k++)
        for (int j = 0; j < P; j++) w[k][j] = some<WHOLE>(taps.weight + k * C + c + j * L, n);
    for (int j = 0; j < P; j++) b[j] = some<WHOLE>(taps.bias + c + j * L, n);
    for (int64_t at = 0; at < map.W; at++) {
        V s[P];
        for (int j = 0; j < P; j++) s[j] = b[j];
        if (y > 0 && y + 1 < map.H && at > 0 && at + 1 < map.W) {
            for (int k = 0; k < 9; k++) {
                const float* from = map.x + ((row + k / 3 - 1) * map.W + at + k % 3 - 1) * C + c;
                for (int j = 0; j < P; j++) s[j] += w[k][j] * some<WHOLE>(from + j * L, n);
            }
        } else {
            for (int k = 0; k < 9; k++) {
                const int64_t yy = y + k / 3 - 1, xx = at + k % 3 - 1;
                if (yy >= 0 && yy < map.H && xx >= 0 && xx < map.W) {
                    const float* from = map.x + ((row + k / 3 - 1) * map.W + xx) * C + c;
                    for (int j = 0; j < P; j++) s[j] += w[k][j] * some<WHOLE>(from + j * L, n);
                } else if (taps.absent != nullptr) {
                    for (int j = 0; j < P; j++) s[j] -= some<WHOLE>(taps.absent + k * C + c + j * L, n);
                }
            }
        }
        float* to = map.out + (row * map.W + at) * C + c;
        for (int j = 0; j < P; j++) {
            const V value = taps.with_gelu ? gelu(s[j]) : s[j];
            if (WHOLE) {
                store(to + j * L, value);
            } else {
                std::memcpy(to, &value, n * sizeof(float));
            }
        }
    }
}

}  // namespace

extern "C" {

// LayerNorm without scale and shift: rows of C.
void cmt_layer_norm(const float* x, float* out, int64_t rows, int64_t C, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float* a = x + row * C;
        float* o = out + row * C;
        V s = {};
        float rest = 0;
        int64_t c = 0;
        for (; c + L <= C; c += L) s += load(a + c);
        for (; c < C; c++) rest += a[c];
        const float mean = (sum(s) + rest) / float(C);
        V t = {};
        rest = 0;
        for (c = 0; c + L <= C; c += L) {
            V v = load(a + c) - mean;
            t += v * v;
        }
        for (; c < C; c++) rest += (a[c] - mean) * (a[c] - mean);
        const float by = 1.0f / std::sqrt((sum(t) + rest) / float(C) + eps);
        for (c = 0; c + L <= C; c += L) store(o + c, (load(a + c) - mean) * by);
        for (; c < C; c++) o[c] = (a[c] - mean) * by;
    }
}

// Depthwise 3 x 3, stride 1, zeros around: weight (9, C), bias (C,); absent (9, C), what a tap that meets the border
// takes away from the bias, or null; then GELU.
void cmt_depthwise(const float* x, float* out, int64_t B, int64_t H, int64_t W, int64_t C, const float* weight,
                   const float* bias, const float* absent, int with_gelu) {
    const Map map{x, out, H, W, C};
    const Taps taps{weight, bias, absent, with_gelu != 0};
    const int64_t pairs = C / (2 * L), singles = (C - pairs * 2 * L) / L, rest = C % L;
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

// softmax(q k^T scale + bias) v. q, out (B, N, h d); kv (B, M, 2, h, d); bias (h, N, M) or null.
// room: h B (d keys_width + M values_width) floats for keys and values laid out, and threads (ROWS (keys_width +
// values_width)) for scores; widths in floats, multiples of the vector.
void cmt_attention(const float* q, const float* kv, const float* bias, float* out, int64_t B, int64_t N, int64_t M,
                   int64_t h, int64_t d, float scale, float* room) {
    const int64_t kw = (M + L - 1) / L, vw = (d + L - 1) / L;
    const int64_t each = (d * kw + M * vw) * L;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t one = 0; one < B * h; one++) {
            const int64_t b = one / h, head = one % h;
            float* keys = room + one * each;
            float* values = keys + d * kw * L;
            for (int64_t m = 0; m < M; m++) {
                const float* k = kv + ((b * M + m) * 2 * h + head) * d;
                const float* v = k + h * d;
                for (int64_t i = 0; i < d; i++) keys[i * kw * L + m] = k[i];
                std::memcpy(values + m * vw * L, v, d * sizeof(float));
                for (int64_t i = d; i < vw * L; i++) values[m * vw * L + i] = 0;
            }
            for (int64_t i = 0; i < d; i++)
                for (int64_t m = M; m < kw * L; m++) keys[i * kw * L + m] = 0;
        }
        float* scores = new float[ROWS * (kw + vw) * L];
        float* answer = scores + ROWS * kw * L;
        const int64_t blocks = (N + ROWS - 1) / ROWS;
#pragma omp for collapse(2) schedule(static)
        for (int64_t one = 0; one < B * h; one++) {
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t b = one / h, head = one % h, n = block * ROWS;
                const float* keys = room + one * each;
                const Head laid{keys, keys + d * kw * L, kw, vw};
                const float* from = q + (b * N + n) * h * d + head * d;
                float* to = out + (b * N + n) * h * d + head * d;
                const float* added = bias == nullptr ? nullptr : bias + (head * N + n) * M;
                if (N - n >= ROWS) {
                    attend<ROWS>(from, h * d, laid, added, to, M, d, scale, scores, answer);
                } else {
                    for (int64_t r = 0; r < N - n; r++)
                        attend<1>(from + r * h * d, h * d, laid, added == nullptr ? nullptr : added + r * M,
                                  to + r * h * d, M, d, scale, scores, answer);
                }
            }
        }
        delete[] scores;
    }
}

int cmt_vector() { return L; }

}  // extern "C"
