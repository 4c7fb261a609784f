/* The scan of finite-state heads, of one storage dtype and one instruction set: included by each_dtype.h.
 *
 * A destination is the first largest number of a row, and the first NaN where there is one, as torch's argmax has it. Numbers
 * are compared as integers in the same order: loops over those vectorise, a search for the largest float does not. */

#define EACH(i) for (int64_t i = 0; i < n; i++)
#define MOST 2048 /* numbers whose order is found at once */
#define LINE ((int64_t)(64 / sizeof(STORE)))
#define HOLDS(at) (job->mask && !job->mask[at])
#define RESETS(at) (job->reset && job->reset[at])

typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 8, (int64_t)0, (int32_t)0)) NAME(key);

static inline __attribute__((always_inline)) NAME(key) NAME(key_of)(REAL x) {
    const union { REAL value; NAME(key) bits; } u = {x + (REAL)0}; /* -0 becomes 0, its equal */
    const NAME(key) most = (NAME(key))((sizeof(REAL) == 8 ? UINT64_MAX : UINT32_MAX) >> 1);
    return x == x ? u.bits ^ ((u.bits >> (8 * sizeof(REAL) - 1)) & most) : most;
}

/* theta + bias + noise. */
static inline __attribute__((always_inline)) REAL NAME(logit)(
    const STORE *theta, const REAL *bias, const REAL *noise, int64_t i) {
    REAL x = LOAD(theta[i]);
    if (bias) x += bias[i];
    if (noise) x += noise[i];
    return x;
}

static inline __attribute__((always_inline)) void NAME(keys_loop)(
    int64_t n, const STORE *restrict theta, const REAL *restrict bias, const REAL *restrict noise, NAME(key) *restrict keys) {
    EACH(i) keys[i] = NAME(key_of)(NAME(logit)(theta, bias, noise, i));
}

/* One loop for each set of inputs: a choice inside it would keep it from vectorising. */
static __attribute__((noinline)) void NAME(keys_of)(
    int64_t n, const STORE *theta, const REAL *bias, const REAL *noise, NAME(key) *keys) {
    if (bias && noise) NAME(keys_loop)(n, theta, bias, noise, keys);
    else if (bias) NAME(keys_loop)(n, theta, bias, 0, keys);
    else if (noise) NAME(keys_loop)(n, theta, 0, noise, keys);
    else NAME(keys_loop)(n, theta, 0, 0, keys);
}

static inline __attribute__((always_inline)) uint8_t NAME(first_largest)(int64_t n, const NAME(key) *restrict keys) {
    NAME(key) most = keys[0], at = MOST_STATES;
    EACH(i) most = keys[i] > most ? keys[i] : most;
    EACH(i) {
        const NAME(key) here = keys[i] == most ? (NAME(key))i : MOST_STATES;
        at = here < at ? here : at;
    }
    return (uint8_t)at;
}

/* Where every source of a head goes. */
static void NAME(map_of)(int64_t n, const STORE *theta, const REAL *bias, const REAL *noise, uint8_t *restrict map) {
    NAME(key) keys[MOST];
    const int64_t block = MOST / n < n ? MOST / n : n;
    for (int64_t first = 0; first < n; first += block) {
        const int64_t count = n - first < block ? n - first : block, at = first * n;
        NAME(keys_of)(count * n, theta + at, bias ? bias + at : 0, noise ? noise + at : 0, keys);
        for (int64_t i = 0; i < count; i++) map[first + i] = NAME(first_largest)(n, keys + i * n);
    }
}

/* p = softmax of a row, whose largest number is `most`, times `scale`. */
static __attribute__((noinline)) void NAME(softmax_of)(
    int64_t n, const STORE *theta, const REAL *bias, const REAL *noise, REAL most, REAL scale, REAL *p) {
    REAL x[MOST_STATES], total = 0;
    EACH(i) x[i] = NAME(logit)(theta, bias, noise, i);
    EACH(i) x[i] = EXP((x[i] - most) * scale);
    EACH(i) total += x[i];
    total = 1 / total;
    EACH(i) p[i] = x[i] * total;
}

/* s_t = tau_t(s_{t-1}), h_t = V[s_t], NaN where a NaN was read. Without p and maps only the rows that are visited are read, n
 * numbers of n^2. */
static void NAME(index_forward)(const IndexJob *job, const IndexPiece *piece) {
    const int64_t n = job->states, heads = job->heads, d = job->emitted;
    const REAL scale = (REAL)1 / (REAL)job->temperature;
    const int near = n * n <= 16 * LINE; /* which row comes next is known late: all of few are fetched ahead */
    NAME(key) keys[MOST_STATES];
    for (int64_t row = piece->row; row < piece->row_end; row++) {
        for (int64_t t = 0; t < job->steps; t++) {
            const int64_t token = row * job->steps + t;
            const uint8_t *before = t ? job->visited + (token - 1) * heads : job->initial + row * heads;
            for (int64_t k = piece->head; k < piece->head_end; k++) {
                const int64_t at = token * heads + k, j = RESETS(token) ? 0 : before[k];
                const STORE *theta = (const STORE *)job->theta + at * n * n;
                const REAL *bias = job->bias ? (const REAL *)job->bias + k * n * n : 0;
                const REAL *noise = job->noise ? (const REAL *)job->noise + at * n * n : 0;
                uint8_t *restrict map = job->maps ? job->maps + at * n : 0;
                REAL *restrict p = job->p ? (REAL *)job->p + at * n : 0, *restrict h = (REAL *)job->h + at * d;
                uint8_t next = before[k];
                REAL read = 0;
                if (HOLDS(token)) {
                    if (map) EACH(i) map[i] = (uint8_t)i, p[i] = 0;
                } else {
                    const int64_t from = j * n;
                    const REAL *b = bias ? bias + from : 0, *g = noise ? noise + from : 0;
                    if (map) {
                        NAME(map_of)(n, theta, bias, noise, map);
                        next = map[j];
                        if (RESETS(token)) EACH(i) map[i] = next;
                    } else {
                        if (near && t + 2 < job->steps)
                            for (int64_t i = 0; i < n * n; i += LINE) __builtin_prefetch(theta + 2 * heads * n * n + i);
                        NAME(keys_of)(n, theta + from, b, g, keys);
                        next = NAME(first_largest)(n, keys);
                    }
                    read = NAME(logit)(theta + from, b, g, next); /* NaN if any of the row is */
                    if (map) NAME(softmax_of)(n, theta + from, b, g, read, scale, p);
                }
                job->visited[at] = next;
                const REAL *restrict value = (const REAL *)job->values + (k * n + next) * d;
                for (int64_t i = 0; i < d; i++) h[i] = read == read ? value[i] : read;
            }
        }
    }
}

/* lambda_t = q_t + lambda_{t+1}[tau_{t+1}] with q_t[s] = <g_t, V[s]>; at the row that was read p (lambda_t - <p, lambda_t>) over
 * the temperature, 0 elsewhere. */
static void NAME(index_backward)(const IndexJob *job, const IndexPiece *piece) {
    const int64_t n = job->states, heads = job->heads, d = job->emitted, each = n * (n + d);
    const REAL scale = (REAL)1 / (REAL)job->temperature;
    REAL *restrict worth = piece->room, *restrict later = worth + n;
    for (int64_t row = piece->row; row < piece->row_end; row++) {
        REAL *carried = later;
        for (int64_t i = 0; i < (piece->head_end - piece->head) * n; i++) carried[i] = 0;
        for (int64_t t = job->steps - 1; t >= 0; t--) {
            const int64_t token = row * job->steps + t;
            const uint8_t *before = t ? job->visited + (token - 1) * heads : job->initial + row * heads;
            const int held = HOLDS(token), fresh = !held && RESETS(token);
            for (int64_t k = piece->head; k < piece->head_end; k++) {
                const int64_t at = token * heads + k, j = fresh ? 0 : before[k], s = job->visited[at];
                const REAL *restrict g = (const REAL *)job->grad + at * d, *restrict p = (const REAL *)job->p + at * n;
                const REAL *restrict values = (const REAL *)job->values + k * d * n;
                const uint8_t *restrict map = job->maps + at * n;
                STORE *restrict out = (STORE *)job->grad_theta + at * n * n;
                double *restrict sums = piece->sums + k * each, *restrict emitted = sums + n * n + s * d;
                REAL *restrict here = carried + (k - piece->head) * n, mean = 0;
                for (int64_t i = 0; i < d; i++) emitted[i] += g[i];
                for (int64_t i = 0; i < d; i++)
                    for (int64_t l = 0; l < n; l++) here[l] += g[i] * values[i * n + l];
                for (int64_t i = 0; i < n * n; i++) out[i] = SAVE((REAL)0);
                if (held) continue;
                EACH(l) mean += p[l] * here[l];
                EACH(l) {
                    const REAL x = p[l] * (here[l] - mean) * scale;
                    out[j * n + l] = SAVE(x);
                    sums[j * n + l] += x;
                }
                if (fresh) {
                    EACH(l) here[l] = 0;
                } else {
                    EACH(l) worth[l] = here[l];
                    EACH(l) here[l] = worth[map[l]];
                }
            }
        }
    }
}

#undef EACH
#undef MOST
#undef LINE
#undef HOLDS
#undef RESETS
