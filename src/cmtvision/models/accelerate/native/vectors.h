// Vectors of the compiler's own: AVX-512, AVX2, SSE and NEON alike. The files that include this are compiled on first
// use (library.py).

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

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
typedef float U __attribute__((vector_size(BYTES), aligned(4), may_alias));  // in memory, wherever it is

inline V load(const float* p) { return *reinterpret_cast<const U*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<U*>(p) = v; }
inline V all(float x) { return x - V{}; }
inline V least(V a, V b) { return a < b ? a : b; }  // b, if one of them is NaN
inline V most(V a, V b) { return a > b ? a : b; }

// One number of a vector, half by half: of sums, or of the larger ones.
template <int SIZE, typename F>
struct Folded {
    typedef float Part __attribute__((vector_size(SIZE / 2)));
    static float of(const float* p, F f) {
        Part a, b;
        std::memcpy(&a, p, sizeof a);
        std::memcpy(&b, p + SIZE / 8, sizeof b);
        a = f(a, b);
        return Folded<SIZE / 2, F>::of(reinterpret_cast<const float*>(&a), f);
    }
};
template <typename F>
struct Folded<8, F> {
    static float of(const float* p, F f) { return f(p[0], p[1]); }
};
template <typename F>
inline float folded(V v, F f) {
    return Folded<BYTES, F>::of(reinterpret_cast<const float*>(&v), f);
}
inline float sum(V v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}
inline float largest(V v) {
    return folded(v, [](auto a, auto b) { return a > b ? a : b; });
}

struct bf16 {
    uint16_t bits;
};
typedef uint16_t U16 __attribute__((vector_size(BYTES / 2)));
typedef uint32_t Bits __attribute__((vector_size(BYTES)));

inline V get(const float* p) { return load(p); }
inline V get(const bf16* p) {
    U16 upper;
    std::memcpy(&upper, p, sizeof upper);
    Bits bits = __builtin_convertvector(upper, Bits) << 16;
    V v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// The first n values of a vector, zeros after them; all of them where WHOLE.
template <bool WHOLE, typename T>
inline V some(const T* p, int64_t n) {
    if (WHOLE) return get(p);
    T room[L] = {};
    std::memcpy(room, p, n * sizeof(T));
    return get(room);
}

// Stores v; returns what was stored.
inline V put(float* p, V v) {
    store(p, v);
    return v;
}
inline V put(bf16* p, V v) {  // to the nearest, of two equally near to the even one
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    std::memcpy(p, &rounded, sizeof rounded);
    return get(p);
#endif
    Bits bits;
    std::memcpy(&bits, &v, sizeof bits);
    bits += 0x7fff + ((bits >> 16) & 1);
    U16 upper = __builtin_convertvector(bits >> 16, U16);
    std::memcpy(p, &upper, sizeof upper);
    bits &= 0xffff0000u;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// The first n values of v; all of them where WHOLE.
template <bool WHOLE, typename T>
inline void put_some(T* p, V v, int64_t n) {
    if (WHOLE) {
        put(p, v);
        return;
    }
    T room[L];
    put(room, v);
    std::memcpy(p, room, n * sizeof(T));
}

// A single value.
inline float get_one(const float* p) { return *p; }
inline float get_one(const bf16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
inline void put_one(float* p, float v) { *p = v; }
inline void put_one(bf16* p, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A row of C channels in vectors; the last one overlaps the one before it where L does not divide C.
struct Channels {
    int64_t C;
    V fresh;  // zeros in the lanes of the last vector that were there before
    explicit Channels(int64_t C) : C(C), fresh(::all(1.0f)) {
        for (int64_t i = 0; i < (L - C % L) % L; i++) fresh[i] = 0;
    }
    template <typename F>
    void each(F f) const {
        int64_t c = 0;
        for (; c + L <= C; c += L) f(c, ::all(1.0f));
        if (c < C) f(C - L, fresh);
    }
};

// Maps as they come from Python.
typedef const void* In;
typedef void* Out;
inline const float* as_float(In p) { return static_cast<const float*>(p); }
inline float* as_float(Out p) { return static_cast<float*>(p); }
inline const bf16* as_bf16(In p) { return static_cast<const bf16*>(p); }
inline bf16* as_bf16(Out p) { return static_cast<bf16*>(p); }

// e^x for x <= 0: 2^n times a polynomial (Cephes, expf), to 2 units in the last place
inline V exp_of(V x) {
    x = most(all(-87.0f), x);
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
    V t = most(all(-4.0f), least(all(4.0f), x * 0.70710678118654752f));
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

// Loops return 0, or 1 where there was no memory for what they keep meanwhile: no exception may leave a C function.
template <typename F>
inline int with_memory(F f) {
    try {
        f();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace
