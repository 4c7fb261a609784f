/* The operations of a decode step, of one instruction set. */

#define BODY "decode_kernels.h"
#include "each_dtype.h"

#define OF_DTYPE(dtype)                                                                                                    \
    {JOIN(decode_norm, dtype, ISA), JOIN(decode_product, dtype, ISA), JOIN(decode_heads, dtype, ISA),                       \
     JOIN(decode_conv, dtype, ISA), JOIN(decode_gate, dtype, ISA), JOIN(decode_add, dtype, ISA),                            \
     JOIN(decode_add_scaled, dtype, ISA), JOIN(decode_rglru, dtype, ISA), JOIN(decode_mingru, dtype, ISA),                  \
     JOIN(decode_memory, dtype, ISA), JOIN(decode_lru, dtype, ISA), JOIN(decode_index, dtype, ISA)}

static const DecodeKernel JOIN(decode, all, ISA)[DTYPES][DECODE_OPERATIONS] = {
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
