/* The scans of one instruction set. */

#define BODY "scans_kernels.h"
#include "each_dtype.h"

#define OF_DTYPE(dtype)                                                                                                    \
    {JOIN(linear_forward, dtype, ISA), JOIN(linear_backward, dtype, ISA), JOIN(lru_forward, dtype, ISA),                    \
     JOIN(lru_backward, dtype, ISA),   JOIN(memory_forward, dtype, ISA),  JOIN(memory_backward, dtype, ISA)}

static const Kernel JOIN(scans, all, ISA)[DTYPES][OPERATIONS] = {
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
