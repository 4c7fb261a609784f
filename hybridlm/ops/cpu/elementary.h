/* What the operations of a model share, of one storage dtype and one instruction set: included by their kernels, which
 * undefine EACH and SIGMOID at their end. */

#define EACH(i) for (int64_t i = 0; i < n; i++)
#define SIGMOID(x) ((REAL)1 / ((REAL)1 + EXP(-(x))))

/* 1 / sqrt(mean(x^2) + epsilon); 16 sums side by side, so that the loop vectorises in one fixed order. */
static inline REAL NAME(scale_of)(const STORE *restrict x, int64_t n, double epsilon) {
    REAL part[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += LOAD(x[i + j]) * LOAD(x[i + j]);
    for (; i < n; i++) part[0] += LOAD(x[i]) * LOAD(x[i]);
    for (int j = 0; j < 16; j++) total += part[j];
    return (REAL)1 / SQRT(total / n + (REAL)epsilon);
}

/* -(e^x - 1) for x <= 0: near 0, where a difference would cancel, as a series. */
static inline __attribute__((always_inline)) REAL NAME(one_minus_exp)(REAL x, REAL power) {
    REAL series = (REAL)1 / 5040;
    series = series * x + (REAL)1 / 720, series = series * x + (REAL)1 / 120, series = series * x + (REAL)1 / 24;
    series = series * x + (REAL)1 / 6, series = series * x + (REAL)0.5, series = series * x + 1;
    return x > (REAL)(sizeof(REAL) == 8 ? -1e-2 : -0.25) ? -x * series : 1 - power;
}
