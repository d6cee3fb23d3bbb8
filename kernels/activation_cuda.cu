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
        return x > 0.0f ? x : 0.0f;
    }
    __device__ static float slope(float x)
    {
        return x > 0.0f ? 1.0f : 0.0f;
    }
};

template <typename Act>
__global__ void act_value(float *y, const float *x, int64_t n)
{
    TPO_EACH(i, n) y[i] = Act::value(x[i]);
}

template <typename Act>
__global__ void act_slope(float *dx, const float *dy, const float *x, int add, int64_t n)
{
    TPO_EACH(i, n)
    {
        const float d = dy[i] * Act::slope(x[i]);
        dx[i] = add ? dx[i] + d : d;
    }
}

template <typename Act>
static int value(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    if (n < 1) return TPO_EINVAL;
    act_value<Act><<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, x, n);
    return tpo_cuda_launched();
}

template <typename Act>
static int slope(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    if (n < 1) return TPO_EINVAL;
    act_slope<Act><<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dx, dy, x, add, n);
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

__global__ void swiglu_slope(float *dg, float *du, const float *dy, const float *g, const float *u, int ld, int add, int C, int64_t n)
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

extern "C" int tpo_swiglu_grad_cuda(struct tpo_stream *s, float *dg, float *du, const float *dy, const float *g, const float *u, int ld, int add,
                                    int M, int C)
{
    if (M < 1 || C < 1 || ld < C) return TPO_EINVAL;
    const int64_t n = (int64_t)M * C;
    swiglu_slope<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dg, du, dy, g, u, ld, add, C, n);
    return tpo_cuda_launched();
}
