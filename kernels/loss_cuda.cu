/* This file owns the losses of independent rows, and argmax, on CUDA. */
#include "kernels/cuda.h"

#define IGNORED (-100)

__device__ static float log_sum_exp(const float *x, int n)
{
    float top = -INFINITY, total = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) top = fmaxf(top, x[i]);
    top = tpo_block_max(top);
    if (top == -INFINITY) return top;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(x[i] - top);
    return top + logf(tpo_block_sum(total));
}

/* A block for each row. out: the loss (M), or with `grad` dlogits (M, V), which may be the logits. */
__global__ void entropy(float *out, const float *logits, const int32_t *label, const float *weight, float upstream, int grad, int V,
                        int *fault)
{
    const int64_t m = blockIdx.x;
    const float *x = logits + m * V;
    const int32_t to = label[m];
    const bool wrong = to != IGNORED && (to < 0 || to >= V);
    const float factor = to == IGNORED || wrong ? 0.0f : weight != NULL ? weight[m] : 1.0f, scale = upstream * factor;
    if (wrong) *fault = 1;
    if (factor == 0.0f) {
        for (int v = threadIdx.x; v < (grad ? V : 1); v += blockDim.x) out[(grad ? m * V : m) + v] = 0.0f;
        return;
    }
    const float lse = log_sum_exp(x, V);
    if (!grad) {
        if (threadIdx.x == 0) out[m] = factor * (lse - x[to]);
        return;
    }
    for (int v = threadIdx.x; v < V; v += blockDim.x) out[m * V + v] = scale * expf(x[v] - lse) - (v == to ? scale : 0.0f);
}

static int entropies(struct tpo_stream *s, float *out, const float *logits, const int32_t *label, const float *weight,
                     float upstream, int grad, int M, int V)
{
    if (M < 1 || V < 1) return TPO_EINVAL;
    entropy<<<M, tpo_cuda_row_threads(V), 0, tpo_cuda_stream(s)>>>(out, logits, label, weight, upstream, grad, V,
                                                                   tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}

extern "C" int tpo_cross_entropy_cuda(struct tpo_stream *s, float *loss, const float *logits, const int32_t *label,
                                      const float *weight, int M, int V)
{
    return entropies(s, loss, logits, label, weight, 0.0f, 0, M, V);
}

extern "C" int tpo_cross_entropy_grad_cuda(struct tpo_stream *s, float *dlogits, const float *logits, const int32_t *label,
                                           const float *weight, float upstream, int M, int V)
{
    return entropies(s, dlogits, logits, label, weight, upstream, 1, M, V);
}

/* --- weighted L1 and squared error ---------------------------------------------------------------------------------------------------- */

__global__ void distance(float *loss, const float *p, const float *g, const float *weight, int square, int C)
{
    const int64_t m = blockIdx.x;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const float off = p[m * C + c] - g[m * C + c];
        sum += square ? off * off : fabsf(off);
    }
    sum = tpo_block_sum(sum);
    if (threadIdx.x == 0) loss[m] = (weight != NULL ? weight[m] : 1.0f) * sum;
}

__global__ void distance_slope(float *dp, const float *p, const float *g, const float *weight, float upstream, int square, int C,
                               int64_t n)
{
    TPO_EACH(i, n)
    {
        const float off = p[i] - g[i], scale = upstream * (weight != NULL ? weight[i / C] : 1.0f);
        dp[i] = scale * (square ? 2.0f * off : (float)((off > 0.0f) - (off < 0.0f)));
    }
}

static int distances(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int square, int M,
                     int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    distance<<<M, tpo_cuda_row_threads(C), 0, tpo_cuda_stream(s)>>>(loss, p, g, weight, square, C);
    return tpo_cuda_launched();
}

static int slopes(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream, int square,
                  int M, int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    const int64_t n = (int64_t)M * C;
    distance_slope<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dp, p, g, weight, upstream, square, C,
                                                                                            n);
    return tpo_cuda_launched();
}

extern "C" int tpo_l1_rows_cuda(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M,
                                int C)
{
    return distances(s, loss, p, g, weight, 0, M, C);
}

extern "C" int tpo_l1_rows_grad_cuda(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight,
                                     float upstream, int M, int C)
{
    return slopes(s, dp, p, g, weight, upstream, 0, M, C);
}

extern "C" int tpo_mse_rows_cuda(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M,
                                 int C)
{
    return distances(s, loss, p, g, weight, 1, M, C);
}

extern "C" int tpo_mse_rows_grad_cuda(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight,
                                      float upstream, int M, int C)
{
    return slopes(s, dp, p, g, weight, upstream, 1, M, C);
}

/* --- argmax ------------------------------------------------------------------------------------------------------------------------------ */

/* Whether b comes before a: larger, or as large and of lower index. A NaN is never larger. */
__device__ static bool better(float b, int at_b, float a, int at_a)
{
    return b > a || (b == a && at_b < at_a);
}

__global__ void argmax(int32_t *out, const float *x, int V)
{
    __shared__ float tops[TPO_THREADS];
    __shared__ int places[TPO_THREADS];
    x += (int64_t)blockIdx.x * V;
    float top = threadIdx.x < V && (threadIdx.x == 0 || x[threadIdx.x] == x[threadIdx.x]) ? x[threadIdx.x] : -INFINITY;
    int at = threadIdx.x < V ? (int)threadIdx.x : 0;
    for (int v = threadIdx.x + TPO_THREADS; v < V; v += TPO_THREADS)
        if (better(x[v], v, top, at)) top = x[v], at = v;
    tops[threadIdx.x] = top;
    places[threadIdx.x] = at;
    for (int half = TPO_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x >= half) continue;
        const int other = threadIdx.x + half;
        if (better(tops[other], places[other], tops[threadIdx.x], places[threadIdx.x]))
            tops[threadIdx.x] = tops[other], places[threadIdx.x] = places[other];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = places[0];
}

extern "C" int tpo_argmax_cuda(struct tpo_stream *s, int32_t *out, const float *x, int M, int V)
{
    if (M < 1 || V < 1) return TPO_EINVAL;
    argmax<<<M, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(out, x, V);
    return tpo_cuda_launched();
}
