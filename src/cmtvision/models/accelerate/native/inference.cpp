// Loops that a fused CMT runs between its products, one pass over memory each. Maps are (B, H, W, C) in memory, float32.

#include "vectors.h"

namespace {

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
int cmt_layer_norm(const float* x, float* out, int64_t rows, int64_t C, float eps) {
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
    return 0;
}

// Depthwise 3 x 3, stride 1, zeros around: weight (9, C), bias (C,); absent (9, C), what a tap that meets the border
// takes away from the bias, or null; then GELU.
int cmt_depthwise(const float* x, float* out, int64_t B, int64_t H, int64_t W, int64_t C, const float* weight,
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
    return 0;
}

}  // extern "C"
