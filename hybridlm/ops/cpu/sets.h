/* Instruction sets, and the storage dtypes in memory. */
#ifndef HYBRIDLM_SETS_H
#define HYBRIDLM_SETS_H

#include <stdint.h>

enum { PLAIN, AVX2, AVX512 };
enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* Whether this processor has the set, and the compiler made kernels for it. */
int hybridlm_supports(int isa);

static inline __attribute__((always_inline)) float load_bf16(uint16_t x) {
    const union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}

/* To the nearest, ties to even; a NaN stays one. */
static inline __attribute__((always_inline)) uint16_t save_bf16(float x) {
    const union { float value; uint32_t bits; } u = {x};
    const uint32_t rounded = (u.bits + 0x7fffu + ((u.bits >> 16) & 1u)) >> 16;
    return (uint16_t)(x == x ? rounded : 0x7fc0u);
}

/* e^x within 2 units in the last place, without a branch, so that loops over it vectorise. Below -87.3 it stays at the
 * smallest normal number, above 88 at e^88; NaN stays NaN. */
static inline __attribute__((always_inline)) float fast_exp(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest whole number */
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    const union { int32_t bits; float value; } scale = {(int32_t)((uint32_t)((int32_t)n + 127) << 23)};
    return y * scale.value;
}

#endif
