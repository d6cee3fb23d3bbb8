/* This file owns the rotary embedding on CUDA. */
#include "kernels/cuda.h"

__global__ void table(float *cos_table, float *sin_table, const int32_t *positions, double theta, int half, int64_t n)
{
    TPO_EACH(i, n)
    {
        const double angle = positions[i / half] * pow(theta, -(double)(i % half) / half);
        cos_table[i] = (float)cos(angle);
        sin_table[i] = (float)sin(angle);
    }
}

extern "C" int tpo_rope_table_cuda(struct tpo_stream *s, float *cos_table, float *sin_table, const int32_t *positions, double theta,
                                   int n, int D)
{
    if (n < 1 || D < 2 || D % 2 != 0) return TPO_EINVAL;
    const int64_t cells = (int64_t)n * (D / 2);
    table<<<tpo_cuda_blocks(cells, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(cos_table, sin_table, positions, theta,
                                                                                       D / 2, cells);
    return tpo_cuda_launched();
}

__global__ void rotate(float *x, int ld, const float *cos_table, const float *sin_table, float turn, int H, int half, int64_t n)
{
    TPO_EACH(i, n)
    {
        const int64_t m = i / ((int64_t)H * half);
        const int k = (int)(i % half), h = (int)(i / half % H);
        float *a = x + m * ld + (int64_t)h * 2 * half + k, *b = a + half;
        const float c = cos_table[m * half + k], d = turn * sin_table[m * half + k], x0 = *a, x1 = *b;
        *a = x0 * c - x1 * d;
        *b = x1 * c + x0 * d;
    }
}

extern "C" int tpo_rope_cuda(struct tpo_stream *s, float *x, int ld, const float *cos_table, const float *sin_table, int inverse,
                             int M, int H, int D)
{
    if (M < 1 || H < 1 || D < 2 || D % 2 != 0 || ld < H * D) return TPO_EINVAL;
    const int64_t n = (int64_t)M * H * (D / 2);
    rotate<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(x, ld, cos_table, sin_table,
                                                                                    inverse ? -1.0f : 1.0f, H, D / 2, n);
    return tpo_cuda_launched();
}
