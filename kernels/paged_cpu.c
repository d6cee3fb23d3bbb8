/* This file owns the CPU's attention over paged keys. */
#include <limits.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

struct paged {
    float *out;
    const float *q, *pool_k, *pool_v;
    const struct tpo_paged_shape *p;
    char *scratch;
    size_t scratch_stride;
    int pairs; /* (row, head) pairs of one part: 1 unless a team's job could not have so many parts */
};

static int shape_ok(const struct tpo_paged_shape *p)
{
    if (p->M < 1 || p->H < 1 || p->G < 1 || p->H % p->G != 0 || p->D < 1 || p->D > 256 || p->block_tokens < 1 || p->max_blocks < 1)
        return 0;
    for (int m = 0; m < p->M; m++)
        if (p->position[m] < 0 || p->position[m] / p->block_tokens >= p->max_blocks || p->seq[m] < 0) return 0;
    return 1;
}

/* Where the pools hold head g of token t of row m's sequence. */
static int64_t place(const struct tpo_paged_shape *p, int m, int t, int g)
{
    int64_t block = p->tables[(int64_t)p->seq[m] * p->max_blocks + t / p->block_tokens];
    return ((block * p->block_tokens + t % p->block_tokens) * p->G + g) * p->D;
}

static void run_pair(const struct paged *f, int pair, int member)
{
    const struct tpo_simd *v = tpo_simd();
    const struct tpo_paged_shape *p = f->p;
    int m = pair / p->H, h = pair % p->H, g = h / (p->H / p->G), n = p->position[m] + 1;
    const float *q = f->q + (int64_t)m * p->ldq + h * p->D;
    float *out = f->out + (int64_t)m * p->ldo + h * p->D, *score = (float *)(f->scratch + f->scratch_stride * (size_t)member);
    for (int t = 0; t < n; t++) score[t] = p->scale * v->dot(q, f->pool_k + place(p, m, t, g), p->D);
    v->exp_scaled(score, score, v->log_sum_exp(score, n), 1.0f, n);
    memset(out, 0, (size_t)p->D * sizeof(*out));
    for (int t = 0; t < n; t++) v->axpy(out, score[t], f->pool_v + place(p, m, t, g), p->D);
}

static void run_paged(void *arg, int part, int member)
{
    const struct paged *f = arg;
    const int first = part * f->pairs, n = f->p->M * f->p->H;
    for (int i = first; i < first + f->pairs && i < n; i++) run_pair(f, i, member);
}

int tpo_attention_paged_cpu(struct tpo_stream *s, float *out, const float *q, const float *pool_k, const float *pool_v,
                            const struct tpo_paged_shape *shape)
{
    if (!shape_ok(shape) || shape->ldq < shape->H * shape->D || shape->ldo < shape->H * shape->D) return TPO_EINVAL;
    const int64_t n = (int64_t)shape->M * shape->H;
    if (n > INT_MAX) return TPO_EINVAL;
    struct paged f = {out, q, pool_k, pool_v, shape, NULL, 0, (int)((n + TPO_TEAM_PARTS - 1) / TPO_TEAM_PARTS)};
    int longest = 0;
    for (int m = 0; m < shape->M; m++) longest = shape->position[m] > longest ? shape->position[m] : longest;
    f.scratch = tpo_cpu_scratch(s, ((size_t)longest + 1) * sizeof(float), &f.scratch_stride);
    if (f.scratch == NULL) return TPO_ENOMEM;
    tpo_team_run(s->team, run_paged, &f, (int)((n + f.pairs - 1) / f.pairs));
    return TPO_OK;
}

int tpo_kv_write_cpu(struct tpo_stream *s, float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv,
                     const struct tpo_paged_shape *shape)
{
    (void)s;
    const struct tpo_paged_shape *p = shape;
    if (!shape_ok(p) || ldk < p->G * p->D || ldv < p->G * p->D) return TPO_EINVAL;
    size_t bytes = (size_t)p->G * (size_t)p->D * sizeof(float);
    for (int m = 0; m < p->M; m++) {
        int64_t at = place(p, m, p->position[m], 0);
        memcpy(pool_k + at, k + (int64_t)m * ldk, bytes);
        memcpy(pool_v + at, v + (int64_t)m * ldv, bytes);
    }
    return TPO_OK;
}
