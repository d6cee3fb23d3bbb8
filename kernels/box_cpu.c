/* This file owns the CPU's box loss. Few rows, one thread. */
#include "kernels/box_math.h"
#include "kernels/cpu.h"

int tpo_box_loss_cpu(struct tpo_stream *s, float *out, float *giou, const float *p, const float *g, int n)
{
    (void)s;
    if (n < 1) return TPO_EINVAL;
    tpo_box_rows(out, giou, p, g, n);
    return TPO_OK;
}

int tpo_box_loss_grad_cpu(struct tpo_stream *s, float *dp, const float *p, const float *g, float up_l1, float up_giou, int n)
{
    (void)s;
    if (n < 1) return TPO_EINVAL;
    tpo_box_rows_grad(dp, p, g, up_l1, up_giou, n);
    return TPO_OK;
}
