/* The operations between the matrix products, of one instruction set. */

#define BODY "fused_kernels.h"
#include "each_dtype.h"

#define OF_DTYPE(dtype)                                                                                                    \
    {JOIN(conv_forward, dtype, ISA), JOIN(conv_backward, dtype, ISA), JOIN(gate_forward, dtype, ISA),                       \
     JOIN(gate_backward, dtype, ISA), JOIN(norm_forward, dtype, ISA), JOIN(norm_backward, dtype, ISA),                      \
     JOIN(rglru_forward, dtype, ISA), JOIN(rglru_backward, dtype, ISA)}

static const FusedKernel JOIN(fused, all, ISA)[DTYPES][FUSED_OPERATIONS] = {
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
