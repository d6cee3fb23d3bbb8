/* This file owns products of few rows: one pass over the weights, every row summed alike. */
#include "kernels/cpu.h"

#define GRAIN 64 /* outputs of one part */
#define LANES 16 /* partial sums of one dot product */

struct matvec {
    float *y;
    const float *x, *w, *bias;
    int ldy, ldx, add, M, N, K;
};

static float dot(const float *a, const float *b, int n)
{
    float sums[LANES] = {0}, sum = 0.0f;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += a[i + l] * b[i + l];
    for (int l = 0; l < LANES; l++) sum += sums[l];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void run_matvec(void *arg, int part, int member)
{
    (void)member;
    const struct matvec *v = arg;
    int end = (int)tpo_min64(v->N, (int64_t)(part + 1) * GRAIN);
    for (int n = part * GRAIN; n < end; n++) {
        const float *w = v->w + (int64_t)n * v->K;
        for (int m = 0; m < v->M; m++) {
            float sum = dot(v->x + (int64_t)m * v->ldx, w, v->K) + (v->bias != NULL ? v->bias[n] : 0.0f);
            float *y = &v->y[(int64_t)m * v->ldy + n];
            *y = v->add ? *y + sum : sum;
        }
    }
}

int tpo_matvec_cpu(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, const float *w, const float *bias, int add,
                   int M, int N, int K)
{
    if (M < 1 || M > TPO_MATVEC_ROWS || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    struct matvec v = {y, x, w, bias, ldy, ldx, add, M, N, K};
    tpo_team_run(s->team, run_matvec, &v, tpo_parts(N, GRAIN));
    return TPO_OK;
}
