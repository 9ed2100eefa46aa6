// Vectors of the compiler's own: AVX-512, AVX2, SSE and NEON alike. The files that include this are compiled on first
// use (library.py).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

namespace {

constexpr int L = BYTES / 4;  // floats of a vector
typedef float V __attribute__((vector_size(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES)));
typedef float U __attribute__((vector_size(BYTES), aligned(4)));  // in memory, wherever it is

inline V load(const float* p) { return *reinterpret_cast<const U*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<U*>(p) = v; }
template <bool WHOLE>
inline V some(const float* p, int64_t n) {  // the first n floats of a vector, zeros after them
    if (WHOLE) return load(p);
    V v = {};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
inline V all(float x) { return x - V{}; }
inline V least(V a, V b) { return a < b ? a : b; }
inline V most(V a, V b) { return a > b ? a : b; }

inline float sum(V v) {
    float s = 0;
    for (int i = 0; i < L; i++) s += v[i];
    return s;
}

inline float largest(V v) {
    float s = v[0];
    for (int i = 1; i < L; i++) s = std::max(s, v[i]);
    return s;
}

// e^x for x <= 0: 2^n times a polynomial (Cephes, expf), to 2 units in the last place
inline V exp_of(V x) {
    x = most(x, all(-87.0f));
    V n = x * 1.44269504088896341f;
    I whole = __builtin_convertvector(n - 0.5f, I);  // towards zero: the nearest, as n <= 0
    n = __builtin_convertvector(whole, V);
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    V p = all(1.9875691500e-4f);
    p = p * x + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
    I bits = (whole + 127) << 23;
    V two;
    std::memcpy(&two, &bits, sizeof two);
    return p * two;
}

// erf(x / sqrt 2), as a quotient of polynomials on [-4, 4]
inline V erf_of(V x) {
    V t = most(least(x * 0.70710678118654752f, all(4.0f)), all(-4.0f));
    V s = t * t;
    V p = all(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    V q = all(-1.45660718464996e-05f);
    q = q * s + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    return t * p / q;
}

inline V gelu(V x) {
    V half = x * 0.5f;
    return half + half * erf_of(x);
}

}  // namespace
