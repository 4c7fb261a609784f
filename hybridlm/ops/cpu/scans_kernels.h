/* The scans of one storage dtype and one instruction set: included by each_dtype.h.
 *
 * The loops over channels vectorise; flags are the same for all channels of a step, so they are branches outside. */

#define EACH(i) for (int64_t i = 0; i < n; i++)
#define AT(view, t) ((STORE *)(view).data + piece->row * (view).row + (t) * (view).step + piece->first)
#define HOLDS(t) (mask && !mask[t])
#define RESETS(t) (reset && reset[t])
#define FLAGS                                                                                                              \
    const int64_t n = piece->count;                                                                                        \
    const uint8_t *mask = job->mask ? job->mask + piece->row * job->steps : 0;                                             \
    const uint8_t *reset = job->reset ? job->reset + piece->row * job->steps : 0
#define CHANNEL(k) (job->channel[k] ? (const REAL *)job->channel[k] + piece->first : 0)
#define INITIAL(k) (job->initial[k] ? (const REAL *)job->initial[k] + piece->row * job->width + piece->first : 0)

/* Loops of one step stand in functions of their own where compilers vectorise them only if `restrict` says so of arguments.
 *
 * Backward they read s_{t-1} as the recurrence had it: the stored state; s_0, of the arithmetic's dtype, at the first step. */
typedef struct {
    const STORE *stored;
    const REAL *wide; /* or NULL */
} NAME(before);

static inline NAME(before) NAME(before_step)(const Job *job, const Piece *piece, View states, int k, int64_t t, REAL *room) {
    const int64_t n = piece->count;
    if (t > 0) return (NAME(before)){AT(states, t - 1), 0};
    if (INITIAL(k)) return (NAME(before)){0, INITIAL(k)};
    EACH(i) room[i] = 0;
    return (NAME(before)){0, room};
}

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

/* in: a, b. out: states. */
static void NAME(linear_forward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict s = carry, *restrict p = product;
    for (int64_t t = piece->begin; t < piece->end; t++) {
        const STORE *restrict a = AT(job->in[0], t), *restrict b = AT(job->in[1], t);
        if (HOLDS(t)) {
            if (!p) {
                STORE *restrict out = AT(job->out[0], t);
                EACH(i) out[i] = SAVE(s[i]);
            }
        } else if (RESETS(t)) {
            if (p) {
                EACH(i) p[i] = 0, s[i] = LOAD(b[i]);
            } else {
                STORE *restrict out = AT(job->out[0], t);
                EACH(i) s[i] = LOAD(b[i]), out[i] = SAVE(s[i]);
            }
        } else if (p) {
            EACH(i) p[i] *= LOAD(a[i]), s[i] = LOAD(a[i]) * s[i] + LOAD(b[i]);
        } else {
            STORE *restrict out = AT(job->out[0], t);
            EACH(i) {
                const REAL next = LOAD(a[i]) * s[i] + LOAD(b[i]);
                s[i] = next;
                out[i] = SAVE(next);
            }
        }
    }
}

INLINE void NAME(linear_loop_back)(
    int64_t n, const STORE *restrict g, const STORE *restrict a, const STORE *restrict stored, const REAL *restrict wide,
    STORE *restrict da, STORE *restrict db, REAL *restrict c) {
    EACH(i) {
        const REAL lam = LOAD(g[i]) + c[i], before = wide ? wide[i] : LOAD(stored[i]);
        db[i] = SAVE(lam);
        da[i] = SAVE(lam * before);
        c[i] = LOAD(a[i]) * lam;
    }
}

APART void NAME(linear_step_back)(
    int64_t n, const STORE *restrict g, const STORE *restrict a, NAME(before) s, STORE *restrict da, STORE *restrict db,
    REAL *restrict c) {
    if (s.wide) NAME(linear_loop_back)(n, g, a, 0, s.wide, da, db, c);
    else NAME(linear_loop_back)(n, g, a, s.stored, 0, da, db, c);
}

/* in: gradient of the states, a, states. out: gradients of a and b. initial: s_0. */
static void NAME(linear_backward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict c = carry, *restrict p = product, room[BLOCK];
    for (int64_t t = piece->end - 1; t >= piece->begin; t--) {
        const STORE *restrict g = AT(job->in[0], t), *restrict a = AT(job->in[1], t);
        STORE *restrict da = p ? 0 : AT(job->out[0], t), *restrict db = p ? 0 : AT(job->out[1], t);
        if (HOLDS(t)) {
            EACH(i) c[i] += LOAD(g[i]);
            if (!p) EACH(i) da[i] = SAVE((REAL)0), db[i] = SAVE((REAL)0);
        } else if (RESETS(t)) {
            if (p) EACH(i) p[i] = 0;
            else EACH(i) db[i] = SAVE(c[i] + LOAD(g[i])), da[i] = SAVE((REAL)0);
            EACH(i) c[i] = 0;
        } else if (p) {
            EACH(i) p[i] *= LOAD(a[i]), c[i] = LOAD(a[i]) * (LOAD(g[i]) + c[i]);
        } else {
            NAME(linear_step_back)(n, g, a, NAME(before_step)(job, piece, job->in[2], 0, t, room), da, db, c);
        }
    }
}

APART void NAME(lru_step)(
    int64_t n, const STORE *restrict b_re, const STORE *restrict b_im, const REAL *restrict l_re, const REAL *restrict l_im,
    REAL *restrict re, REAL *restrict im, STORE *restrict out_re, STORE *restrict out_im) {
    EACH(i) {
        const REAL u = re[i], v = im[i];
        const REAL x = LOAD(b_re[i]) + l_re[i] * u - l_im[i] * v, y = LOAD(b_im[i]) + l_re[i] * v + l_im[i] * u;
        re[i] = x, im[i] = y;
        out_re[i] = SAVE(x), out_im[i] = SAVE(y);
    }
}

/* x + i y times lambda. */
APART void NAME(lru_turn)(
    int64_t n, const REAL *restrict l_re, const REAL *restrict l_im, REAL *restrict x, REAL *restrict y) {
    EACH(i) {
        const REAL u = x[i], v = y[i];
        x[i] = l_re[i] * u - l_im[i] * v, y[i] = l_re[i] * v + l_im[i] * u;
    }
}

/* in: b_re, b_im. out: states. channel: lambda. */
static void NAME(lru_forward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict re = carry, *restrict im = re + n, *restrict p_re = product, *restrict p_im = p_re ? p_re + n : 0;
    const REAL *restrict l_re = CHANNEL(0), *restrict l_im = CHANNEL(1);
    for (int64_t t = piece->begin; t < piece->end; t++) {
        const STORE *restrict b_re = AT(job->in[0], t), *restrict b_im = AT(job->in[1], t);
        STORE *restrict out_re = p_re ? 0 : AT(job->out[0], t), *restrict out_im = p_re ? 0 : AT(job->out[1], t);
        if (HOLDS(t)) {
            if (!p_re) EACH(i) out_re[i] = SAVE(re[i]), out_im[i] = SAVE(im[i]);
            continue;
        }
        if (RESETS(t)) {
            EACH(i) re[i] = 0, im[i] = 0;
            if (p_re) EACH(i) p_re[i] = 0, p_im[i] = 0;
        }
        if (p_re) {
            NAME(lru_turn)(n, l_re, l_im, p_re, p_im);
            NAME(lru_turn)(n, l_re, l_im, re, im);
            EACH(i) re[i] += LOAD(b_re[i]), im[i] += LOAD(b_im[i]);
        } else {
            NAME(lru_step)(n, b_re, b_im, l_re, l_im, re, im, out_re, out_im);
        }
    }
}

INLINE void NAME(lru_loop_back)(
    int64_t n, const STORE *restrict g_re, const STORE *restrict g_im, const REAL *restrict l_re, const REAL *restrict l_im,
    const STORE *restrict stored_re, const STORE *restrict stored_im, const REAL *restrict wide_re,
    const REAL *restrict wide_im, STORE *restrict out_re, STORE *restrict out_im, REAL *restrict c_re, REAL *restrict c_im,
    REAL *restrict d_re, REAL *restrict d_im) {
    EACH(i) {
        const REAL u = c_re[i] + LOAD(g_re[i]), v = c_im[i] + LOAD(g_im[i]); /* the adjoint of s_t */
        const REAL re = wide_re ? wide_re[i] : LOAD(stored_re[i]), im = wide_im ? wide_im[i] : LOAD(stored_im[i]);
        out_re[i] = SAVE(u), out_im[i] = SAVE(v);
        d_re[i] += u * re + v * im, d_im[i] += v * re - u * im;
        c_re[i] = l_re[i] * u + l_im[i] * v, c_im[i] = l_re[i] * v - l_im[i] * u;
    }
}

APART void NAME(lru_step_back)(
    int64_t n, const STORE *restrict g_re, const STORE *restrict g_im, const REAL *restrict l_re, const REAL *restrict l_im,
    NAME(before) re, NAME(before) im, STORE *restrict out_re, STORE *restrict out_im, REAL *restrict c_re,
    REAL *restrict c_im, REAL *restrict d_re, REAL *restrict d_im) {
    if (re.wide)
        NAME(lru_loop_back)(n, g_re, g_im, l_re, l_im, 0, 0, re.wide, im.wide, out_re, out_im, c_re, c_im, d_re, d_im);
    else
        NAME(lru_loop_back)(n, g_re, g_im, l_re, l_im, re.stored, im.stored, 0, 0, out_re, out_im, c_re, c_im, d_re, d_im);
}

/* x + i y plus the gradient, times the conjugate of lambda. */
APART void NAME(lru_turn_back)(
    int64_t n, const STORE *restrict g_re, const STORE *restrict g_im, const REAL *restrict l_re, const REAL *restrict l_im,
    REAL *restrict x, REAL *restrict y) {
    EACH(i) {
        const REAL u = x[i] + LOAD(g_re[i]), v = y[i] + LOAD(g_im[i]);
        x[i] = l_re[i] * u + l_im[i] * v, y[i] = l_re[i] * v - l_im[i] * u;
    }
}

/* in: gradients of the states (re, im), states (re, im). out: gradients of b. channel: lambda. initial: s_0. sums: gradient
 * of lambda, kept in REAL over a stretch of steps and added up in double. */
static void NAME(lru_backward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict c_re = carry, *restrict c_im = c_re + n, *restrict p_re = product, *restrict p_im = p_re ? p_re + n : 0;
    REAL room_re[BLOCK], room_im[BLOCK], d_re[BLOCK], d_im[BLOCK];
    const REAL *restrict l_re = CHANNEL(0), *restrict l_im = CHANNEL(1);
    EACH(i) d_re[i] = 0, d_im[i] = 0;
    for (int64_t t = piece->end - 1; t >= piece->begin; t--) {
        const STORE *restrict g_re = AT(job->in[0], t), *restrict g_im = AT(job->in[1], t);
        STORE *restrict out_re = p_re ? 0 : AT(job->out[0], t), *restrict out_im = p_re ? 0 : AT(job->out[1], t);
        if (HOLDS(t)) {
            EACH(i) c_re[i] += LOAD(g_re[i]), c_im[i] += LOAD(g_im[i]);
            if (!p_re) EACH(i) out_re[i] = SAVE((REAL)0), out_im[i] = SAVE((REAL)0);
        } else if (RESETS(t)) {
            if (p_re) EACH(i) p_re[i] = 0, p_im[i] = 0;
            else EACH(i) out_re[i] = SAVE(c_re[i] + LOAD(g_re[i])), out_im[i] = SAVE(c_im[i] + LOAD(g_im[i]));
            EACH(i) c_re[i] = 0, c_im[i] = 0;
        } else if (p_re) {
            NAME(lru_turn_back)(n, g_re, g_im, l_re, l_im, c_re, c_im);
            EACH(i) {
                const REAL u = p_re[i], v = p_im[i];
                p_re[i] = l_re[i] * u + l_im[i] * v, p_im[i] = l_re[i] * v - l_im[i] * u;
            }
        } else {
            const NAME(before) re = NAME(before_step)(job, piece, job->in[2], 0, t, room_re);
            const NAME(before) im = NAME(before_step)(job, piece, job->in[3], 1, t, room_im);
            NAME(lru_step_back)(n, g_re, g_im, l_re, l_im, re, im, out_re, out_im, c_re, c_im, d_re, d_im);
        }
        if (!p_re && (piece->end - t) % 256 == 0)
            EACH(i) sums[i] += d_re[i], sums[n + i] += d_im[i], d_re[i] = 0, d_im[i] = 0;
    }
    if (!p_re) EACH(i) sums[i] += d_re[i], sums[n + i] += d_im[i];
}

/* in: c, beta. out: states. channel: the state that a reset brings back. A margin that is NaN makes the state NaN. */
static void NAME(memory_forward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict s = carry, *restrict p = product;
    const REAL *restrict fresh = CHANNEL(0), epsilon = (REAL)job->epsilon;
    for (int64_t t = piece->begin; t < piece->end; t++) {
        const STORE *restrict c = AT(job->in[0], t), *restrict beta = AT(job->in[1], t);
        STORE *restrict out = p ? 0 : AT(job->out[0], t);
        if (HOLDS(t)) {
            if (!p) EACH(i) out[i] = SAVE(s[i]);
            continue;
        }
        if (RESETS(t)) {
            EACH(i) s[i] = fresh ? fresh[i] : 0;
            if (p) EACH(i) p[i] = 0;
        }
        EACH(i) {
            const REAL drive = LOAD(c[i]), margin = ABS(drive) - LOAD(beta[i]), held = s[i];
            const REAL written = (drive >= 0 ? (REAL)1 : (REAL)-1) + epsilon * held;
            const REAL next = margin >= 0 ? written : held;
            s[i] = margin == margin ? next : margin;
        }
        if (p) {
            EACH(i) p[i] *= ABS(LOAD(c[i])) - LOAD(beta[i]) >= 0 ? epsilon : 1;
        } else {
            EACH(i) out[i] = SAVE(s[i]);
        }
    }
}

/* Both sides of each choice are computed, so that the loop vectorises. */
INLINE void NAME(memory_loop_back)(
    int64_t n, const STORE *restrict g, const STORE *restrict c, const STORE *restrict beta, const STORE *restrict stored,
    const REAL *restrict wide, STORE *restrict dc, STORE *restrict dbeta, REAL *restrict carried, REAL epsilon, REAL k) {
    const REAL pi_k = (REAL)3.14159265358979323846 * k;
    EACH(i) {
        const REAL drive = LOAD(c[i]), margin = ABS(drive) - LOAD(beta[i]), lam = carried[i] + LOAD(g[i]);
        const REAL before = wide ? wide[i] : LOAD(stored[i]);
        const REAL sign = drive >= 0 ? (REAL)1 : (REAL)-1, x = pi_k * margin, y = pi_k * drive;
        const REAL through_write = lam * (sign + (epsilon - 1) * before) * (k / (1 + x * x));
        const REAL through_sign = lam * (2 * k / (1 + y * y)), kept = epsilon * lam;
        dc[i] = SAVE((margin >= 0 ? through_sign : 0) + through_write * sign);
        dbeta[i] = SAVE(-through_write);
        carried[i] = margin >= 0 ? kept : lam;
    }
}

APART void NAME(memory_step_back)(
    int64_t n, const STORE *restrict g, const STORE *restrict c, const STORE *restrict beta, NAME(before) s,
    STORE *restrict dc, STORE *restrict dbeta, REAL *restrict carried, REAL epsilon, REAL k) {
    if (s.wide) NAME(memory_loop_back)(n, g, c, beta, 0, s.wide, dc, dbeta, carried, epsilon, k);
    else NAME(memory_loop_back)(n, g, c, beta, s.stored, 0, dc, dbeta, carried, epsilon, k);
}

/* in: gradient of the states, c, beta, states. out: gradients of c and beta. initial: s_0. channel: the state that a reset
 * brings back; sums: its gradient. */
static void NAME(memory_backward)(const Job *job, const Piece *piece, void *carry, void *product, double *sums) {
    FLAGS;
    REAL *restrict carried = carry, *restrict p = product, room[BLOCK];
    const REAL *restrict fresh = CHANNEL(0);
    const REAL epsilon = (REAL)job->epsilon, k = (REAL)job->slope;
    for (int64_t t = piece->end - 1; t >= piece->begin; t--) {
        const STORE *restrict g = AT(job->in[0], t), *restrict c = AT(job->in[1], t), *restrict beta = AT(job->in[2], t);
        STORE *restrict dc = p ? 0 : AT(job->out[0], t), *restrict dbeta = p ? 0 : AT(job->out[1], t);
        if (HOLDS(t)) {
            EACH(i) carried[i] += LOAD(g[i]);
            if (!p) EACH(i) dc[i] = SAVE((REAL)0), dbeta[i] = SAVE((REAL)0);
            continue;
        }
        if (p) {
            EACH(i) {
                const REAL kept = ABS(LOAD(c[i])) - LOAD(beta[i]) >= 0 ? epsilon : 1;
                carried[i] = kept * (carried[i] + LOAD(g[i]));
                p[i] *= kept;
            }
            if (RESETS(t)) EACH(i) carried[i] = 0, p[i] = 0;
            continue;
        }
        NAME(before) s = {0, room};
        if (!RESETS(t)) s = NAME(before_step)(job, piece, job->in[3], 0, t, room);
        else if (fresh) s.wide = fresh;
        else EACH(i) room[i] = 0;
        NAME(memory_step_back)(n, g, c, beta, s, dc, dbeta, carried, epsilon, k);
        if (RESETS(t)) {
            if (sums) EACH(i) sums[i] += carried[i];
            EACH(i) carried[i] = 0;
        }
    }
}

#undef EACH
#undef AT
#undef HOLDS
#undef RESETS
#undef FLAGS
#undef CHANNEL
#undef INITIAL
#undef INLINE
#undef APART
