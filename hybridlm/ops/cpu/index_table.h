/* The scan of finite-state heads, of one instruction set. */

#define BODY "index_kernels.h"
#include "each_dtype.h"

#define OF_DTYPE(dtype) {JOIN(index_forward, dtype, ISA), JOIN(index_backward, dtype, ISA)}

static const IndexKernel JOIN(index, all, ISA)[DTYPES][INDEX_OPERATIONS] = {
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
