/* What a scan on the CPU is given. */
#ifndef HYBRIDLM_SCANS_H
#define HYBRIDLM_SCANS_H

#include "sets.h"

#include <stdint.h>

/* A (B, T, N) tensor in the storage dtype, its last dimension contiguous; strides in elements. */
typedef struct {
    void *data;
    int64_t row, step;
} View;

/* One call. Which fields an operation reads stands at its kernel. "Recurrence dtype": double for double, else float. */
typedef struct {
    int64_t rows, steps, width;
    View in[4], out[2];
    const void *initial[2];  /* (B, N) recurrence dtype, or NULL for zeros: s_0 */
    const void *channel[2];  /* (N,) recurrence dtype, or NULL: lambda, or the state that a reset brings back */
    const void *arriving[2]; /* (B, N) recurrence dtype: what the scan starts from; NULL for zeros */
    void *leaving[2];        /* (B, N) recurrence dtype: what it ends at */
    void *summed[2];         /* (N,) recurrence dtype: gradients summed over rows and time */
    const uint8_t *reset, *mask; /* (B, T) or NULL; mask 0 = hold */
    double epsilon, slope;
    int32_t operation, dtype, threads, chunks; /* chunks: of time; 0 = as many as the threads need */
} Job;

/* A piece of a call: one row, channels [first, first + count), steps [begin, end). */
typedef struct {
    int64_t row, first, count, begin, end;
} Piece;

/* Runs one piece. carry (planes, count): the state before its first step on the way in, after its last on the way out,
 * last and first where time runs backward. With `product` (planes, count) it only reduces: carry and product are then the
 * affine map of the piece, carry_out = product * carry_in + carry, and no tensor is written. sums (2, count) double are added
 * to, where the operation has them. */
typedef void (*Kernel)(const Job *job, const Piece *piece, void *carry, void *product, double *sums);

enum { LINEAR_FORWARD, LINEAR_BACKWARD, LRU_FORWARD, LRU_BACKWARD, MEMORY_FORWARD, MEMORY_BACKWARD, OPERATIONS };

#define BLOCK 512 /* channels of a piece at most; a carry of this width stays in the first-level cache */

#endif
