/* This file owns the CPU's whole-array arithmetic. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

enum kind { ADD, AXPY, SCALE, FILL, DROPOUT, BF16_TO_F32, F16_TO_F32, F32_TO_BF16 };

struct span_job {
    enum kind kind;
    void *y;
    const void *a, *b;
    float alpha;
    uint64_t key;
    int64_t n;
};

static float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return float_of(sign | bits_of((float)fraction * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static void run_span(void *arg, int part, int member)
{
    (void)member;
    const struct span_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int64_t i = (int64_t)part * TPO_GRAIN, n = tpo_min64(j->n - i, TPO_GRAIN);
    switch (j->kind) {
    case ADD:
        v->add((float *)j->y + i, (const float *)j->a + i, (const float *)j->b + i, n);
        break;
    case AXPY:
        v->axpy((float *)j->y + i, j->alpha, (const float *)j->a + i, n);
        break;
    case SCALE:
        v->scale((float *)j->y + i, j->alpha, (const float *)j->a + i, n);
        break;
    case FILL:
        v->fill((float *)j->y + i, j->alpha, n);
        break;
    case DROPOUT:
        v->dropout((float *)j->y + i, (const float *)j->a + i, j->alpha, j->key, (uint64_t)i, n);
        break;
    case BF16_TO_F32:
        v->bf16_to_f32((float *)j->y + i, (const uint16_t *)j->a + i, n);
        break;
    case F16_TO_F32:
        for (int64_t at = i; at < i + n; at++) ((float *)j->y)[at] = half_to_float(((const uint16_t *)j->a)[at]);
        break;
    case F32_TO_BF16:
        v->f32_to_bf16((uint16_t *)j->y + i, (const float *)j->a + i, n);
        break;
    }
}

static int run(struct tpo_stream *s, struct span_job job)
{
    if (job.n < 1 || job.n > (int64_t)TPO_TEAM_PARTS * TPO_GRAIN) return TPO_EINVAL;
    tpo_team_run(s->team, run_span, &job, tpo_parts(job.n, TPO_GRAIN));
    return TPO_OK;
}

int tpo_add_cpu(struct tpo_stream *s, float *y, const float *a, const float *b, int64_t n)
{
    return run(s, (struct span_job){ADD, y, a, b, 0, 0, n});
}

int tpo_axpy_cpu(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n)
{
    return run(s, (struct span_job){AXPY, y, x, NULL, alpha, 0, n});
}

int tpo_scale_cpu(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n)
{
    return run(s, (struct span_job){SCALE, y, x, NULL, alpha, 0, n});
}

int tpo_fill_cpu(struct tpo_stream *s, float *y, float value, int64_t n)
{
    return run(s, (struct span_job){FILL, y, NULL, NULL, value, 0, n});
}

int tpo_dropout_cpu(struct tpo_stream *s, float *y, const float *x, float p, uint64_t key, int64_t n)
{
    if (!(p >= 0.0f && p < 1.0f)) return TPO_EINVAL;
    return run(s, (struct span_job){DROPOUT, y, x, NULL, p, key, n});
}

int tpo_bf16_to_f32_cpu(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n)
{
    return run(s, (struct span_job){BF16_TO_F32, y, x, NULL, 0, 0, n});
}

int tpo_f16_to_f32_cpu(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n)
{
    return run(s, (struct span_job){F16_TO_F32, y, x, NULL, 0, 0, n});
}

int tpo_f32_to_bf16_cpu(struct tpo_stream *s, uint16_t *y, const float *x, int64_t n)
{
    return run(s, (struct span_job){F32_TO_BF16, y, x, NULL, 0, 0, n});
}

/* --- sums: f64 within blocks of 4096, blocks added in order ------------------------------------------------------------------------ */

#define BLOCK 4096

struct sum_job {
    double *blocks;
    const float *x;
    int square;
    int64_t n;
};

static void run_sum(void *arg, int part, int member)
{
    (void)member;
    const struct sum_job *j = arg;
    int64_t i = (int64_t)part * BLOCK;
    j->blocks[part] = tpo_simd()->sum(j->x + i, j->square, tpo_min64(j->n - i, BLOCK));
}

static int run_sums(struct tpo_stream *s, double *out, const float *x, int square, int64_t n)
{
    if (n < 1 || n > (int64_t)TPO_TEAM_PARTS * BLOCK) return TPO_EINVAL;
    int n_blocks = tpo_parts(n, BLOCK);
    double few[64], *blocks = n_blocks <= 64 ? few : malloc((size_t)n_blocks * sizeof(*blocks)), sum = 0.0;
    if (blocks == NULL) return TPO_ENOMEM;
    struct sum_job j = {blocks, x, square, n};
    tpo_team_run(s->team, run_sum, &j, n_blocks);
    for (int b = 0; b < n_blocks; b++) sum += blocks[b];
    if (blocks != few) free(blocks);
    *out = sum;
    return TPO_OK;
}

int tpo_sum_cpu(struct tpo_stream *s, double *out, const float *x, int64_t n)
{
    return run_sums(s, out, x, 0, n);
}

int tpo_sumsq_cpu(struct tpo_stream *s, double *out, const float *x, int64_t n)
{
    return run_sums(s, out, x, 1, n);
}
