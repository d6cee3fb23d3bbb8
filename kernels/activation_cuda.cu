/* This file owns the pointwise functions on CUDA. */
#include "kernels/cuda.h"

#define INV_SQRT_2    0.70710678118654752f
#define INV_SQRT_2_PI 0.39894228040143268f

struct gelu {
    __device__ static float value(float x)
    {
        return 0.5f * x * (1.0f + erff(x * INV_SQRT_2));
    }
    __device__ static float slope(float x)
    {
        return 0.5f * (1.0f + erff(x * INV_SQRT_2)) + x * INV_SQRT_2_PI * expf(-0.5f * x * x);
    }
};

struct relu {
    __device__ static float value(float x)
    {
        return x <= 0.0f ? 0.0f : x; /* a NaN stays one */
    }
    __device__ static float slope(float x)
    {
        return x > 0.0f ? 1.0f : 0.0f;
    }
};

/* Four at a time, where the arrays lie for it; then what is left. */
template <typename Act> __global__ void act_value(float *y, const float *x, int64_t fours, int64_t n)
{
    TPO_EACH(i, fours)
    {
        const float4 v = ((const float4 *)x)[i];
        ((float4 *)y)[i] = make_float4(Act::value(v.x), Act::value(v.y), Act::value(v.z), Act::value(v.w));
    }
    TPO_EACH(k, n - 4 * fours) y[4 * fours + k] = Act::value(x[4 * fours + k]);
}

template <typename Act> __global__ void act_slope(float *dx, const float *dy, const float *x, int add, int64_t fours, int64_t n)
{
    TPO_EACH(i, fours)
    {
        const float4 v = ((const float4 *)x)[i], d = ((const float4 *)dy)[i];
        const float4 before = add ? ((float4 *)dx)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        ((float4 *)dx)[i] = make_float4(before.x + d.x * Act::slope(v.x), before.y + d.y * Act::slope(v.y),
                                        before.z + d.z * Act::slope(v.z), before.w + d.w * Act::slope(v.w));
    }
    TPO_EACH(k, n - 4 * fours)
    {
        const int64_t at = 4 * fours + k;
        dx[at] = (add ? dx[at] : 0.0f) + dy[at] * Act::slope(x[at]);
    }
}

static int64_t fours_of(const void *a, const void *b, const void *c, int64_t n)
{
    return ((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % sizeof(float4) == 0 ? n / 4 : 0;
}

template <typename Act> static int value(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    if (n < 1) return TPO_EINVAL;
    const int64_t fours = fours_of(y, x, NULL, n);
    act_value<Act><<<tpo_cuda_blocks(fours > 0 ? fours : n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, x, fours, n);
    return tpo_cuda_launched();
}

template <typename Act> static int slope(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    if (n < 1) return TPO_EINVAL;
    const int64_t fours = fours_of(dx, dy, x, n);
    act_slope<Act>
        <<<tpo_cuda_blocks(fours > 0 ? fours : n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dx, dy, x, add, fours, n);
    return tpo_cuda_launched();
}

extern "C" int tpo_gelu_cuda(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    return value<gelu>(s, y, x, n);
}

extern "C" int tpo_gelu_grad_cuda(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    return slope<gelu>(s, dx, dy, x, add, n);
}

extern "C" int tpo_relu_cuda(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    return value<relu>(s, y, x, n);
}

extern "C" int tpo_relu_grad_cuda(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    return slope<relu>(s, dx, dy, x, add, n);
}

__device__ static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

__global__ void swiglu(float *y, const float *g, const float *u, int ld, int C, int64_t n)
{
    TPO_EACH(i, n)
    {
        const int64_t in = i / C * ld + i % C;
        y[i] = g[in] * sigmoid(g[in]) * u[in];
    }
}

__global__ void swiglu_slope(float *dg, float *du, const float *dy, const float *g, const float *u, int ld, int add, int C,
                             int64_t n)
{
    TPO_EACH(i, n)
    {
        const int64_t in = i / C * ld + i % C;
        const float s = sigmoid(g[in]), d = dy[i], to_g = d * u[in] * s * (1.0f + g[in] * (1.0f - s)), to_u = d * g[in] * s;
        dg[in] = add ? dg[in] + to_g : to_g;
        du[in] = add ? du[in] + to_u : to_u;
    }
}

extern "C" int tpo_swiglu_cuda(struct tpo_stream *s, float *y, const float *g, const float *u, int ld, int M, int C)
{
    if (M < 1 || C < 1 || ld < C) return TPO_EINVAL;
    const int64_t n = (int64_t)M * C;
    swiglu<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, g, u, ld, C, n);
    return tpo_cuda_launched();
}

extern "C" int tpo_swiglu_grad_cuda(struct tpo_stream *s, float *dg, float *du, const float *dy, const float *g, const float *u,
                                    int ld, int add, int M, int C)
{
    if (M < 1 || C < 1 || ld < C) return TPO_EINVAL;
    const int64_t n = (int64_t)M * C;
    swiglu_slope<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dg, du, dy, g, u, ld, add, C, n);
    return tpo_cuda_launched();
}
