/* Scans on the CPU: which kernel, and how the work is cut.
 *
 * Knows nothing of torch and of Python: raw pointers in, raw pointers out. Python calls `hybridlm_scan` through ctypes. */
#include "scans.h"
#include "parallel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef SOURCE_HASH
#define SOURCE_HASH "unknown"
#endif

#define KERNELS "scans_table.h"
#include "each_set.h"

int hybridlm_supports(int isa) {
#ifdef HAS_X86_SETS
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == AVX2) return avx2;
    if (isa == AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == PLAIN;
}

static Kernel kernel_of(int isa, int dtype, int operation) {
#ifdef HAS_X86_SETS
    if (isa == AVX512) return scans_all_avx512[dtype][operation];
    if (isa == AVX2) return scans_all_avx2[dtype][operation];
#endif
    return scans_all_plain[dtype][operation];
}

#define LARGE (1 << 20) /* numbers of a tensor that is too large for the cache of a core */

/* ---- one call ---- */

typedef struct {
    const Job *job;
    Kernel kernel;
    int planes, real, backward;       /* numbers of a state, bytes of one, whether time runs from the right */
    int64_t block, blocks, chunks, chunk;
    int reducing;
    _Atomic int overflowed;           /* the map of some chunk is not finite */
    char *carries, *products;         /* (rows, chunks, planes, N) where time is cut */
    double *sums;                     /* (rows, chunks, 2, N) where there are sums */
} Call;

/* Room of a piece: planes of its own block stand together, so it starts at planes * first. */
static size_t place(const Call *call, int64_t row, int64_t chunk, int64_t first, int planes) {
    return (size_t)((row * call->chunks + chunk) * planes * call->job->width + planes * first);
}

static void get_state(const Call *call, const void *const *planes, int64_t row, int64_t first, int64_t count, char *to) {
    for (int k = 0; k < call->planes; k++) {
        char *here = to + k * count * call->real;
        if (planes[k])
            memcpy(here, (const char *)planes[k] + (row * call->job->width + first) * call->real, count * call->real);
        else
            memset(here, 0, count * call->real);
    }
}

static void put_state(const Call *call, void *const *planes, int64_t row, int64_t first, int64_t count, const char *from) {
    for (int k = 0; k < call->planes; k++)
        memcpy((char *)planes[k] + (row * call->job->width + first) * call->real, from + k * count * call->real,
               count * call->real);
}

/* The steps of the k-th chunk on the way of the scan; the last one goes on to its end. */
static void steps_of(const Call *call, int64_t k, int64_t *begin, int64_t *end) {
    const int64_t steps = call->job->steps, from = k * call->chunk, to = k == call->chunks - 1 ? steps : from + call->chunk;
    *begin = call->backward ? steps - to : from;
    *end = call->backward ? steps - from : to;
}

static int are_finite(const void *numbers, int64_t count, int real) {
    int all = 1;
    for (int64_t i = 0; i < count; i++)
        all &= real == sizeof(double) ? isfinite(((const double *)numbers)[i]) != 0 : isfinite(((const float *)numbers)[i]) != 0;
    return all;
}

static void run_piece(void *context, int64_t item) {
    Call *call = context;
    const Job *job = call->job;
    const int64_t last = call->chunks - 1, chunk = last - item % call->chunks; /* the last one may be longer: it goes first */
    const int64_t block = item / call->chunks % call->blocks;
    Piece piece = {.row = item / call->chunks / call->blocks, .first = block * call->block};
    piece.count = job->width - piece.first < call->block ? job->width - piece.first : call->block;
    steps_of(call, chunk, &piece.begin, &piece.end);
    double own[2 * BLOCK], *sums = call->sums ? call->sums + place(call, piece.row, chunk, piece.first, 2) : NULL;
    _Alignas(64) char carry[2 * BLOCK * sizeof(double)];
    if (sums) memset(own, 0, sizeof(double) * 2 * piece.count);
    char *kept = call->carries ? call->carries + place(call, piece.row, chunk, piece.first, call->planes) * call->real : NULL;
    if (call->reducing) {
        if (chunk == last) return; /* nothing starts from what it ends at */
        char *product = call->products + place(call, piece.row, chunk, piece.first, call->planes) * call->real;
        memset(kept, 0, call->planes * piece.count * call->real);
        memset(product, 0, call->planes * piece.count * call->real);
        for (int64_t i = 0; i < piece.count; i++)
            if (call->real == sizeof(double)) ((double *)product)[i] = 1;
            else ((float *)product)[i] = 1;
        call->kernel(job, &piece, kept, product, own);
        const int64_t numbers = call->planes * piece.count;
        if (!are_finite(product, numbers, call->real) || !are_finite(kept, numbers, call->real)) call->overflowed = 1;
        return;
    }
    if (kept) memcpy(carry, kept, call->planes * piece.count * call->real);
    else get_state(call, job->arriving, piece.row, piece.first, piece.count, carry);
    call->kernel(job, &piece, carry, NULL, sums ? own : NULL);
    if (sums) memcpy(sums, own, sizeof(double) * 2 * piece.count);
    if (chunk == last)
        put_state(call, job->leaving, piece.row, piece.first, piece.count, carry);
}

/* Whether a document starts in a chunk: then nothing from before it comes out, not even a NaN. */
static int resets_in(const Job *job, int64_t row, int64_t begin, int64_t end) {
    if (!job->reset) return 0;
    for (int64_t t = row * job->steps + begin; t < row * job->steps + end; t++)
        if (job->reset[t] && (!job->mask || job->mask[t])) return 1;
    return 0;
}

/* From the affine map of each chunk to the state that it starts from. */
#define DEFINE_CARRY(REAL)                                                                                                 \
    static void carry_over_##REAL(const Call *call, int64_t row, int64_t first, int64_t n) {                               \
        REAL state[2 * BLOCK];                                                                                             \
        get_state(call, call->job->arriving, row, first, n, (char *)state);                                                \
        for (int64_t chunk = 0; chunk < call->chunks; chunk++) {                                                           \
            const size_t at = place(call, row, chunk, first, call->planes);                                                \
            REAL *s = (REAL *)call->carries + at;                                                                          \
            if (chunk == call->chunks - 1) {                                                                               \
                memcpy(s, state, call->planes * n * sizeof(REAL));                                                         \
                break;                                                                                                     \
            }                                                                                                              \
            int64_t begin, end;                                                                                            \
            steps_of(call, chunk, &begin, &end);                                                                           \
            const int ended = resets_in(call->job, row, begin, end);                                                       \
            const REAL *p = (const REAL *)call->products + at;                                                             \
            for (int64_t i = 0; i < n; i++) {                                                                              \
                const REAL re = state[i], own = s[i];                                                                      \
                if (call->planes == 1) {                                                                                   \
                    s[i] = re, state[i] = ended ? own : p[i] * re + own;                                                   \
                    continue;                                                                                              \
                }                                                                                                          \
                const REAL im = state[n + i], own_im = s[n + i], q = p[n + i];                                             \
                s[i] = re, s[n + i] = im;                                                                                  \
                state[i] = ended ? own : p[i] * re - q * im + own;                                                         \
                state[n + i] = ended ? own_im : p[i] * im + q * re + own_im;                                               \
            }                                                                                                              \
        }                                                                                                                  \
    }
DEFINE_CARRY(float)
DEFINE_CARRY(double)

static void carry_over(void *context, int64_t item) {
    const Call *call = context;
    const int64_t first = item % call->blocks * call->block, row = item / call->blocks;
    const int64_t left = call->job->width - first, n = left < call->block ? left : call->block;
    if (call->real == sizeof(double)) carry_over_double(call, row, first, n);
    else carry_over_float(call, row, first, n);
}

/* The pieces' sums, always in the same order. */
static void add_sums(const Call *call) {
    const Job *job = call->job;
    for (int k = 0; k < 2; k++) {
        if (!job->summed[k]) continue;
        for (int64_t block = 0; block < call->blocks; block++) {
            const int64_t first = block * call->block, left = job->width - first, n = left < call->block ? left : call->block;
            for (int64_t i = 0; i < n; i++) {
                double total = 0;
                for (int64_t row = 0; row < job->rows; row++)
                    for (int64_t chunk = 0; chunk < call->chunks; chunk++)
                        total += call->sums[place(call, row, chunk, first, 2) + k * n + i];
                if (call->real == sizeof(double)) ((double *)job->summed[k])[first + i] = total;
                else ((float *)job->summed[k])[first + i] = (float)total;
            }
        }
    }
}

/* A thread that reads whole rows gets twice the bandwidth of one that reads a part of each: what is fetched ahead is of use.
 * So what is too large for the cache is cut into rows, then into chunks of time. What is not is cut into blocks of channels,
 * as narrow as leaves a piece for every thread, then into chunks. */
static void cut(Call *call) {
    const Job *job = call->job;
    const int large = job->rows * job->steps * job->width >= LARGE;
    call->block = job->width < BLOCK ? job->width : BLOCK;
    while (!large && call->block > 64 && job->rows * ((job->width + call->block - 1) / call->block) % job->threads)
        call->block = call->block > 128 ? call->block / 2 : 64;
    call->blocks = (job->width + call->block - 1) / call->block;
    call->chunks = job->chunks;
    if (!call->chunks) {
        const int64_t pieces = job->rows * call->blocks;
        call->chunks = pieces >= job->threads || job->steps < 256 ? 1 : (job->threads + pieces - 1) / pieces;
        if (call->chunks == 2) { /* a half, and two quarters whose maps two threads find at the same time */
            call->chunk = (job->steps + 3) / 4, call->chunks = 3;
            return;
        }
    }
    if (call->chunks > job->steps) call->chunks = job->steps;
    call->chunk = (job->steps + call->chunks - 1) / call->chunks;
    call->chunks = (job->steps + call->chunk - 1) / call->chunk;
}

/* 0; 1: no such kernel here; 2: no memory. Nothing is returned before every thread is done. */
int hybridlm_scan(const Job *job, int isa) {
    if (job->dtype < 0 || job->dtype >= DTYPES || job->operation < 0 || job->operation >= OPERATIONS) return 1;
    if (!hybridlm_supports(isa)) return 1;
    Call call = {.job = job, .kernel = kernel_of(isa, job->dtype, job->operation)};
    if (!call.kernel) return 1;
    const int lru = job->operation == LRU_FORWARD || job->operation == LRU_BACKWARD;
    call.planes = lru ? 2 : 1;
    call.real = job->dtype == FLOAT64 ? sizeof(double) : sizeof(float);
    call.backward = job->operation == LINEAR_BACKWARD || job->operation == LRU_BACKWARD || job->operation == MEMORY_BACKWARD;
    if (!job->rows || !job->width) { /* nothing to scan: sums of nothing */
        for (int k = 0; k < 2; k++)
            if (job->summed[k]) memset(job->summed[k], 0, job->width * call.real);
        return 0;
    }
    cut(&call);
    const size_t numbers = (size_t)(job->rows * call.chunks * job->width);
    if (call.chunks > 1) {
        call.carries = malloc(numbers * call.planes * call.real);
        call.products = malloc(numbers * call.planes * call.real);
    }
    if (job->summed[0]) call.sums = malloc(numbers * 2 * sizeof(double));
    const int short_of = (call.chunks > 1 && (!call.carries || !call.products)) || (job->summed[0] && !call.sums);
    if (!short_of) {
        const int64_t pieces = job->rows * call.blocks;
        if (call.chunks > 1) {
            call.reducing = 1;
            for_each(pieces * call.chunks, job->threads, run_piece, &call);
            call.reducing = 0;
            if (call.overflowed) { /* by decays above 1, and the states need not: uncut, they are what they are */
                free(call.carries), free(call.products);
                call.carries = call.products = NULL, call.chunks = 1;
            } else for_each(pieces, job->threads, carry_over, &call);
        }
        for_each(pieces * call.chunks, job->threads, run_piece, &call);
        if (call.sums) add_sums(&call);
    }
    free(call.carries), free(call.products), free(call.sums);
    return short_of ? 2 : 0;
}

const char *hybridlm_source_hash(void) { return SOURCE_HASH; }
