/* This file owns the CPU's rotary embedding. */
#include <math.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

struct table_job {
    float *cos_table, *sin_table;
    const int32_t *positions;
    double theta;
    int n, D;
};

static void run_table(void *arg, int part, int member)
{
    (void)member;
    const struct table_job *j = arg;
    int half = j->D / 2, grain = tpo_row_grain(half, 512);
    int64_t end = tpo_min64(j->n, (int64_t)(part + 1) * grain);
    for (int i = 0; i < half; i++) {
        double rate = pow(j->theta, -2.0 * i / j->D);
        for (int64_t m = (int64_t)part * grain; m < end; m++) {
            double angle = j->positions[m] * rate;
            j->cos_table[m * half + i] = (float)cos(angle);
            j->sin_table[m * half + i] = (float)sin(angle);
        }
    }
}

int tpo_rope_table_cpu(struct tpo_stream *s, float *cos_table, float *sin_table, const int32_t *positions, double theta, int n,
                       int D)
{
    if (n < 1 || D < 2 || D % 2 != 0) return TPO_EINVAL;
    struct table_job j = {cos_table, sin_table, positions, theta, n, D};
    tpo_team_run(s->team, run_table, &j, tpo_parts(n, tpo_row_grain(D / 2, 512)));
    return TPO_OK;
}

struct rope_job {
    float *x;
    const float *cos_table, *sin_table;
    int ld, inverse, M, H, D;
};

static void run_rope(void *arg, int part, int member)
{
    (void)member;
    const struct rope_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int half = j->D / 2, grain = tpo_row_grain((int64_t)j->H * j->D, TPO_GRAIN);
    int64_t end = tpo_min64(j->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++)
        for (int h = 0; h < j->H; h++)
            v->rotate(j->x + m * j->ld + h * j->D, j->cos_table + m * half, j->sin_table + m * half, j->inverse ? -1.0f : 1.0f,
                      half);
}

int tpo_rope_cpu(struct tpo_stream *s, float *x, int ld, const float *cos_table, const float *sin_table, int inverse, int M, int H,
                 int D)
{
    if (M < 1 || H < 1 || D < 2 || D % 2 != 0 || ld < H * D) return TPO_EINVAL;
    struct rope_job j = {x, cos_table, sin_table, ld, inverse, M, H, D};
    tpo_team_run(s->team, run_rope, &j, tpo_parts(M, tpo_row_grain((int64_t)H * D, TPO_GRAIN)));
    return TPO_OK;
}
