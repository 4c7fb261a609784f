/* What an operation between the matrix products is given: token by token, so no recurrence. */
#ifndef HYBRIDLM_FUSED_H
#define HYBRIDLM_FUSED_H

#include "sets.h"

#include <stdint.h>

/* Tokens one after the other, a row of channels each; stride in elements. */
typedef struct {
    void *data;
    int64_t row;
} Rows;

/* Which fields an operation reads stands at its kernel. */
typedef struct {
    int64_t tokens, steps, width; /* steps: of a sequence; tokens are whole sequences, one behind the other */
    Rows in[6], out[4];
    const void *channel[3];       /* (..., N) in the arithmetic's dtype */
    void *summed;                 /* (planes, N) likewise: gradients summed over tokens */
    const uint8_t *reset;         /* (tokens,) or NULL */
    double epsilon;
    int32_t operation, dtype, threads, taps, heads, planes;
} FusedJob;

/* Works on tokens [begin, end); sums (planes, N) in the arithmetic's dtype are added to. */
typedef void (*FusedKernel)(const FusedJob *job, int64_t begin, int64_t end, void *sums);

enum {
    CONV_FORWARD, CONV_BACKWARD, GATE_FORWARD, GATE_BACKWARD, NORM_FORWARD, NORM_BACKWARD, RGLRU_FORWARD, RGLRU_BACKWARD,
    FUSED_OPERATIONS
};

#endif
