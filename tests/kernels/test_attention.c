/* Attention against f64 loops, gradients against finite differences: odd sizes, shared heads, ragged and wholly masked rows, large scores;
 * paged equals contiguous; the same bits for every team and every company. */
#include "kernels/simd.h"
#include "kernels/team.h"
#include "kernels/vector.h"
#include "tests/kernels/check.h"

struct setting {
    int B, T, S, H, G, D, causal, ragged, segmented, slack;
    float spread, shift; /* of q and k */
};

static const struct setting small[] = {
    {1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0},      {1, 1, 31, 1, 1, 33, 0, 0, 0, 1, 1, 0}, {2, 3, 33, 2, 1, 8, 1, 0, 0, 0, 1, 0},
    {2, 7, 7, 2, 2, 5, 1, 1, 1, 3, 1, 0},      {3, 9, 17, 4, 2, 4, 0, 1, 0, 0, 2, 0},  {1, 40, 40, 1, 1, 4, 1, 0, 1, 0, 1, 0},
    {2, 5, 3, 1, 1, 4, 1, 0, 0, 0, 1, 0},      {1, 18, 70, 1, 1, 3, 0, 1, 1, 2, 1, 0}, {1, 6, 20, 2, 1, 16, 0, 0, 0, 0, 10, 0},
    {1, 3, 35, 3, 1, 31, 0, 0, 0, 0, 0.3f, 0},
};
#define N_SMALL (sizeof(small) / sizeof(small[0]))

static const struct setting wide[] = {{2, 300, 300, 4, 4, 32, 1, 1, 1, 0, 1, 0},  {1, 65, 290, 4, 2, 64, 1, 0, 0, 5, 1, 0},
                                      {1, 130, 257, 2, 1, 128, 0, 0, 0, 0, 1, 0}, {1, 33, 100, 1, 1, 255, 0, 0, 1, 0, 1, 0},
                                      {1, 33, 100, 1, 1, 256, 0, 0, 1, 0, 1, 0},  {2, 64, 64, 4, 4, 32, 0, 0, 0, 256, 1, 0}};
#define N_WIDE (sizeof(wide) / sizeof(wide[0]))

static const struct setting *forward_case(size_t i)
{
    return i < N_SMALL ? &small[i] : &wide[i - N_SMALL];
}

struct problem {
    struct tpo_attention_shape p;
    int64_t nq, nk, nv, no, nl;
    float *q, *k, *v, *r; /* the loss is sum r out */
    int32_t *key_len, *segments;
};

static struct problem make(const struct setting *a)
{
    struct problem m = {.p = {a->B, a->T, a->S, a->H, a->G, a->D, a->H * a->D + a->slack, a->G * a->D + 2 * a->slack,
                              a->G * a->D + 3 * a->slack, a->H * a->D + a->slack, 1.0f / sqrtf((float)a->D), a->causal, NULL,
                              NULL}};
    m.nq = (int64_t)a->B * a->T * m.p.ldq, m.nk = (int64_t)a->B * a->S * m.p.ldk, m.nv = (int64_t)a->B * a->S * m.p.ldv;
    m.no = (int64_t)a->B * a->T * m.p.ldo, m.nl = (int64_t)a->B * a->T * a->H;
    m.q = check_numbers("q", m.nq, a->spread, 0), m.k = check_numbers("k", m.nk, a->spread, a->shift);
    m.v = check_numbers("v", m.nv, 1, a->shift), m.r = check_numbers("r", m.no, 1, 0);
    m.key_len = check_alloc((size_t)a->B, sizeof(int32_t)), m.segments = check_alloc((size_t)(a->B * a->S), sizeof(int32_t));
    for (int b = 0; b < a->B; b++) m.key_len[b] = (int)(tpo_random_u64(tpo_test_seed(), (uint64_t)b) % (uint64_t)(a->S + 1));
    m.key_len[a->B - 1] = a->B > 2 ? -3 : a->B > 1 ? 0 : a->S; /* one sample sees nothing at all */
    for (int b = 0; b < a->B; b++)
        for (int s = 0; s < a->S; s++) m.segments[b * a->S + s] = s < a->S / 3 ? 0 : 1 + (s - a->S / 3) / 5;
    if (a->ragged) m.p.key_len = m.key_len;
    if (a->segmented) m.p.segments = m.segments;
    return m;
}

static void unmake(struct problem *m)
{
    free(m->q), free(m->k), free(m->v), free(m->r), free(m->key_len), free(m->segments);
}

static int visible(const struct tpo_attention_shape *p, int b, int t, int s)
{
    int at = t + p->S - p->T;
    if (p->key_len != NULL && s >= p->key_len[b]) return 0;
    if (p->causal && s > at) return 0;
    if (p->segments == NULL || p->segments[b * p->S + s] == 0) return 1;
    return at >= 0 && at < p->S && p->segments[b * p->S + s] == p->segments[b * p->S + at];
}

/* weights of one row into w (S); the row's log-sum-exp */
static double weigh(double *w, const struct tpo_attention_shape *p, const double *q, const double *k, int b, int t, int h)
{
    double top = -INFINITY, sum = 0.0;
    for (int s = 0; s < p->S; s++) {
        w[s] = visible(p, b, t, s) ? 0.0 : -INFINITY;
        for (int i = 0; i < p->D; i++)
            w[s] += p->scale * q[((int64_t)b * p->T + t) * p->ldq + h * p->D + i] *
                    k[((int64_t)b * p->S + s) * p->ldk + h / (p->H / p->G) * p->D + i];
        top = fmax(top, w[s]);
    }
    for (int s = 0; s < p->S && top != -INFINITY; s++) sum += exp(w[s] - top);
    for (int s = 0; s < p->S; s++) w[s] = top != -INFINITY ? exp(w[s] - top) / sum : 0.0;
    return top != -INFINITY ? top + log(sum) : -INFINITY;
}

static void reference(double *out, double *lse, const double *all, const struct problem *m)
{
    const struct tpo_attention_shape *p = &m->p;
    const double *q = all, *k = q + m->nq, *v = k + m->nk;
    double *w = check_doubles(NULL, p->S);
    for (int b = 0; b < p->B; b++)
        for (int t = 0; t < p->T; t++)
            for (int h = 0; h < p->H; h++) {
                int64_t row = (int64_t)b * p->T + t;
                double l = weigh(w, p, q, k, b, t, h);
                if (lse != NULL) lse[row * p->H + h] = l;
                for (int i = 0; i < p->D; i++) {
                    double sum = 0.0;
                    for (int s = 0; s < p->S; s++) sum += w[s] * v[((int64_t)b * p->S + s) * p->ldv + h / (p->H / p->G) * p->D + i];
                    out[row * p->ldo + h * p->D + i] = sum;
                }
            }
    free(w);
}

static double loss(const double *all, void *arg)
{
    const struct problem *m = arg;
    double *out = check_doubles(NULL, m->no), sum;
    reference(out, NULL, all, m);
    sum = check_dot(m->r, out, m->no);
    free(out);
    return sum;
}

static double *join(const struct problem *m)
{
    double *all = check_doubles(NULL, m->nq + m->nk + m->nv);
    for (int64_t i = 0; i < m->nq; i++) all[i] = m->q[i];
    for (int64_t i = 0; i < m->nk; i++) all[m->nq + i] = m->k[i];
    for (int64_t i = 0; i < m->nv; i++) all[m->nq + m->nk + i] = m->v[i];
    return all;
}

static void check_forward(struct tpo_stream *s, const struct problem *m, double tolerance)
{
    double *all = join(m), *want = check_doubles(NULL, m->no), *want_lse = check_doubles(NULL, m->nl);
    float *out = check_zeros(m->no), *lse = check_zeros(m->nl);
    reference(want, want_lse, all, m);
    assert_int_equal(tpo_attention(s, out, lse, m->q, m->k, m->v, &m->p), TPO_OK);
    check_near("out", out, want, m->no, tolerance);
    for (int64_t i = 0; i < m->nl; i++) {
        if (want_lse[i] == -INFINITY) {
            assert_true(lse[i] == -INFINITY);
            lse[i] = 0.0f, want_lse[i] = 0.0;
        }
    }
    check_near("lse", lse, want_lse, m->nl, tolerance);
    assert_int_equal(tpo_attention(s, out, NULL, m->q, m->k, m->v, &m->p), TPO_OK);
    check_near("out without lse", out, want, m->no, tolerance);
    free(all), free(want), free(want_lse), free(out), free(lse);
}

static void check_gradients(struct tpo_stream *s, struct problem *m, double tolerance)
{
    int64_t n = m->nq + m->nk + m->nv;
    double *all = join(m), *want = check_doubles(NULL, n);
    float *out = check_zeros(m->no), *lse = check_zeros(m->nl), *before = check_numbers("before", n, 1, 0),
          *grads = check_copy(before, n);
    check_differences(want, all, n, loss, m);
    assert_int_equal(tpo_attention(s, out, lse, m->q, m->k, m->v, &m->p), TPO_OK);
    assert_int_equal(tpo_attention_grad(s, grads, grads + m->nq, grads + m->nq + m->nk, m->r, out, lse, m->q, m->k, m->v, 1, &m->p),
                     TPO_OK);
    for (int64_t i = 0; i < n; i++) grads[i] -= before[i];
    check_near("dq added", grads, want, m->nq, tolerance);
    check_near("dk added", grads + m->nq, want + m->nq, m->nk, tolerance);
    check_near("dv added", grads + m->nq + m->nk, want + m->nq + m->nk, m->nv, tolerance);
    memset(grads, 0, (size_t)n * sizeof(*grads)); /* the gaps between rows are not the kernel's */
    assert_int_equal(tpo_attention_grad(s, grads, grads + m->nq, grads + m->nq + m->nk, m->r, out, lse, m->q, m->k, m->v, 0, &m->p),
                     TPO_OK);
    check_near("dq", grads, want, m->nq, tolerance);
    check_near("dk", grads + m->nq, want + m->nq, m->nk, tolerance);
    check_near("dv", grads + m->nq + m->nk, want + m->nq + m->nk, m->nv, tolerance);
    free(all), free(want), free(out), free(lse), free(before), free(grads);
}

static void outputs_equal_f64(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < N_SMALL + N_WIDE; i++) {
        struct problem m = make(forward_case(i));
        check_forward(s, &m,
                      1e-5 * m.p.scale * (i < N_SMALL ? small[i].spread * small[i].spread : 1) + 1e-5); /* of scores that large */
        unmake(&m);
    }
    tpo_stream_close(s);
}

/* x as a stream that rounds may see it. */
static void round_all(struct tpo_stream *s, float *x, int64_t n)
{
    uint16_t *half = check_alloc((size_t)n, sizeof(*half));
    assert_int_equal(tpo_f32_to_bf16(s, half, x, n), TPO_OK);
    assert_int_equal(tpo_bf16_to_f32(s, x, half, n), TPO_OK);
    free(half);
}

/* Of rounded operands scores are what they are in f32; what remains is the rounding of the weights. */
static void rounded_outputs_are_near(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    tpo_stream_let_round(s);
    for (size_t i = 0; i < N_SMALL + N_WIDE; i++) {
        struct problem m = make(forward_case(i));
        round_all(s, m.q, m.nq), round_all(s, m.k, m.nk), round_all(s, m.v, m.nv);
        double *all = join(&m), *want = check_doubles(NULL, m.no), *want_lse = check_doubles(NULL, m.nl);
        float *out = check_zeros(m.no), *lse = check_zeros(m.nl), *alone = check_zeros(m.no);
        reference(want, want_lse, all, &m);
        assert_int_equal(tpo_attention(s, out, lse, m.q, m.k, m.v, &m.p), TPO_OK);
        check_near("rounded out", out, want, m.no, 0.005);
        for (int64_t k = 0; k < m.nl; k++)
            assert_true(want_lse[k] == -INFINITY ? lse[k] == -INFINITY
                                                 : fabs(lse[k] - want_lse[k]) <= 2e-5 * (1 + fabs(want_lse[k])));
        struct tpo_attention_shape last = m.p; /* the last query alone has the bits it has in company */
        last.T = 1;
        assert_int_equal(tpo_attention(s, alone, NULL, m.q + (int64_t)(m.p.T - 1) * m.p.ldq, m.k, m.v, &last), TPO_OK);
        if (m.p.B == 1)
            check_same_bits("the last row", out + (int64_t)(m.p.T - 1) * m.p.ldo, alone, (size_t)(m.p.H * m.p.D) * sizeof(float));
        if (s->rounds && i >= N_SMALL && m.p.key_len == NULL) { /* it does round: without, the bits are others */
            s->rounds = false;
            assert_int_equal(tpo_attention(s, alone, NULL, m.q, m.k, m.v, &m.p), TPO_OK);
            assert_memory_not_equal(alone, out, (size_t)m.no * sizeof(float));
            tpo_stream_let_round(s);
        }
        free(all), free(want), free(want_lse), free(out), free(lse), free(alone);
        unmake(&m);
    }
    tpo_stream_close(s);
}

static void gradients_equal_differences(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < N_SMALL; i++) {
        struct problem m = make(&small[i]);
        check_gradients(s, &m, 5e-5);
        unmake(&m);
    }
    tpo_stream_close(s);
}

/* Gradients of large problems against the plain f64 formula, which the differences above have proven on small ones by way of the kernel. */
static void large_gradients_equal_f64(void **state)
{
    (void)state;
    static const struct setting large[] = {{2, 150, 150, 4, 4, 32, 1, 1, 1, 0, 1, 0},
                                           {1, 70, 133, 4, 2, 64, 0, 0, 0, 7, 1, 0},
                                           {1, 66, 80, 2, 1, 128, 1, 0, 0, 0, 1, 0},
                                           {1, 30, 300, 2, 1, 32, 0, 0, 0, 0, 1, 0}, /* more keys than are walked at a time */
                                           {1, 60, 520, 2, 2, 16, 0, 0, 0, 1, 1, 0}};
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < 5; i++) {
        struct problem m = make(&large[i]);
        const struct tpo_attention_shape *p = &m.p;
        int64_t n = m.nq + m.nk + m.nv;
        double *all = join(&m), *want = check_doubles(NULL, n), *w = check_doubles(NULL, p->S), *dw = check_doubles(NULL, p->S);
        double *q = all, *k = q + m.nq, *v = k + m.nk, *dq = want, *dk = dq + m.nq, *dv = dk + m.nk;
        for (int row = 0; row < p->B * p->T * p->H; row++) {
            int h = row % p->H, t = row / p->H % p->T, b = row / p->H / p->T, g = h / (p->H / p->G) * p->D;
            int64_t at = ((int64_t)b * p->T + t) * p->ldq + h * p->D, out = ((int64_t)b * p->T + t) * p->ldo + h * p->D;
            double mean = 0.0;
            weigh(w, p, q, k, b, t, h);
            for (int j = 0; j < p->S; j++) {
                dw[j] = 0.0;
                for (int c = 0; c < p->D; c++) dw[j] += m.r[out + c] * v[((int64_t)b * p->S + j) * p->ldv + g + c];
                mean += w[j] * dw[j];
            }
            for (int j = 0; j < p->S; j++)
                for (int c = 0; c < p->D; c++) {
                    int64_t key = ((int64_t)b * p->S + j) * p->ldk + g + c;
                    dv[((int64_t)b * p->S + j) * p->ldv + g + c] += w[j] * m.r[out + c];
                    dq[at + c] += p->scale * w[j] * (dw[j] - mean) * k[key];
                    dk[key] += p->scale * w[j] * (dw[j] - mean) * q[at + c];
                }
        }
        float *o = check_zeros(m.no), *lse = check_zeros(m.nl), *grads = check_zeros(n);
        assert_int_equal(tpo_attention(s, o, lse, m.q, m.k, m.v, p), TPO_OK);
        assert_int_equal(tpo_attention_grad(s, grads, grads + m.nq, grads + m.nq + m.nk, m.r, o, lse, m.q, m.k, m.v, 0, p), TPO_OK);
        check_near("dq", grads, dq, m.nq, 2e-5);
        check_near("dk", grads + m.nq, dk, m.nk, 2e-5);
        check_near("dv", grads + m.nq + m.nk, dv, m.nv, 2e-5);
        free(all), free(want), free(w), free(dw), free(o), free(lse), free(grads);
        unmake(&m);
    }
    tpo_stream_close(s);
}

/* Keys and values near 1000 move every score by the same large number; scores of thousands make one key take all. The gradient of q is a
 * difference of such keys and no f32 code has it, so that keys are moved back before gradients. */
static void large_values_stay_right(void **state)
{
    (void)state;
    static const struct setting large[] = {{1, 5, 33, 2, 1, 8, 0, 0, 0, 0, 1, 1000}, {1, 4, 31, 1, 1, 8, 1, 0, 0, 0, 40, 0}};
    struct tpo_stream *s = check_stream(1);
    for (size_t i = 0; i < 2; i++) {
        struct problem m = make(&large[i]);
        check_forward(s, &m, 2e-3);
        for (int64_t j = 0; j < m.nk; j++) m.k[j] -= large[i].shift;
        check_gradients(s, &m, 2e-2);
        unmake(&m);
    }
    tpo_stream_close(s);
}

/* Where a step has gone wrong it must be seen: a row of NaN (here that of a GPU, all ones) is one, as over paged keys, and the others are not. */
static void not_a_number_stays_one(void **state)
{
    (void)state;
    static const struct setting whole = {1, 9, 300, 2, 1, 32, 0, 0, 0, 0, 1, 0};
    const uint32_t ones = 0x7fffffff;
    struct tpo_stream *s = check_stream(1);
    struct problem m = make(&whole);
    float *out = check_zeros(m.no), *lse = check_zeros(m.nl);
    for (int i = 0; i < 32; i++) memcpy(m.q + 4 * m.p.ldq + i, &ones, sizeof(ones)); /* query 4, head 0 */
    for (int rounds = 0; rounds <= 1; rounds++) {
        if (rounds) tpo_stream_let_round(s);
        assert_int_equal(tpo_attention(s, out, lse, m.q, m.k, m.v, &m.p), TPO_OK);
        for (int64_t i = 0; i < m.no; i++) assert_int_equal(isnan(out[i]) != 0, i / m.p.ldo == 4 && i % m.p.ldo < 32);
        for (int i = 0; i < 18; i++) assert_int_equal(isnan(lse[i]) != 0, i == 8);
    }
    free(out), free(lse);
    unmake(&m);
    tpo_stream_close(s);
}

static void check_own_keys(bool rounds)
{
    static const struct setting whole = {3, 150, 150, 4, 2, 32, 1, 0, 0, 0, 1, 0};
    struct tpo_stream *one = check_stream(1), *three = check_stream(3);
    if (rounds) tpo_stream_let_round(one), tpo_stream_let_round(three);
    struct problem m = make(&whole);
    int64_t n = m.nq + m.nk + m.nv;
    float *oa = check_zeros(m.no), *ob = check_zeros(m.no), *la = check_zeros(m.nl), *lb = check_zeros(m.nl), *ga = check_zeros(n),
          *gb = check_zeros(n);
    tpo_attention(one, oa, la, m.q, m.k, m.v, &m.p);
    tpo_attention(three, ob, lb, m.q, m.k, m.v, &m.p);
    check_same_bits("out", oa, ob, (size_t)m.no * sizeof(float));
    check_same_bits("lse", la, lb, (size_t)m.nl * sizeof(float));
    tpo_attention_grad(one, ga, ga + m.nq, ga + m.nq + m.nk, m.r, oa, la, m.q, m.k, m.v, 0, &m.p);
    tpo_attention_grad(three, gb, gb + m.nq, gb + m.nq + m.nk, m.r, oa, la, m.q, m.k, m.v, 0, &m.p);
    check_same_bits("gradients", ga, gb, (size_t)n * sizeof(float));
    /* one sample alone, and its last 7 queries alone */
    struct tpo_attention_shape p = m.p;
    p.B = 1;
    tpo_attention(one, ob, NULL, m.q + m.nq / 3, m.k + m.nk / 3, m.v + m.nv / 3, &p);
    check_same_bits("one sample", ob, oa + m.no / 3, (size_t)m.no / 3 * sizeof(float));
    p.T = 7;
    tpo_attention(one, ob, NULL, m.q + (int64_t)143 * p.ldq, m.k, m.v, &p);
    check_same_bits("last queries", ob, oa + (int64_t)143 * p.ldo, (size_t)7 * p.ldo * sizeof(float));
    free(oa), free(ob), free(la), free(lb), free(ga), free(gb);
    unmake(&m);
    tpo_stream_close(one), tpo_stream_close(three);
}

static void bits_depend_on_own_keys_alone(void **state)
{
    (void)state;
    check_own_keys(false);
    check_own_keys(true);
}

/* --- single rows --- */

struct single {
    struct problem m;
    int n;
    int32_t *rows;
    float *target, *weight;
};

static double single_loss(const double *all, void *arg)
{
    struct single *r = arg;
    const struct tpo_attention_shape *p = &r->m.p;
    double *w = check_doubles(NULL, p->S), sum = 0.0;
    for (int i = 0; i < r->n; i++) {
        weigh(w, p, all, all + r->m.nq, r->rows[3 * i], r->rows[3 * i + 1], r->rows[3 * i + 2]);
        for (int s = 0; s < p->S; s++)
            if (w[s] > 0.0) sum -= r->weight[i] * r->target[(int64_t)i * p->S + s] * log(w[s]);
    }
    free(w);
    return sum;
}

static void row_losses_equal_differences(void **state)
{
    (void)state;
    static const struct setting settings[] = {
        {2, 5, 9, 4, 2, 6, 1, 0, 0, 2, 1, 0}, {1, 3, 33, 2, 2, 32, 0, 0, 1, 0, 1, 0}, {2, 4, 31, 1, 1, 3, 1, 1, 1, 0, 1, 0}};
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < 3; i++) {
        struct single r = {.m = make(&settings[i]), .n = 7};
        const struct tpo_attention_shape *p = &r.m.p;
        int32_t rows[21];
        r.rows = rows;
        r.target = check_zeros((int64_t)r.n * p->S), r.weight = check_numbers("weight", r.n, 1, 0);
        for (int j = 0; j < r.n; j++) { /* the last two share row and keys */
            rows[3 * j] = j % p->B, rows[3 * j + 1] = j < 5 ? j % p->T : p->T - 1, rows[3 * j + 2] = j < 5 ? j % p->H : 0;
            if (j >= 5) rows[3 * j] = 0;
            int seen = 0;
            for (int k = 0; k < p->S; k++) seen += visible(p, rows[3 * j], rows[3 * j + 1], k);
            for (int k = 0; k < p->S; k++)
                r.target[(int64_t)j * p->S + k] = visible(p, rows[3 * j], rows[3 * j + 1], k) ? 1.0f / (float)seen : 0.0f;
        }
        int64_t n = r.m.nq + r.m.nk;
        double *all = join(&r.m), *want = check_doubles(NULL, n), total = 0.0;
        float *got = check_zeros(r.n), *grads = check_zeros(n);
        assert_int_equal(tpo_attention_rows(s, got, r.m.q, r.m.k, rows, r.target, r.weight, r.n, p), TPO_OK);
        for (int j = 0; j < r.n; j++) total += got[j];
        assert_true(fabs(total - single_loss(all, &r)) < 1e-4);
        check_differences(want, all, n, single_loss, &r);
        for (int64_t j = 0; j < n; j++) want[j] *= 0.5;
        assert_int_equal(tpo_attention_rows_grad(s, grads, grads + r.m.nq, 0.5f, r.m.q, r.m.k, rows, r.target, r.weight, r.n, p),
                         TPO_OK);
        check_near("dq", grads, want, r.m.nq, 5e-5);
        check_near("dk", grads + r.m.nq, want + r.m.nq, r.m.nk, 5e-5);
        rows[1] = p->T;
        assert_int_equal(tpo_attention_rows(s, got, r.m.q, r.m.k, rows, r.target, r.weight, r.n, p), TPO_EINVAL);
        free(all), free(want), free(got), free(grads), free(r.target), free(r.weight);
        unmake(&r.m);
    }
    tpo_stream_close(s);
}

/* --- paged --- */

static void paged_equals_contiguous(void **state)
{
    (void)state;
    static const int sizes[][4] = {{1, 1, 1, 4}, {2, 1, 33, 3}, {4, 2, 32, 16}, {2, 2, 64, 16}, {3, 3, 128, 7}};
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < 5; i++) {
        int H = sizes[i][0], G = sizes[i][1], D = sizes[i][2], block = sizes[i][3], S = 150, max_blocks = (S + block - 1) / block;
        struct setting a = {2, S, S, H, G, D, 1, 0, 0, 0, 1, 0};
        struct problem m = make(&a);
        float *want = check_zeros(m.no), *got = check_zeros(m.no), *pool_k = check_zeros((int64_t)2 * max_blocks * block * G * D);
        float *pool_v = check_zeros((int64_t)2 * max_blocks * block * G * D);
        int32_t *tables = check_alloc((size_t)(2 * max_blocks), 4), *seq = check_alloc((size_t)(2 * S), 4),
                *position = check_alloc((size_t)(2 * S), 4);
        for (int b = 0; b < 2 * max_blocks; b++) tables[b] = 2 * max_blocks - 1 - b;
        for (int row = 0; row < 2 * S; row++) seq[row] = row / S, position[row] = row % S;
        struct tpo_paged_shape p = {2 * S, H, G, D, m.p.ldq, m.p.ldo, block, max_blocks, m.p.scale, seq, position, tables};
        assert_int_equal(tpo_kv_write(s, pool_k, pool_v, m.k, m.p.ldk, m.v, m.p.ldv, &p), TPO_OK);
        tpo_attention(s, want, NULL, m.q, m.k, m.v, &m.p);
        assert_int_equal(tpo_attention_paged(s, got, m.q, pool_k, pool_v, &p), TPO_OK);
        double *exact = check_doubles(want, m.no);
        check_near("paged", got, exact, m.no, 1e-5);
        /* one decode row of each sequence has the bits it had in the prefill */
        int32_t few_seq[2] = {1, 0}, few_position[2] = {S - 1, 17};
        struct tpo_paged_shape few = p;
        few.M = 2, few.seq = few_seq, few.position = few_position;
        float *q = check_zeros(2 * m.p.ldq), *out = check_zeros(2 * m.p.ldo);
        memcpy(q, m.q + (int64_t)(2 * S - 1) * m.p.ldq, (size_t)m.p.ldq * 4),
            memcpy(q + m.p.ldq, m.q + (int64_t)17 * m.p.ldq, (size_t)m.p.ldq * 4);
        assert_int_equal(tpo_attention_paged(s, out, q, pool_k, pool_v, &few), TPO_OK);
        check_same_bits("row of sequence 1", out, got + (int64_t)(2 * S - 1) * m.p.ldo, (size_t)m.p.ldo * 4);
        check_same_bits("row of sequence 0", out + m.p.ldo, got + (int64_t)17 * m.p.ldo, (size_t)m.p.ldo * 4);
        position[0] = max_blocks * block;
        assert_int_equal(tpo_attention_paged(s, got, m.q, pool_k, pool_v, &p), TPO_EINVAL);
        assert_int_equal(tpo_kv_write(s, pool_k, pool_v, m.k, m.p.ldk, m.v, m.p.ldv, &p), TPO_EINVAL);
        free(want), free(got), free(pool_k), free(pool_v), free(tables), free(seq), free(position), free(exact), free(q), free(out);
        unmake(&m);
    }
    tpo_stream_close(s);
}

/* As many as a long prompt of a large model has, more than the parts of a team's job. */
static void a_million_paged_rows(void **state)
{
    (void)state;
    enum { M = 350000, H = 3 };
    struct tpo_stream *s = check_stream(2);
    float *q = check_numbers("q", M * H, 1, 0), *out = check_zeros(M * H), k[H] = {1, 2, 3}, v[H] = {4, 5, 6};
    int32_t *seq = check_alloc(M, sizeof(*seq)), *position = check_alloc(M, sizeof(*position)), table = 0;
    const struct tpo_paged_shape p = {M, H, H, 1, H, H, 1, 1, 1, seq, position, &table};
    assert_true(M * H > TPO_TEAM_PARTS);
    assert_int_equal(tpo_attention_paged(s, out, q, k, v, &p), TPO_OK);
    for (int i = 0; i < M * H; i++) assert_true(out[i] == v[i % H]); /* one key takes all */
    free(q), free(out), free(seq), free(position);
    tpo_stream_close(s);
}

static void impossible_shapes_are_refused(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    float x[64] = {0};
    struct tpo_attention_shape p = {1, 2, 2, 3, 2, 4, 12, 8, 8, 12, 0.5f, 0, NULL, NULL};
    assert_int_equal(tpo_attention(s, x, NULL, x, x, x, &p), TPO_EINVAL); /* 3 heads share 2 */
    p.H = 2, p.D = 257;
    assert_int_equal(tpo_attention(s, x, NULL, x, x, x, &p), TPO_EINVAL);
    p.D = 4, p.T = 0;
    assert_int_equal(tpo_attention_grad(s, x, x, x, x, x, x, x, x, x, 0, &p), TPO_EINVAL);
    struct tpo_paged_shape none = {.M = 0, .H = 1, .G = 1, .D = 4};
    assert_int_equal(tpo_attention_paged(s, x, x, x, x, &none), TPO_EINVAL);
    tpo_stream_close(s);
}

TPO_TESTS(cmocka_unit_test(outputs_equal_f64), cmocka_unit_test(rounded_outputs_are_near),
          cmocka_unit_test(gradients_equal_differences), cmocka_unit_test(large_gradients_equal_f64),
          cmocka_unit_test(large_values_stay_right), cmocka_unit_test(not_a_number_stays_one),
          cmocka_unit_test(bits_depend_on_own_keys_alone), cmocka_unit_test(row_losses_equal_differences),
          cmocka_unit_test(paged_equals_contiguous), cmocka_unit_test(a_million_paged_rows),
          cmocka_unit_test(impossible_shapes_are_refused))
