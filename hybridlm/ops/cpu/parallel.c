/* Torch's own OpenMP pool where it can be found, so that two pools never fight for the cores; else threads for one call. */
#define _GNU_SOURCE
#include "parallel.h"

#include <pthread.h>
#include <string.h>
#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#endif

typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
static Parallel openmp_parallel; /* GOMP_parallel; NULL: threads of our own */

#ifdef __linux__
static int look_for_openmp(struct dl_phdr_info *info, size_t size, void *found) {
    const char *name = info->dlpi_name ? info->dlpi_name : "";
    const char *file = strrchr(name, '/');
    file = file ? file + 1 : name;
    if (strncmp(file, "libgomp", 7) && strncmp(file, "libomp", 6) && strncmp(file, "libiomp5", 8)) return 0;
    void *library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    Parallel parallel = library ? (Parallel)dlsym(library, "GOMP_parallel") : NULL;
    if (!parallel) return 0;
    *(Parallel *)found = parallel;
    return strstr(name, "torch") != NULL; /* torch's own is the one to share; go on looking for it */
}
#endif

typedef struct {
    void (*body)(void *context, int64_t item);
    void *context;
    int64_t items, next;
} Queue;

static void take_items(void *data) {
    Queue *queue = data;
    for (;;) {
        const int64_t item = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
        if (item >= queue->items) return;
        queue->body(queue->context, item);
    }
}

static void *take_items_in_thread(void *data) {
    take_items(data);
    return NULL;
}

void for_each(int64_t items, int threads, void (*body)(void *, int64_t), void *context) {
    Queue queue = {body, context, items, 0};
    if (threads > items) threads = (int)items;
    if (threads <= 1) {
        take_items(&queue);
    } else if (hybridlm_shares_threads()) {
        openmp_parallel(take_items, &queue, (unsigned)threads, 0);
    } else {
        enum { MOST = 64 };
        pthread_t started[MOST];
        int count = 0;
        for (; count < threads - 1 && count < MOST; count++)
            if (pthread_create(&started[count], NULL, take_items_in_thread, &queue)) break;
        take_items(&queue);
        while (count) pthread_join(started[--count], NULL);
    }
}

static pthread_once_t looked = PTHREAD_ONCE_INIT;

static void look(void) {
#ifdef __linux__
    dl_iterate_phdr(look_for_openmp, &openmp_parallel);
#endif
}

int hybridlm_shares_threads(void) {
    pthread_once(&looked, look);
    return openmp_parallel != NULL;
}
