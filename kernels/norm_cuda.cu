/* This file owns the norms on CUDA: a block for each row of y and dx, a block for some columns of dw and db. */
#include "kernels/cuda.h"

/* centred: layer norm; else RMS norm, mean unused. */
__global__ void norm(float *y, float *mean_out, float *rstd_out, const float *x, const float *w, const float *b, float eps,
                     int centred, int C)
{
    const int64_t m = blockIdx.x;
    x += m * C;
    y += m * C;
    float sum = 0.0f, square = 0.0f;
    for (int c = threadIdx.x; c < C && centred; c += blockDim.x) sum += x[c];
    const float mean = centred ? tpo_block_sum(sum) / (float)C : 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) square += (x[c] - mean) * (x[c] - mean);
    const float rstd = 1.0f / sqrtf(tpo_block_sum(square) / (float)C + eps);
    for (int c = threadIdx.x; c < C; c += blockDim.x) y[c] = (x[c] - mean) * rstd * w[c] + (b != NULL ? b[c] : 0.0f);
    if (threadIdx.x > 0) return;
    if (mean_out != NULL) mean_out[m] = mean;
    if (rstd_out != NULL) rstd_out[m] = rstd;
}

/* With h = (x - mean) rstd and e = dy w:  dx = rstd (e - mean(e) - h mean(e h)); RMS norm lacks the middle term. */
__global__ void norm_rows(float *dx, const float *dy, const float *x, const float *w, const float *mean, const float *rstd, int add,
                          int C)
{
    const int64_t m = blockIdx.x;
    const float centre = mean != NULL ? mean[m] : 0.0f, r = rstd[m];
    x += m * C, dy += m * C, dx += m * C;
    float e_sum = 0.0f, eh_sum = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float e = dy[c] * w[c];
        e_sum += e;
        eh_sum += e * (x[c] - centre) * r;
    }
    const float e_mean = mean != NULL ? tpo_block_sum(e_sum) / (float)C : 0.0f;
    const float eh_mean = tpo_block_sum(eh_sum) / (float)C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float d = r * (dy[c] * w[c] - e_mean - (x[c] - centre) * r * eh_mean);
        dx[c] = add ? dx[c] + d : d;
    }
}

/* 32 columns to a block; its 32 warps walk the rows and a last step joins them in order. */
__global__ void norm_columns(float *dw, float *db, const float *dy, const float *x, const float *mean, const float *rstd, int M,
                             int C)
{
    __shared__ float parts[2][TPO_WARP][TPO_WARP + 1];
    const int lane = threadIdx.x, warp = threadIdx.y, c = (int)blockIdx.x * TPO_WARP + lane;
    float to_w = 0.0f, to_b = 0.0f;
    for (int64_t m = warp; m < M && c < C; m += TPO_WARP) {
        const float d = dy[m * C + c];
        to_b += d;
        to_w += d * (x[m * C + c] - (mean != NULL ? mean[m] : 0.0f)) * rstd[m];
    }
    parts[0][warp][lane] = to_w;
    parts[1][warp][lane] = to_b;
    __syncthreads();
    if (warp > 1 || c >= C) return;
    float *out = warp == 0 ? dw : db, sum = 0.0f;
    for (int i = 0; i < TPO_WARP; i++) sum += parts[warp][i][lane];
    if (out != NULL) out[c] += sum;
}

static int forward(struct tpo_stream *s, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                   float eps, int centred, int M, int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    norm<<<M, tpo_cuda_row_threads(C), 0, tpo_cuda_stream(s)>>>(y, mean, rstd, x, w, b, eps, centred, C);
    return tpo_cuda_launched();
}

/* dw and db first: dx may be the memory of dy. */
static int backward(struct tpo_stream *s, float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                    const float *mean, const float *rstd, int add, int M, int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    if (dw != NULL || db != NULL)
        norm_columns<<<(C + TPO_WARP - 1) / TPO_WARP, dim3(TPO_WARP, TPO_WARP), 0, tpo_cuda_stream(s)>>>(dw, db, dy, x, mean, rstd,
                                                                                                         M, C);
    norm_rows<<<M, tpo_cuda_row_threads(C), 0, tpo_cuda_stream(s)>>>(dx, dy, x, w, mean, rstd, add, C);
    return tpo_cuda_launched();
}

extern "C" int tpo_layernorm_cuda(struct tpo_stream *s, float *y, float *mean, float *rstd, const float *x, const float *w,
                                  const float *b, float eps, int M, int C)
{
    return forward(s, y, mean, rstd, x, w, b, eps, 1, M, C);
}

extern "C" int tpo_rmsnorm_cuda(struct tpo_stream *s, float *y, float *rstd, const float *x, const float *w, float eps, int M,
                                int C)
{
    return forward(s, y, NULL, rstd, x, w, NULL, eps, 0, M, C);
}

extern "C" int tpo_layernorm_grad_cuda(struct tpo_stream *s, float *dx, float *dw, float *db, const float *dy, const float *x,
                                       const float *w, const float *mean, const float *rstd, int add, int M, int C)
{
    return backward(s, dx, dw, db, dy, x, w, mean, rstd, add, M, C);
}

extern "C" int tpo_rmsnorm_grad_cuda(struct tpo_stream *s, float *dx, float *dw, const float *dy, const float *x, const float *w,
                                     const float *rstd, int add, int M, int C)
{
    return backward(s, dx, dw, NULL, dy, x, w, NULL, rstd, add, M, C);
}
