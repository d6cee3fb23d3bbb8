/* This file owns products of few rows: one pass over the weights, every row summed alike. */
#include "kernels/cpu.h"
#include "kernels/simd.h"

#define PART_BYTES (512 << 10) /* of w, about */
#define PARTS      16          /* at least so many where there are outputs enough, so that a team has work where rows are short */

struct matvec {
    float *y;
    const float *x, *bias;
    struct tpo_weight w;
    int ldy, ldx, add, M, N, K, grain; /* grain: outputs of one part */
};

/* A multiple of 8, as so many rows of w may go side by side. With more rows of x a part takes longer. */
static int grain_of(int dtype, int M, int N, int K)
{
    const int64_t row_bytes = (int64_t)K * (dtype == TPO_BF16 ? 2 : 4);
    const int64_t rows = tpo_min64(PART_BYTES / (M > 1 ? 4 : 1) / row_bytes, N / PARTS) / 8 * 8;
    return rows < 8 ? 8 : (int)rows;
}

static void run_matvec(void *arg, int part, int member)
{
    (void)member;
    const struct matvec *v = arg;
    int n = part * v->grain, cols = (int)tpo_min64(v->N - n, v->grain);
    const float *bias = v->bias != NULL ? v->bias + n : NULL;
    int64_t at = (int64_t)n * v->K;
    if (v->w.dtype == TPO_BF16)
        tpo_simd()->dots_half(v->y + n, v->ldy, v->x, v->ldx, (const uint16_t *)v->w.data + at, v->K, bias, v->add, v->M, cols,
                              v->K);
    else
        tpo_simd()->dots(v->y + n, v->ldy, v->x, v->ldx, (const float *)v->w.data + at, v->K, bias, v->add, v->M, cols, v->K);
}

int tpo_matvec_cpu(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias,
                   int add, int M, int N, int K)
{
    if (M < 1 || M > TPO_MATVEC_ROWS || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    struct matvec v = {y, x, bias, w, ldy, ldx, add, M, N, K, grain_of(w.dtype, M, N, K)};
    if (w.dtype == TPO_BF16) {
        float *paired = tpo_cpu_turned(s, (size_t)M * (size_t)K * sizeof(*paired));
        if (paired == NULL) return TPO_ENOMEM;
        for (int m = 0; m < M; m++) tpo_simd()->pair_up(paired + (int64_t)m * K, x + (int64_t)m * ldx, K);
        v.x = paired, v.ldx = K;
    }
    tpo_team_run(s->team, run_matvec, &v, tpo_parts(N, v.grain));
    return TPO_OK;
}
