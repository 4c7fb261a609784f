/* The scan of finite-state heads on the CPU: how its work is cut, by rows and by heads; time is walked. */
#include "index.h"
#include "parallel.h"

#include <math.h>
#include <stdlib.h>

#define KERNELS "index_table.h"
#include "each_set.h"

static IndexKernel kernel_of(int isa, int dtype, int operation) {
#ifdef HAS_X86_SETS
    if (isa == AVX512) return index_all_avx512[dtype][operation];
    if (isa == AVX2) return index_all_avx2[dtype][operation];
#endif
    return index_all_plain[dtype][operation];
}

#define GROUPS 16 /* of rows, at most, that have sums of their own: as many whatever the threads, so their order is one */

typedef struct {
    const IndexJob *job;
    IndexKernel kernel;
    int64_t group, groups, block, blocks; /* rows and heads of a piece, and how many pieces they make */
    size_t sums, room;                    /* numbers of a group; bytes of a piece */
    double *all_sums;
    char *all_room;
} Call;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void run_piece(void *context, int64_t item) {
    const Call *call = context;
    const int64_t group = item / call->blocks, first = item % call->blocks * call->block;
    const IndexPiece piece = {
        .row = group * call->group,
        .row_end = least((group + 1) * call->group, call->job->rows),
        .head = first,
        .head_end = least(first + call->block, call->job->heads),
        .room = call->all_room ? call->all_room + item * call->room : NULL,
        .sums = call->all_sums ? call->all_sums + group * call->sums : NULL,
    };
    call->kernel(call->job, &piece);
}

static void put(void *to, int dtype, int64_t i, double x) {
    if (dtype == FLOAT64) ((double *)to)[i] = x;
    else ((float *)to)[i] = (float)x;
}

/* The groups' sums, always in the same order. */
static void add_sums(const Call *call) {
    const IndexJob *job = call->job;
    const int64_t rows = job->states * job->states, each = rows + job->states * job->emitted;
    for (int64_t i = 0; i < (int64_t)call->sums; i++) {
        double total = 0;
        for (int64_t group = 0; group < call->groups; group++) total += call->all_sums[group * call->sums + i];
        const int64_t k = i / each, at = i % each;
        if (at < rows) put(job->grad_bias, job->dtype, k * rows + at, total);
        else put(job->grad_values, job->dtype, k * (each - rows) + at - rows, total);
    }
}

static int are_states(const IndexJob *job) {
    int all = 1;
    for (int64_t i = 0; i < job->rows * job->heads; i++) all &= job->initial[i] < job->states;
    return all;
}

/* As hybridlm_scan: 0; 1: no such kernel here; 2: no memory; 3: an initial state is none. */
int hybridlm_index(const IndexJob *job, int isa) {
    if (job->dtype < 0 || job->dtype >= DTYPES || job->operation < 0 || job->operation >= INDEX_OPERATIONS) return 1;
    if (job->states < 1 || job->states > MOST_STATES || !hybridlm_supports(isa)) return 1;
    Call call = {.job = job, .kernel = kernel_of(isa, job->dtype, job->operation)};
    if (!call.kernel) return 1;
    if (!are_states(job)) return 3;
    const int backward = job->operation == INDEX_BACKWARD;
    const int64_t rows = job->rows ? job->rows : 1; /* of no rows the sums are 0 */
    call.group = backward ? (rows + GROUPS - 1) / GROUPS : 1;
    call.groups = (rows + call.group - 1) / call.group;
    const int64_t wanted = least(job->heads, (job->threads + call.groups - 1) / call.groups);
    call.block = wanted > 1 ? (job->heads + wanted - 1) / wanted : job->heads;
    call.blocks = call.block ? (job->heads + call.block - 1) / call.block : 0;
    int failed = 0;
    if (backward) {
        call.sums = (size_t)(job->heads * job->states * (job->states + job->emitted));
        call.room = (size_t)((call.block + 1) * job->states) * (job->dtype == FLOAT64 ? sizeof(double) : sizeof(float));
        call.all_sums = calloc(call.groups * call.sums + 1, sizeof(double));
        call.all_room = malloc(call.groups * call.blocks * call.room + 1);
        failed = !call.all_sums || !call.all_room;
    }
    if (!failed) {
        if (job->rows) for_each(call.groups * call.blocks, job->threads, run_piece, &call);
        if (backward) add_sums(&call);
    }
    free(call.all_sums), free(call.all_room);
    return failed ? 2 : 0;
}
