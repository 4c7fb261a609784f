/* What stands between the matrix products, each as one pass over memory: forward and backward. */
#include "fused.h"
#include "parallel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KERNELS "fused_table.h"
#include "each_set.h"

static FusedKernel kernel_of(int isa, int dtype, int operation) {
#ifdef HAS_X86_SETS
    if (isa == AVX512) return fused_all_avx512[dtype][operation];
    if (isa == AVX2) return fused_all_avx2[dtype][operation];
#endif
    return fused_all_plain[dtype][operation];
}

#define PIECE 32768 /* numbers that a thread works on at a time: what they need stays in its second-level cache */

typedef struct {
    const FusedJob *job;
    FusedKernel kernel;
    int64_t size;
    size_t room; /* bytes of the sums of a piece */
    char *sums;
} Call;

static void run_piece(void *context, int64_t item) {
    const Call *call = context;
    const int64_t begin = item * call->size, end = begin + call->size;
    call->kernel(call->job, begin, end < call->job->tokens ? end : call->job->tokens, call->sums + item * call->room);
}

#define DEFINE_ADD(REAL)                                                                                                   \
    static void add_sums_##REAL(const Call *call, int64_t pieces) {                                                        \
        const int64_t count = call->job->planes * call->job->width;                                                        \
        for (int64_t i = 0; i < count; i++) {                                                                              \
            double total = 0;                                                                                              \
            for (int64_t piece = 0; piece < pieces; piece++) total += ((REAL *)(call->sums + piece * call->room))[i];      \
            ((REAL *)call->job->summed)[i] = (REAL)total;                                                                  \
        }                                                                                                                  \
    }
DEFINE_ADD(float)
DEFINE_ADD(double)

/* As hybridlm_scan: 0; 1: no such kernel here; 2: no memory. */
int hybridlm_fused(const FusedJob *job, int isa) {
    if (job->dtype < 0 || job->dtype >= DTYPES || job->operation < 0 || job->operation >= FUSED_OPERATIONS) return 1;
    if (!hybridlm_supports(isa)) return 1;
    Call call = {.job = job, .kernel = kernel_of(isa, job->dtype, job->operation)};
    if (!call.kernel) return 1;
    call.size = PIECE / job->width > 8 ? PIECE / job->width : 8;
    const int64_t pieces = (job->tokens + call.size - 1) / call.size;
    call.room = (size_t)(job->planes * job->width) * (job->dtype == FLOAT64 ? sizeof(double) : sizeof(float));
    if (call.room && !(call.sums = calloc(pieces, call.room))) return 2;
    for_each(pieces, job->threads, run_piece, &call);
    if (call.room && job->dtype == FLOAT64) add_sums_double(&call, pieces);
    else if (call.room) add_sums_float(&call, pieces);
    free(call.sums);
    return 0;
}
