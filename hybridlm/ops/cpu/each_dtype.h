/* Includes BODY once for each storage dtype, with
 *   STORE, REAL     the types in memory and of the arithmetic
 *   LOAD, SAVE      between them
 *   WIDEN(v, to)    LOAD of a vector of STORE, as one of the type `to`
 *   ABS, EXP, SQRT  of REAL
 *   NAME(x)         x, marked with dtype and instruction set */

#define JOIN_(x, dtype, isa) x##_##dtype##_##isa
#define JOIN(x, dtype, isa) JOIN_(x, dtype, isa)
#define IDENTITY(x) (x)

#define REAL float
#define ABS __builtin_fabsf
#define EXP fast_exp
#define SQRT __builtin_sqrtf

#define STORE float
#define LOAD IDENTITY
#define SAVE IDENTITY
#define WIDEN __builtin_convertvector
#define NAME(x) JOIN(x, f32, ISA)
#include BODY
#undef STORE
#undef LOAD
#undef SAVE
#undef WIDEN
#undef NAME

#define STORE uint16_t
#define LOAD load_bf16
#define SAVE save_bf16
#define WIDEN(v, to) ((to)(__builtin_convertvector(v, NAME(words)) << 16))
#define NAME(x) JOIN(x, bf16, ISA)
#include BODY
#undef STORE
#undef LOAD
#undef SAVE
#undef WIDEN
#undef NAME

#ifdef __FLT16_MAX__
#define STORE _Float16
#define LOAD (float)
#define SAVE (_Float16)
#define WIDEN __builtin_convertvector
#define NAME(x) JOIN(x, f16, ISA)
#include BODY
#undef STORE
#undef LOAD
#undef SAVE
#undef WIDEN
#undef NAME
#endif

#undef REAL
#undef ABS
#undef EXP
#undef SQRT

#define REAL double
#define ABS __builtin_fabs
#define EXP exp
#define SQRT __builtin_sqrt
#define STORE double
#define LOAD IDENTITY
#define SAVE IDENTITY
#define WIDEN __builtin_convertvector
#define NAME(x) JOIN(x, f64, ISA)
#include BODY
#undef STORE
#undef LOAD
#undef SAVE
#undef WIDEN
#undef NAME
#undef REAL
#undef ABS
#undef EXP
#undef SQRT
#undef BODY
