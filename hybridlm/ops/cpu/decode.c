/* A decode step: its operations one after another, the large products among them cut for the threads. */
#include "decode.h"
#include "parallel.h"

#include <math.h>

#define KERNELS "decode_table.h"
#include "each_set.h"

static DecodeKernel kernel_of(int isa, int dtype, int kind) {
#ifdef HAS_X86_SETS
    if (isa == AVX512) return decode_all_avx512[dtype][kind];
    if (isa == AVX2) return decode_all_avx2[dtype][kind];
#endif
    return decode_all_plain[dtype][kind];
}

#define PIECE 32           /* outputs that a thread computes at a time */
#define ENOUGH (1 << 16)   /* weights that are worth more than one thread */

typedef struct {
    const Operation *operation;
    DecodeKernel kernel;
    int64_t rows;
} Call;

static void run_piece(void *context, int64_t item) {
    const Call *call = context;
    const int64_t begin = item * PIECE, end = begin + PIECE, n = call->operation->n;
    call->kernel(call->operation, call->rows, begin, end < n ? end : n);
}

/* 0; 1: no such kernel here, and then nothing was done. */
int hybridlm_decode(const Operation *operations, int64_t count, int64_t rows, int dtype, int threads, int isa) {
    if (dtype < 0 || dtype >= DTYPES || !hybridlm_supports(isa)) return 1;
    for (int64_t i = 0; i < count; i++)
        if (operations[i].kind < 0 || operations[i].kind >= DECODE_OPERATIONS || !kernel_of(isa, dtype, operations[i].kind))
            return 1;
    for (const Operation *operation = operations; operation < operations + count; operation++) {
        Call call = {operation, kernel_of(isa, dtype, operation->kind), rows};
        if (operation->kind == DECODE_PRODUCT && threads > 1 && operation->n * operation->k >= ENOUGH)
            for_each((operation->n + PIECE - 1) / PIECE, threads, run_piece, &call);
        else
            call.kernel(operation, rows, 0, operation->n);
    }
    return 0;
}
