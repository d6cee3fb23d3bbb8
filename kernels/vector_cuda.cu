/* This file owns whole-array arithmetic on CUDA. */
#include <cuda_fp16.h>

#include "kernels/cuda.h"
#include "kernels/vector_cuda.h"

#define SUM_BLOCK 4096

template <typename Fn> __global__ void each(Fn fn, int64_t n)
{
    TPO_EACH(i, n) fn(i);
}

template <typename Fn> static int run(struct tpo_stream *s, int64_t n, Fn fn)
{
    if (n < 1) return TPO_EINVAL;
    each<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(fn, n);
    return tpo_cuda_launched();
}

extern "C" int tpo_add_cuda(struct tpo_stream *s, float *y, const float *a, const float *b, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = a[i] + b[i]; });
}

extern "C" int tpo_axpy_cuda(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] += alpha * x[i]; });
}

extern "C" int tpo_scale_cuda(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = alpha * x[i]; });
}

extern "C" int tpo_fill_cuda(struct tpo_stream *s, float *y, float value, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = value; });
}

/* random.c's generator. */
__device__ static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

__device__ static float uniform(uint64_t key, uint64_t counter)
{
    return (float)(mix(mix(key + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u) >> 40) * 0x1p-24f;
}

extern "C" int tpo_dropout_cuda(struct tpo_stream *s, float *y, const float *x, float p, uint64_t key, int64_t n)
{
    if (!(p >= 0.0f && p < 1.0f)) return TPO_EINVAL;
    const float kept = 1.0f / (1.0f - p);
    return run(s, n, [=] __device__(int64_t i) { y[i] = uniform(key, (uint64_t)i) >= p ? x[i] * kept : 0.0f; });
}

extern "C" int tpo_bf16_to_f32_cuda(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = tpo_bf16_value(x[i]); });
}

extern "C" int tpo_f16_to_f32_cuda(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = __half2float(__ushort_as_half(x[i])); });
}

/* To the nearest, a tie to the even one; a NaN stays one. */
__device__ static uint16_t bf16_of(float x)
{
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

extern "C" int tpo_f32_to_bf16_cuda(struct tpo_stream *s, uint16_t *y, const float *x, int64_t n)
{
    return run(s, n, [=] __device__(int64_t i) { y[i] = bf16_of(x[i]); });
}

/* --- sums: f64 within blocks of 4096, blocks added in order ------------------------------------------------------------------------ */

__global__ void sum_blocks(double *blocks, const float *x, int square, int64_t n)
{
    __shared__ double parts[TPO_THREADS];
    const int64_t begin = (int64_t)blockIdx.x * SUM_BLOCK, end = begin + SUM_BLOCK < n ? begin + SUM_BLOCK : n;
    double sum = 0.0;
    for (int64_t i = begin + threadIdx.x; i < end; i += TPO_THREADS) sum += square ? (double)x[i] * x[i] : (double)x[i];
    parts[threadIdx.x] = sum;
    for (int half = TPO_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) blocks[blockIdx.x] = parts[0];
}

__global__ void sum_of_blocks(double *out, const double *blocks, int n)
{
    __shared__ double parts[TPO_THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += TPO_THREADS) sum += blocks[i];
    parts[threadIdx.x] = sum;
    for (int half = TPO_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *out = parts[0];
}

const double *tpo_cuda_sum(struct tpo_stream *s, const float *x, int square, int64_t n)
{
    const int64_t blocks = (n + SUM_BLOCK - 1) / SUM_BLOCK;
    double *out = (double *)tpo_cuda_scratch(s, (size_t)(blocks + 1) * sizeof(double));
    if (out == NULL) return NULL;
    sum_blocks<<<(unsigned)blocks, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(out + 1, x, square, n);
    sum_of_blocks<<<1, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(out, out + 1, (int)blocks);
    return out;
}

static int sum_to_host(struct tpo_stream *s, double *host, const float *x, int square, int64_t n)
{
    if (n < 1 || n > (int64_t)INT32_MAX * SUM_BLOCK) return TPO_EINVAL;
    struct tpo_cuda *c = tpo_cuda_of(s);
    const double *sum = tpo_cuda_sum(s, x, square, n);
    if (sum == NULL) return TPO_ENOMEM;
    int rc = tpo_cuda_launched();
    if (rc == TPO_OK) rc = tpo_cuda_code(cudaMemcpyAsync(c->host_sum, sum, sizeof(*sum), cudaMemcpyDeviceToHost, c->stream));
    if (rc == TPO_OK) rc = tpo_cuda_finish(s);
    if (rc == TPO_OK) *host = *c->host_sum;
    return rc;
}

extern "C" int tpo_sum_cuda(struct tpo_stream *s, double *out, const float *x, int64_t n)
{
    return sum_to_host(s, out, x, 0, n);
}

extern "C" int tpo_sumsq_cuda(struct tpo_stream *s, double *out, const float *x, int64_t n)
{
    return sum_to_host(s, out, x, 1, n);
}
