/* The kernels of one instruction set, for every storage dtype, and their table. Included with ISA, the set's name. */

#define JOIN_(x, dtype, isa) x##_##dtype##_##isa
#define JOIN(x, dtype, isa) JOIN_(x, dtype, isa)
#define IDENTITY(x) (x)

#define STORE float
#define REAL float
#define REAL_ABS __builtin_fabsf
#define LOAD IDENTITY
#define SAVE IDENTITY
#define NAME(x) JOIN(x, f32, ISA)
#include "kernels.h"
#undef STORE
#undef LOAD
#undef SAVE
#undef NAME

#define STORE uint16_t
#define LOAD load_bf16
#define SAVE save_bf16
#define NAME(x) JOIN(x, bf16, ISA)
#include "kernels.h"
#undef STORE
#undef LOAD
#undef SAVE
#undef NAME

#ifdef __FLT16_MAX__
#define STORE _Float16
#define LOAD (float)
#define SAVE (_Float16)
#define NAME(x) JOIN(x, f16, ISA)
#include "kernels.h"
#undef STORE
#undef LOAD
#undef SAVE
#undef NAME
#endif
#undef REAL
#undef REAL_ABS

#define STORE double
#define REAL double
#define REAL_ABS __builtin_fabs
#define LOAD IDENTITY
#define SAVE IDENTITY
#define NAME(x) JOIN(x, f64, ISA)
#include "kernels.h"
#undef STORE
#undef REAL
#undef REAL_ABS
#undef LOAD
#undef SAVE
#undef NAME

#define OF_DTYPE(dtype)                                                                                                    \
    {JOIN(linear_forward, dtype, ISA), JOIN(linear_backward, dtype, ISA), JOIN(lru_forward, dtype, ISA),                    \
     JOIN(lru_backward, dtype, ISA),   JOIN(memory_forward, dtype, ISA),  JOIN(memory_backward, dtype, ISA)}

static const Kernel JOIN(kernels, all, ISA)[DTYPES][OPERATIONS] = {
    [FLOAT32] = OF_DTYPE(f32),
    [FLOAT64] = OF_DTYPE(f64),
    [BFLOAT16] = OF_DTYPE(bf16),
#ifdef __FLT16_MAX__
    [FLOAT16] = OF_DTYPE(f16),
#endif
};
#undef OF_DTYPE
#undef JOIN
#undef JOIN_
#undef IDENTITY
