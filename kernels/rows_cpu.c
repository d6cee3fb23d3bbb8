/* This file owns the CPU's row moves. */
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

struct rows_job {
    float *y;
    const float *x;
    const int32_t *index;
    int add, M, C, period;
};

static int indices_fit(const int32_t *index, int M, int n_rows)
{
    for (int m = 0; m < M; m++)
        if (index[m] >= n_rows) return 0;
    return 1;
}

static void run_gather(void *arg, int part, int member)
{
    (void)member;
    const struct rows_job *j = arg;
    int grain = tpo_row_grain(j->C, TPO_GRAIN);
    int64_t end = tpo_min64(j->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++)
        if (j->index[m] >= 0) memcpy(j->y + m * j->C, j->x + (int64_t)j->index[m] * j->C, (size_t)j->C * sizeof(float));
}

int tpo_rows_gather_cpu(struct tpo_stream *s, float *y, const float *table, const int32_t *index, int M, int C, int n_rows)
{
    if (M < 1 || C < 1 || n_rows < 1 || !indices_fit(index, M, n_rows)) return TPO_EINVAL;
    struct rows_job j = {.y = y, .x = table, .index = index, .M = M, .C = C};
    tpo_team_run(s->team, run_gather, &j, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}

/* A part is some columns of every row, because two rows may go to one place. */
static void run_scatter(void *arg, int part, int member)
{
    (void)member;
    const struct rows_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int c0 = part * TPO_COLUMNS, cols = (int)tpo_min64(TPO_COLUMNS, j->C - c0);
    for (int m = 0; m < j->M; m++) {
        if (j->index[m] < 0) continue;
        float *y = j->y + (int64_t)j->index[m] * j->C + c0;
        const float *x = j->x + (int64_t)m * j->C + c0;
        if (j->add)
            v->add(y, y, x, cols);
        else
            memcpy(y, x, (size_t)cols * sizeof(*y));
    }
}

int tpo_rows_scatter_cpu(struct tpo_stream *s, float *table, const float *x, const int32_t *index, int add, int M, int C,
                         int n_rows)
{
    if (M < 1 || C < 1 || n_rows < 1 || !indices_fit(index, M, n_rows)) return TPO_EINVAL;
    struct rows_job j = {.y = table, .x = x, .index = index, .add = add, .M = M, .C = C};
    tpo_team_run(s->team, run_scatter, &j, tpo_parts(C, TPO_COLUMNS));
    return TPO_OK;
}

static void run_add_rows(void *arg, int part, int member)
{
    (void)member;
    const struct rows_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(j->C, TPO_GRAIN);
    int64_t end = tpo_min64(j->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        float *y = j->y + m * j->C;
        const float *x = j->x + m % j->period * j->C;
        v->add(y, y, x, j->C);
    }
}

int tpo_add_rows_cpu(struct tpo_stream *s, float *y, const float *x, int M, int period, int C)
{
    if (M < 1 || C < 1 || period < 1) return TPO_EINVAL;
    struct rows_job j = {.y = y, .x = x, .M = M, .C = C, .period = period};
    tpo_team_run(s->team, run_add_rows, &j, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}

static void run_sum_rows(void *arg, int part, int member)
{
    (void)member;
    const struct rows_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(j->C, TPO_GRAIN / 8);
    int64_t end = tpo_min64(j->period, (int64_t)(part + 1) * grain);
    for (int64_t r = (int64_t)part * grain; r < end; r++) {
        float *y = j->y + r * j->C;
        for (int64_t m = r; m < j->M; m += j->period) {
            const float *x = j->x + m * j->C;
            v->add(y, y, x, j->C);
        }
    }
}

int tpo_sum_rows_cpu(struct tpo_stream *s, float *y, const float *x, int M, int period, int C)
{
    if (M < 1 || C < 1 || period < 1) return TPO_EINVAL;
    struct rows_job j = {.y = y, .x = x, .M = M, .C = C, .period = period};
    tpo_team_run(s->team, run_sum_rows, &j, tpo_parts(period, tpo_row_grain(C, TPO_GRAIN / 8)));
    return TPO_OK;
}

struct patches {
    float *rows;
    const float *pixels;
    int T, H, W, patch, tubelet;
};

/* One part is one row of patches of one tubelet of one sample. */
static void run_patchify(void *arg, int part, int member)
{
    (void)member;
    const struct patches *j = arg;
    int p = j->patch, u = j->tubelet, P = j->H / p, Q = j->W / p;
    int64_t group = part / P, width = (int64_t)3 * u * p * p;
    int y = part % P;
    for (int q = 0; q < Q; q++) {
        float *row = j->rows + ((int64_t)part * Q + q) * width;
        for (int c = 0; c < 3; c++)
            for (int t = 0; t < u; t++)
                for (int i = 0; i < p; i++, row += p)
                    memcpy(row, j->pixels + (((group * u + t) * 3 + c) * j->H + y * p + i) * j->W + q * p,
                           (size_t)p * sizeof(*row));
    }
}

int tpo_patchify_cpu(struct tpo_stream *s, float *rows, const float *pixels, int B, int T, int H, int W, int patch, int tubelet)
{
    if (B < 1 || T < 1 || H < 1 || W < 1 || patch < 1 || tubelet < 1 || H % patch != 0 || W % patch != 0 || T % tubelet != 0)
        return TPO_EINVAL;
    struct patches j = {rows, pixels, T, H, W, patch, tubelet};
    tpo_team_run(s->team, run_patchify, &j, B * (T / tubelet) * (H / patch));
    return TPO_OK;
}
