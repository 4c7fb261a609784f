/* Threads that share the items of a call. */
#ifndef HYBRIDLM_PARALLEL_H
#define HYBRIDLM_PARALLEL_H

#include <stdint.h>

/* Runs body(context, item) for every item below `items`, in any order, and returns when all are done. */
void for_each(int64_t items, int threads, void (*body)(void *context, int64_t item), void *context);

/* Whether they are threads of the OpenMP library that is loaded already (torch's). */
int hybridlm_shares_threads(void);

#endif
