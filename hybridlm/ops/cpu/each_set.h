/* Includes KERNELS once for each instruction set that the compiler can make, with ISA, the set's name, and
 * VECTOR, the bytes of its vectors. */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86_SETS
#define ISA avx512
#define VECTOR 64
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#endif
#include KERNELS
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef ISA
#undef VECTOR

#define ISA avx2
#define VECTOR 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include KERNELS
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef ISA
#undef VECTOR
#endif

#define VECTOR 16
#define ISA plain /* what the compiler's own default allows: SSE2 on x86, NEON on ARM */
#include KERNELS
#undef ISA
#undef VECTOR
#undef KERNELS
