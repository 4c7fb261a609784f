/* A decode step: what a layer does with one token of each row, as a list of operations that run one after another. */
#ifndef HYBRIDLM_DECODE_H
#define HYBRIDLM_DECODE_H

#include "sets.h"

#include <stdint.h>

/* Activations and weights in the storage dtype, states and what is marked so in the arithmetic's (those of finite-state heads are
 * bytes); all of them contiguous. What
 * `at` holds stands at each kernel. */
typedef struct {
    int32_t kind, parts;  /* parts: heads, or taps of a convolution */
    int64_t n, k;         /* numbers that come out of a row, and that go in where these are others; of an index scan states */
    double value;         /* epsilon of a norm, or of a memory unit */
    void *at[8];
} Operation;

/* Works on rows [0, rows), and of a product on outputs [begin, end). */
typedef void (*DecodeKernel)(const Operation *operation, int64_t rows, int64_t begin, int64_t end);

enum {
    DECODE_NORM, DECODE_PRODUCT, DECODE_HEADS, DECODE_CONV, DECODE_GATE, DECODE_ADD, DECODE_ADD_SCALED, DECODE_RGLRU,
    DECODE_MINGRU, DECODE_MEMORY, DECODE_LRU, DECODE_INDEX, DECODE_OPERATIONS
};

#endif
