/* What a scan of finite-state heads is given: the walk through its states, and the surrogate gradient. */
#ifndef HYBRIDLM_INDEX_H
#define HYBRIDLM_INDEX_H

#include "sets.h"

#include <stdint.h>

#define MOST_STATES 256

/* B rows, T steps, K heads, n states, d numbers that a state emits. Everything is contiguous; "wide": double for double, else
 * float. Which fields an operation reads stands at its kernel. */
typedef struct {
    int64_t rows, steps, heads, states, emitted;
    const void *theta;             /* (B, T, K, n, n) storage dtype, from source to destination */
    const void *bias, *noise;      /* (K, n, n) and (B, T, K, n, n) wide, added to theta; NULL: none */
    const void *values;            /* wide: forward (K, n, d), backward (K, d, n) */
    const void *grad;              /* (B, T, K, d) wide: of h */
    const uint8_t *initial;        /* (B, K): s_0 */
    const uint8_t *reset, *mask;   /* (B, T) or NULL; mask 0 = hold */
    void *h;                       /* (B, T, K, d) wide */
    uint8_t *visited;              /* (B, T, K): s_t */
    void *p;                       /* (B, T, K, n) wide: softmax of the row that was read; NULL: not kept */
    uint8_t *maps;                 /* (B, T, K, n): where each source goes, flags worked in; NULL as p */
    void *grad_theta;              /* (B, T, K, n, n) storage dtype */
    void *grad_bias, *grad_values; /* (K, n, n), (K, n, d) wide: summed over rows and time */
    double temperature;
    int32_t operation, dtype, threads;
} IndexJob;

/* Rows [row, row_end), heads [head, head_end). room: wide, n numbers, and n for each of its heads. sums: for each head of the
 * job n^2 and n d numbers, which are added to. */
typedef struct {
    int64_t row, row_end, head, head_end;
    void *room;
    double *sums;
} IndexPiece;

typedef void (*IndexKernel)(const IndexJob *job, const IndexPiece *piece);

enum { INDEX_FORWARD, INDEX_BACKWARD, INDEX_OPERATIONS };

#endif
