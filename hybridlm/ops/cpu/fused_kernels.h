/* The operations between the matrix products, of one storage dtype and one instruction set: included by each_dtype.h. */

#include "elementary.h"

#define ROW(view, token) ((STORE *)(view).data + (token) * (view).row)
#define WIDE(view, token) ((REAL *)(view).data + (token) * (view).row)

/* How many taps behind a token belong to its document, of at most `most`. */
static inline int NAME(reach)(const FusedJob *job, int64_t token, int most) {
    const int64_t t = token % job->steps;
    int k = 0;
    while (k < most && !(k <= t && job->reset && job->reset[token - k])) {
        if (k > t) return most; /* behind the first token there is only the past, of the same document */
        k++;
    }
    return k;
}

/* u_{t-k}, or NULL where nothing is: in[1] holds the last taps of the call before, (B, K-1). */
static inline const STORE *NAME(tap)(const FusedJob *job, int64_t token, int k) {
    const int64_t t = token % job->steps, row = token / job->steps, taps = job->taps - 1;
    if (t >= k) return ROW(job->in[0], token - k);
    return job->in[1].data ? ROW(job->in[1], row * taps + taps + t - k) : 0;
}

/* v_t = bias + sum_k w_k u_{t-k}. in: u, past. out: v. channel: w (K, N), the present first; bias. */
static void NAME(conv_forward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    const REAL *restrict w = job->channel[0], *restrict bias = job->channel[1];
    for (int64_t token = begin; token < end; token++) {
        STORE *restrict v = ROW(job->out[0], token);
        const int reach = NAME(reach)(job, token, job->taps - 1);
        const STORE *taps[4] = {0};
        if (job->taps == 4 && reach == 3) {
            for (int k = 0; k < 4; k++) taps[k] = NAME(tap)(job, token, k);
        }
        if (taps[0] && taps[1] && taps[2] && taps[3]) {
            const STORE *restrict a = taps[0], *restrict b = taps[1], *restrict c = taps[2], *restrict d = taps[3];
            EACH(i) v[i] = SAVE(bias[i] + w[i] * LOAD(a[i]) + w[n + i] * LOAD(b[i]) + w[2 * n + i] * LOAD(c[i]) +
                                w[3 * n + i] * LOAD(d[i]));
            continue;
        }
        REAL sum[256];
        for (int64_t first = 0; first < n; first += 256) {
            const int64_t count = n - first < 256 ? n - first : 256;
            for (int64_t i = 0; i < count; i++) sum[i] = bias[first + i];
            for (int k = 0; k <= reach; k++) {
                const STORE *restrict u = NAME(tap)(job, token, k);
                if (u)
                    for (int64_t i = 0; i < count; i++) sum[i] += w[k * n + first + i] * LOAD(u[first + i]);
            }
            for (int64_t i = 0; i < count; i++) v[first + i] = SAVE(sum[i]);
        }
    }
}

/* in: u, past, gradient of v. out: gradient of u, of past. channel: w. sums: gradients of w (K, N) and of the bias. */
static void NAME(conv_backward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    const int taps = job->taps;
    const REAL *restrict w = job->channel[0];
    REAL *restrict dw = sums, *restrict db = dw + taps * n;
    for (int64_t token = begin; token < end; token++) {
        const STORE *restrict g = ROW(job->in[2], token);
        const int64_t t = token % job->steps, row = token / job->steps;
        const int reach = NAME(reach)(job, token, taps - 1);
        EACH(i) db[i] += LOAD(g[i]);
        for (int k = 0; k <= reach; k++) {
            const STORE *restrict u = NAME(tap)(job, token, k);
            if (u) EACH(i) dw[k * n + i] += LOAD(g[i]) * LOAD(u[i]);
        }
        /* Every input a token passes its gradient to: itself, and before the first token also those of the past. */
        for (int back = 0; back <= (t == 0 ? taps - 1 : 0); back++) {
            if (back && !job->out[1].data) break;
            STORE *restrict du = back ? ROW(job->out[1], row * (taps - 1) + taps - 1 - back) : ROW(job->out[0], token);
            const STORE *later[256];
            int count = 0, lag[256];
            for (int k = back; k < taps && t + k - back < job->steps; k++)
                if (NAME(reach)(job, token + k - back, taps - 1) >= k)
                    later[count] = ROW(job->in[2], token + k - back), lag[count++] = k;
            if (count == 4) {
                const STORE *restrict a = later[0], *restrict b = later[1], *restrict c = later[2], *restrict d = later[3];
                const REAL *w0 = w + lag[0] * n, *w1 = w + lag[1] * n, *w2 = w + lag[2] * n, *w3 = w + lag[3] * n;
                EACH(i) du[i] = SAVE(w0[i] * LOAD(a[i]) + w1[i] * LOAD(b[i]) + w2[i] * LOAD(c[i]) + w3[i] * LOAD(d[i]));
                continue;
            }
            REAL sum[256];
            for (int64_t first = 0; first < n; first += 256) {
                const int64_t size = n - first < 256 ? n - first : 256;
                for (int64_t i = 0; i < size; i++) sum[i] = 0;
                for (int j = 0; j < count; j++)
                    for (int64_t i = 0; i < size; i++) sum[i] += w[lag[j] * n + first + i] * LOAD(later[j][first + i]);
                for (int64_t i = 0; i < size; i++) du[first + i] = SAVE(sum[i]);
            }
        }
    }
}

/* y = silu(g) u. in: g, u. out: y. */
static void NAME(gate_forward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    for (int64_t token = begin; token < end; token++) {
        const STORE *restrict g = ROW(job->in[0], token), *restrict u = ROW(job->in[1], token);
        STORE *restrict y = ROW(job->out[0], token);
        EACH(i) {
            const REAL x = LOAD(g[i]);
            y[i] = SAVE(x * SIGMOID(x) * LOAD(u[i]));
        }
    }
}

/* in: g, u, gradient of y. out: gradients of g and u. */
static void NAME(gate_backward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    for (int64_t token = begin; token < end; token++) {
        const STORE *restrict g = ROW(job->in[0], token), *restrict u = ROW(job->in[1], token);
        const STORE *restrict dy = ROW(job->in[2], token);
        STORE *restrict dg = ROW(job->out[0], token), *restrict du = ROW(job->out[1], token);
        EACH(i) {
            const REAL x = LOAD(g[i]), s = SIGMOID(x), d = LOAD(dy[i]);
            dg[i] = SAVE(d * LOAD(u[i]) * s * (1 + x * (1 - s)));
            du[i] = SAVE(d * x * s);
        }
    }
}

/* y = x w / sqrt(mean(x^2) + epsilon). in: x. out: y. channel: w. */
static void NAME(norm_forward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    const REAL *restrict w = job->channel[0];
    for (int64_t token = begin; token < end; token++) {
        const STORE *restrict x = ROW(job->in[0], token);
        STORE *restrict y = ROW(job->out[0], token);
        const REAL r = NAME(scale_of)(x, n, job->epsilon);
        EACH(i) y[i] = SAVE(LOAD(x[i]) * r * w[i]);
    }
}

/* in: x, gradient of y. out: gradient of x. channel: w. sums: gradient of w. */
static void NAME(norm_backward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width;
    const REAL *restrict w = job->channel[0];
    REAL *restrict dw = sums;
    for (int64_t token = begin; token < end; token++) {
        const STORE *restrict x = ROW(job->in[0], token), *restrict g = ROW(job->in[1], token);
        STORE *restrict dx = ROW(job->out[0], token);
        const REAL r = NAME(scale_of)(x, n, job->epsilon);
        REAL part[16] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + 16 <= n; i += 16)
            for (int j = 0; j < 16; j++) part[j] += LOAD(g[i + j]) * w[i + j] * LOAD(x[i + j]);
        for (; i < n; i++) part[0] += LOAD(g[i]) * w[i] * LOAD(x[i]);
        for (int j = 0; j < 16; j++) dot += part[j];
        const REAL pull = dot * r * r * r / n;
        for (i = 0; i < n; i++) {
            const REAL value = LOAD(x[i]), grad = LOAD(g[i]);
            dw[i] += grad * value * r;
            dx[i] = SAVE(grad * w[i] * r - value * pull);
        }
    }
}

/* The gates of one head of one token, n channels. Functions of their own, since compilers vectorise the loops only where
 * `restrict` says so of arguments. */
static __attribute__((noinline)) void NAME(rglru_head)(
    int64_t n, const STORE *restrict pre_r, const STORE *restrict pre_i, const STORE *restrict x, const REAL *restrict bias_r,
    const REAL *restrict bias_i, const REAL *restrict sp, REAL *restrict a, REAL *restrict b) {
    EACH(i) {
        const REAL r = SIGMOID(LOAD(pre_r[i]) + bias_r[i]), gate = SIGMOID(LOAD(pre_i[i]) + bias_i[i]);
        const REAL log_a = -8 * r * sp[i], decay = EXP(log_a);
        a[i] = decay;
        b[i] = SQRT(NAME(one_minus_exp)(2 * log_a, decay * decay)) * gate * LOAD(x[i]);
    }
}

static __attribute__((noinline)) void NAME(rglru_head_back)(
    int64_t n, const STORE *restrict pre_r, const STORE *restrict pre_i, const STORE *restrict x, const REAL *restrict bias_r,
    const REAL *restrict bias_i, const REAL *restrict sp, const REAL *restrict da, const REAL *restrict db,
    STORE *restrict dpre_r, STORE *restrict dpre_i, STORE *restrict dx, REAL *restrict sum_r, REAL *restrict sum_i,
    REAL *restrict sum_sp) {
    EACH(i) {
        const REAL r = SIGMOID(LOAD(pre_r[i]) + bias_r[i]), gate = SIGMOID(LOAD(pre_i[i]) + bias_i[i]);
        const REAL log_a = -8 * r * sp[i], decay = EXP(log_a), value = LOAD(x[i]);
        const REAL root = SQRT(NAME(one_minus_exp)(2 * log_a, decay * decay)), grad = db[i];
        const REAL bounded = root > (REAL)1e-3 ? root : (REAL)1e-3;
        const REAL d_log = da[i] * decay - grad * gate * value * decay * decay / bounded;
        const REAL d_r = -8 * sp[i] * d_log * r * (1 - r), d_gate = grad * root * value * gate * (1 - gate);
        sum_r[i] += d_r, sum_i[i] += d_gate, sum_sp[i] += -8 * r * d_log;
        dpre_r[i] = SAVE(d_r), dpre_i[i] = SAVE(d_gate);
        dx[i] = SAVE(grad * root * gate);
    }
}

/* The gates of rglru: a = exp(-8 r sp), b = sqrt(1 - a^2) i x with r, i = sigmoid(pre + bias).
 * in: pre of r and of i (each head's two blocks stand side by side: in[0] is (heads, tokens, 2 N / heads)), x. out: a, b in
 * the arithmetic's dtype. channel: bias (heads, 2 N / heads) as pre, sp = softplus(p). */
static void NAME(rglru_forward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width / job->heads;
    for (int64_t token = begin; token < end; token++)
        for (int64_t head = 0; head < job->heads; head++) {
            const int64_t at = head * n;
            const STORE *pre = ROW(job->in[0], head * job->tokens + token);
            const REAL *bias = (const REAL *)job->channel[0] + 2 * at, *sp = (const REAL *)job->channel[1] + at;
            NAME(rglru_head)(n, pre, pre + n, ROW(job->in[1], token) + at, bias, bias + n, sp, WIDE(job->out[0], token) + at,
                             WIDE(job->out[1], token) + at);
        }
}

/* in: pre, x, gradients of a and b (arithmetic's dtype). out: gradients of pre and x. channel as above. sums: gradients of
 * the bias (2 N, as it lies) and of sp. The root's slope is cut at 500: it is infinite where everything is kept. */
static void NAME(rglru_backward)(const FusedJob *job, int64_t begin, int64_t end, void *sums) {
    const int64_t n = job->width / job->heads, N = job->width;
    for (int64_t token = begin; token < end; token++)
        for (int64_t head = 0; head < job->heads; head++) {
            const int64_t at = head * n;
            const STORE *pre = ROW(job->in[0], head * job->tokens + token);
            const REAL *bias = (const REAL *)job->channel[0] + 2 * at, *sp = (const REAL *)job->channel[1] + at;
            STORE *dpre = ROW(job->out[0], head * job->tokens + token);
            REAL *sum = (REAL *)sums + 2 * at;
            NAME(rglru_head_back)(n, pre, pre + n, ROW(job->in[1], token) + at, bias, bias + n, sp,
                                  WIDE(job->in[2], token) + at, WIDE(job->in[3], token) + at, dpre, dpre + n,
                                  ROW(job->out[1], token) + at, sum, sum + n, (REAL *)sums + 2 * N + at);
        }
}

#undef EACH
#undef SIGMOID
#undef ROW
#undef WIDE
