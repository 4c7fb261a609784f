/* The operations of a decode step, of one storage dtype and one instruction set: included by each_dtype.h.
 *
 * Each rounds to the storage dtype where the model's layers do. */

#include "elementary.h"

#define LANES ((int)(VECTOR / sizeof(REAL)))
#define GIVEN(place, per_row) ((const STORE *)operation->at[place] + row * (per_row))
#define RESULT(place, per_row) ((STORE *)operation->at[place] + row * (per_row))
#define STATE(place) ((REAL *)operation->at[place] + row * n)
#define WEIGHT(place) ((const STORE *)operation->at[place])
#define CONSTANT(place) ((const REAL *)operation->at[place])
#define EACH_ROW for (int64_t row = 0; row < rows; row++)

typedef REAL NAME(lanes) __attribute__((vector_size(VECTOR)));
typedef uint32_t NAME(words) __attribute__((vector_size(VECTOR)));
typedef STORE NAME(stored)
    __attribute__((vector_size(VECTOR / sizeof(REAL) * sizeof(STORE)), aligned(sizeof(STORE)), may_alias));
#define GET(p) WIDEN(*(const NAME(stored) *)(p), NAME(lanes))

/* x w / sqrt(mean(x^2) + value). at: x, w, result. */
static void NAME(decode_norm)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    const STORE *restrict w = WEIGHT(1);
    EACH_ROW {
        const STORE *restrict x = GIVEN(0, n);
        STORE *restrict y = RESULT(2, n);
        const REAL scale = NAME(scale_of)(x, n, operation->value);
        EACH(i) y[i] = SAVE(LOAD(x[i]) * scale * LOAD(w[i]));
    }
}

/* The sum of the lanes, always in one order. */
static inline __attribute__((always_inline)) REAL NAME(total)(const NAME(lanes) *lanes) {
    REAL part[LANES];
    for (int j = 0; j < LANES; j++) part[j] = (*lanes)[j];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) part[j] += part[j + half];
    return part[0];
}

/* <w[q], x> of k numbers, q < count. Four outputs at a time, two vectors of each: that many sums at once keep the multipliers
 * busy. */
static inline __attribute__((always_inline)) void NAME(dots)(
    int64_t k, int64_t count, const STORE *const w[4], const STORE *restrict x, REAL total[4]) {
    const int64_t whole = k - k % (2 * LANES);
    NAME(lanes) sums[4] = {{0}}, others[4] = {{0}};
    for (int64_t i = 0; i < whole; i += 2 * LANES) {
        const NAME(lanes) here = GET(x + i), next = GET(x + i + LANES);
        for (int q = 0; q < 4; q++) {
            sums[q] += GET(w[q] + i) * here;
            others[q] += GET(w[q] + i + LANES) * next;
        }
    }
    for (int q = 0; q < count; q++) {
        sums[q] += others[q];
        total[q] = NAME(total)(&sums[q]);
        for (int64_t i = whole; i < k; i++) total[q] += LOAD(w[q][i]) * LOAD(x[i]);
    }
}

/* W x + bias. at: x (rows, k), W (n, k), bias or NULL, result. */
static void NAME(decode_product)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n, k = operation->k;
    const STORE *restrict bias = WEIGHT(2);
    for (int64_t first = begin; first < end; first += 4) {
        const int64_t count = end - first < 4 ? end - first : 4;
        const STORE *w[4];
        for (int64_t q = 0; q < 4; q++) w[q] = WEIGHT(1) + (first + (q < count ? q : 0)) * k;
        EACH_ROW {
            REAL total[4];
            NAME(dots)(k, count, w, GIVEN(0, k), total);
            for (int q = 0; q < count; q++)
                RESULT(3, n)[first + q] = SAVE(bias ? total[q] + LOAD(bias[first + q]) : total[q]);
        }
    }
}

/* A product for each head: x (rows, heads, k), W (heads, k, n), result (rows, heads, n). at: x, W, result. */
static void NAME(decode_heads)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n, k = operation->k, heads = operation->parts;
    EACH_ROW for (int64_t head = 0; head < heads; head++) {
        const STORE *restrict x = GIVEN(0, heads * k) + head * k;
        const STORE *restrict w = WEIGHT(1) + head * k * n;
        STORE *restrict y = RESULT(2, heads * n) + head * n;
        for (int64_t first = 0; first < n; first += 128) {
            const int64_t count = n - first < 128 ? n - first : 128;
            REAL sum[128] = {0};
            int64_t i = 0;
            for (; i + 4 <= k; i += 4) {
                const STORE *restrict at = w + i * n + first;
                const REAL x0 = LOAD(x[i]), x1 = LOAD(x[i + 1]), x2 = LOAD(x[i + 2]), x3 = LOAD(x[i + 3]);
                for (int64_t j = 0; j < count; j++)
                    sum[j] += x0 * LOAD(at[j]) + x1 * LOAD(at[n + j]) + x2 * LOAD(at[2 * n + j]) + x3 * LOAD(at[3 * n + j]);
            }
            for (; i < k; i++)
                for (int64_t j = 0; j < count; j++) sum[j] += LOAD(x[i]) * LOAD(w[i * n + first + j]);
            for (int64_t j = 0; j < count; j++) y[first + j] = SAVE(sum[j]);
        }
    }
}

/* bias + sum_k w_k u_{t-k}, and the window moved on by u. at: u, w (n, taps), its last column the present, bias, window
 * (rows, taps - 1, n), the oldest first, result. */
static void NAME(decode_conv)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n, taps = operation->parts;
    const STORE *restrict w = WEIGHT(1), *restrict bias = WEIGHT(2);
    EACH_ROW {
        const STORE *restrict u = GIVEN(0, n);
        STORE *restrict window = RESULT(3, (taps - 1) * n), *restrict v = RESULT(4, n);
        EACH(i) {
            REAL sum = LOAD(bias[i]) + LOAD(w[i * taps + taps - 1]) * LOAD(u[i]);
            for (int64_t j = 0; j < taps - 1; j++) sum += LOAD(w[i * taps + j]) * LOAD(window[j * n + i]);
            v[i] = SAVE(sum);
        }
        for (int64_t j = 0; j + 1 < taps; j++) {
            const STORE *restrict next = j + 2 < taps ? window + (j + 1) * n : u;
            STORE *restrict here = window + j * n;
            EACH(i) here[i] = next[i];
        }
    }
}

/* silu(g) u. at: g, u, result. */
static void NAME(decode_gate)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    EACH_ROW {
        const STORE *restrict g = GIVEN(0, n), *restrict u = GIVEN(1, n);
        STORE *restrict y = RESULT(2, n);
        EACH(i) {
            const REAL x = LOAD(g[i]);
            y[i] = SAVE(x * SIGMOID(x) * LOAD(u[i]));
        }
    }
}

/* x + y. at: x, y, result. */
static void NAME(decode_add)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    EACH_ROW {
        const STORE *restrict x = GIVEN(0, n), *restrict y = GIVEN(1, n);
        STORE *restrict sum = RESULT(2, n);
        EACH(i) sum[i] = SAVE(LOAD(x[i]) + LOAD(y[i]));
    }
}

/* x + w y. at: x, y, w, result. */
static void NAME(decode_add_scaled)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    const STORE *restrict w = WEIGHT(2);
    EACH_ROW {
        const STORE *restrict x = GIVEN(0, n), *restrict y = GIVEN(1, n);
        STORE *restrict sum = RESULT(3, n);
        EACH(i) {
            const STORE scaled = SAVE(LOAD(w[i]) * LOAD(y[i]));
            sum[i] = SAVE(LOAD(x[i]) + LOAD(scaled));
        }
    }
}

/* One head of the operation below. A function of its own, since compilers vectorise the loop only if `restrict` says so of
 * arguments. */
static __attribute__((noinline)) void NAME(decode_rglru_head)(
    int64_t n, const STORE *restrict pre, const STORE *restrict bias, const STORE *restrict x, const REAL *restrict softplus,
    REAL *restrict s, STORE *restrict h) {
    EACH(i) {
        const REAL r = SIGMOID(LOAD(pre[i]) + LOAD(bias[i])), gate = SIGMOID(LOAD(pre[n + i]) + LOAD(bias[n + i]));
        const REAL log_a = -8 * r * softplus[i], a = EXP(log_a);
        const REAL next = a * s[i] + SQRT(NAME(one_minus_exp)(2 * log_a, a * a)) * gate * LOAD(x[i]);
        s[i] = next;
        h[i] = SAVE(next);
    }
}

/* s = a s + sqrt(1 - a^2) i x, a = exp(-8 r softplus), r and i = sigmoid(pre + bias). at: pre (rows, heads, 2 n / heads), of
 * each head those of r, then those of i; bias, one row of them; x; softplus (n) of the arithmetic's dtype; s; result. */
static void NAME(decode_rglru)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t width = operation->n, heads = operation->parts, n = width / heads;
    EACH_ROW for (int64_t head = 0; head < heads; head++) {
        const int64_t at = head * n;
        NAME(decode_rglru_head)(n, GIVEN(0, 2 * width) + 2 * at, WEIGHT(1) + 2 * at, GIVEN(2, width) + at, CONSTANT(3) + at,
                                (REAL *)operation->at[4] + row * width + at, RESULT(5, width) + at);
    }
}

/* s = (1 - z) s + z h, z = sigmoid(gate). at: gate, h, s, result. */
static void NAME(decode_mingru)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    EACH_ROW {
        const STORE *restrict gate = GIVEN(0, n), *restrict candidate = GIVEN(1, n);
        REAL *restrict s = STATE(2);
        STORE *restrict h = RESULT(3, n);
        EACH(i) {
            const REAL x = LOAD(gate[i]), next = SIGMOID(-x) * s[i] + SIGMOID(x) * LOAD(candidate[i]);
            s[i] = next;
            h[i] = SAVE(next);
        }
    }
}

/* s = z (S(c) + value s) + (1 - z) s, z = H(|c| - |threshold|); result alpha s. A margin that is NaN makes the state NaN.
 * at: c, threshold, alpha, s, result. */
static void NAME(decode_memory)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    const STORE *restrict alpha = WEIGHT(2);
    const REAL epsilon = (REAL)operation->value;
    EACH_ROW {
        const STORE *restrict c = GIVEN(0, n), *restrict threshold = GIVEN(1, n);
        REAL *restrict s = STATE(3);
        STORE *restrict h = RESULT(4, n);
        EACH(i) {
            const REAL drive = LOAD(c[i]), margin = ABS(drive) - ABS(LOAD(threshold[i])), held = s[i];
            const REAL written = (drive >= 0 ? (REAL)1 : (REAL)-1) + epsilon * held;
            const REAL next = margin >= 0 ? written : held, right = margin == margin ? next : margin;
            s[i] = right;
            h[i] = SAVE(LOAD(alpha[i]) * right);
        }
    }
}

/* s = lambda s + gain b, complex. at: b (rows, 2 n), real parts first; lambda, real and imaginary; gain (2 n): these three of
 * the arithmetic's dtype; s, real and imaginary; result (rows, 2 n) as b. */
static void NAME(decode_lru)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n;
    const REAL *restrict l_re = CONSTANT(1), *restrict l_im = CONSTANT(2), *restrict gain = CONSTANT(3);
    EACH_ROW {
        const STORE *restrict b = GIVEN(0, 2 * n);
        REAL *restrict re = STATE(4), *restrict im = STATE(5);
        STORE *restrict both = RESULT(6, 2 * n);
        EACH(i) {
            const REAL u = re[i], v = im[i];
            const REAL x = LOAD(b[i]) * gain[i] + l_re[i] * u - l_im[i] * v;
            const REAL y = LOAD(b[n + i]) * gain[n + i] + l_re[i] * v + l_im[i] * u;
            re[i] = x, im[i] = y;
            both[i] = SAVE(x), both[n + i] = SAVE(y);
        }
    }
}

/* The next state of each head j: the first largest of W[j] x + bias[j], and what it emits; NaN where one of these is, and
 * where j is no state. Of n^2 outputs of W the n that decide are computed. at: x (rows, k), W (heads, n, n, k), bias (heads, n,
 * n), values (heads, n, k / heads), s (rows, heads) bytes, result (rows, k). */
static void NAME(decode_index)(const Operation *operation, int64_t rows, int64_t begin, int64_t end) {
    const int64_t n = operation->n, k = operation->k, heads = operation->parts, d = k / heads;
    EACH_ROW for (int64_t head = 0; head < heads; head++) {
        uint8_t *s = (uint8_t *)operation->at[4] + row * heads + head;
        const int64_t from = (head * n + *s) * n;
        STORE *restrict h = RESULT(5, k) + head * d;
        REAL most = 0, seen = *s < n ? 0 : (REAL)__builtin_nan("");
        int64_t to = *s;
        for (int64_t first = 0; *s < n && first < n; first += 4) {
            const int64_t count = n - first < 4 ? n - first : 4;
            const STORE *w[4];
            REAL total[4];
            for (int64_t q = 0; q < 4; q++) w[q] = WEIGHT(1) + (from + first + (q < count ? q : 0)) * k;
            NAME(dots)(k, count, w, GIVEN(0, k), total);
            for (int64_t q = 0; q < count; q++) {
                const STORE stored = SAVE(total[q]);
                const REAL x = LOAD(stored) + LOAD(WEIGHT(2)[from + first + q]);
                if (first + q == 0 || x > most || (x != x && most == most)) most = x, to = first + q;
                seen = most == most ? seen : most;
            }
        }
        *s = (uint8_t)to;
        const STORE *restrict value = WEIGHT(3) + (head * n + (to < n ? to : 0)) * d;
        for (int64_t i = 0; i < d; i++) h[i] = seen == seen ? value[i] : SAVE(seen);
    }
}

#undef EACH
#undef SIGMOID
#undef LANES
#undef GIVEN
#undef RESULT
#undef STATE
#undef WEIGHT
#undef CONSTANT
#undef EACH_ROW
#undef GET
