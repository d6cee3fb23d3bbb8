/* This file owns the box loss on CUDA. Few rows: one thread walks them, in order. */
#include "kernels/box_math.h"
#include "kernels/cuda.h"

__global__ void box_loss(float *out, float *giou, const float *p, const float *g, int n)
{
    tpo_box_rows(out, giou, p, g, n);
}

__global__ void box_loss_slope(float *dp, const float *p, const float *g, float up_l1, float up_giou, int n)
{
    tpo_box_rows_grad(dp, p, g, up_l1, up_giou, n);
}

extern "C" int tpo_box_loss_cuda(struct tpo_stream *s, float *out, float *giou, const float *p, const float *g, int n)
{
    if (n < 1) return TPO_EINVAL;
    box_loss<<<1, 1, 0, tpo_cuda_stream(s)>>>(out, giou, p, g, n);
    return tpo_cuda_launched();
}

extern "C" int tpo_box_loss_grad_cuda(struct tpo_stream *s, float *dp, const float *p, const float *g, float up_l1, float up_giou,
                                      int n)
{
    if (n < 1) return TPO_EINVAL;
    box_loss_slope<<<1, 1, 0, tpo_cuda_stream(s)>>>(dp, p, g, up_l1, up_giou, n);
    return tpo_cuda_launched();
}
