/* This file owns the products on CUDA: cuBLAS for many rows, a pass over the weights for few.
 *
 * cuBLAS counts columns first, so each row-major matrix is its transpose there: y^T (N, M) = w^T' x^T and so on.
 *
 * Weights in bf16 go through the tensor cores, which multiply bf16 and add in f32, and still count as matmul.h promises: an f32 row is the sum of
 * three bf16 rows (8 bits of its mantissa each), so three products added up, the smallest first, hold every bit of it. */
#include <cuda_bf16.h>

#include "kernels/cuda.h"

#define PARTS 3

/* c (m, n) = op(a) op(b), in cuBLAS's order. */
static int gemm(struct tpo_stream *s, cublasOperation_t opa, cublasOperation_t opb, int m, int n, int k, const float *a, int lda,
                const float *b, int ldb, int add, float *c, int ldc)
{
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    return tpo_cublas_code(cublasSgemm(tpo_cuda_of(s)->blas, opa, opb, m, n, k, &one, a, lda, b, ldb, &beta, c, ldc));
}

/* x = parts[0] + parts[1] + parts[2], largest first, each (M, K) and packed. */
__global__ void split(__nv_bfloat16 *parts, const float *x, int ldx, int K, int64_t n)
{
    TPO_EACH(i, n)
    {
        float rest = x[i / K * ldx + i % K];
        for (int part = 0; part < PARTS; part++) {
            const __nv_bfloat16 most = __float2bfloat16_rn(rest);
            parts[part * n + i] = most;
            rest -= __bfloat162float(most);
            if (!isfinite(rest)) rest = 0.0f; /* an infinity or a NaN is whole in the first part */
        }
    }
}

/* y (M, N) = x (M, K) op(w) with bf16 weights; wide: the row distance of w as it lies. */
static int gemm_half(struct tpo_stream *s, cublasOperation_t opw, int M, int N, int K, const float *x, int ldx, const void *w,
                     int wide, int add, float *y, int ldy)
{
    const int64_t n = (int64_t)M * K;
    __nv_bfloat16 *parts = (__nv_bfloat16 *)tpo_cuda_scratch(s, (size_t)(PARTS * n) * sizeof(*parts));
    if (parts == NULL) return TPO_ENOMEM;
    split<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(parts, x, ldx, K, n);
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    for (int part = PARTS - 1; part >= 0 && status == CUBLAS_STATUS_SUCCESS; part--) {
        const float one = 1.0f, beta = add || part < PARTS - 1 ? 1.0f : 0.0f;
        status = cublasGemmEx(tpo_cuda_of(s)->blas, opw, CUBLAS_OP_N, N, M, K, &one, w, CUDA_R_16BF, wide, parts + part * n,
                              CUDA_R_16BF, K, &beta, y, CUDA_R_32F, ldy, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    }
    const int code = tpo_cublas_code(status);
    return code == TPO_OK ? tpo_cuda_launched() : code;
}

__global__ void add_bias(float *y, int ldy, const float *bias, int N, int64_t n)
{
    TPO_EACH(i, n) y[i / N * ldy + i % N] += bias[i % N];
}

extern "C" int tpo_matmul_cuda(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w,
                               const float *bias, int add, int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    const int rc = w.dtype == TPO_BF16 ? gemm_half(s, CUBLAS_OP_T, M, N, K, x, ldx, w.data, K, add, y, ldy)
                                       : gemm(s, CUBLAS_OP_T, CUBLAS_OP_N, N, M, K, (const float *)w.data, K, x, ldx, add, y, ldy);
    if (rc != TPO_OK || bias == NULL) return rc;
    const int64_t cells = (int64_t)M * N;
    add_bias<<<tpo_cuda_blocks(cells, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, ldy, bias, N, cells);
    return tpo_cuda_launched();
}

extern "C" int tpo_matmul_dx_cuda(struct tpo_stream *s, float *dx, int lddx, const float *dy, int lddy, struct tpo_weight w,
                                  int add, int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || lddx < K || lddy < N) return TPO_EINVAL;
    if (w.dtype == TPO_BF16) return gemm_half(s, CUBLAS_OP_N, M, K, N, dy, lddy, w.data, K, add, dx, lddx);
    return gemm(s, CUBLAS_OP_N, CUBLAS_OP_N, K, M, N, (const float *)w.data, K, dy, lddy, add, dx, lddx);
}

extern "C" int tpo_matmul_dw_cuda(struct tpo_stream *s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add,
                                  int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || lddy < N || ldx < K) return TPO_EINVAL;
    return gemm(s, CUBLAS_OP_N, CUBLAS_OP_T, K, N, M, x, ldx, dy, lddy, add, dw, K);
}

/* --- few rows ------------------------------------------------------------------------------------------------------------------------- */

/* Eight weights at p as f32. */
__device__ static void eight(float *to, const float *p)
{
    const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

__device__ static void eight(float *to, const uint16_t *p)
{
    const uint4 a = *(const uint4 *)p;
    const unsigned pairs[4] = {a.x, a.y, a.z, a.w};
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

__device__ static float value_of(float x)
{
    return x;
}
__device__ static float value_of(uint16_t x)
{
    return tpo_bf16_value(x);
}

/* A warp for OUTS outputs of ROWS rows; every sum is added up in one order, whatever the two are. vectors: x and w may be read eight elements at a
 * time. */
template <int ROWS, int OUTS, typename Weight>
__global__ void few_rows(float *y, int ldy, const float *x, int ldx, const Weight *w, const float *bias, int add, int M, int N,
                         int K, int vectors)
{
    const int lane = threadIdx.x % TPO_WARP, n0 = (int)(blockIdx.x * (blockDim.x / TPO_WARP) + threadIdx.x / TPO_WARP) * OUTS,
              m0 = (int)blockIdx.y * ROWS;
    if (n0 >= N) return;
    float sum[ROWS][OUTS] = {};
    int k = lane * 8;
    for (; k + 8 <= K && vectors; k += TPO_WARP * 8) {
        float weight[OUTS][8], row[8];
#pragma unroll
        for (int o = 0; o < OUTS; o++) eight(weight[o], w + (int64_t)min(n0 + o, N - 1) * K + k);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            eight(row, x + (int64_t)min(m0 + r, M - 1) * ldx + k);
#pragma unroll
            for (int o = 0; o < OUTS; o++)
#pragma unroll
                for (int i = 0; i < 8; i++) sum[r][o] += row[i] * weight[o][i];
        }
    }
    for (k = (vectors ? K / 8 * 8 : 0) + lane; k < K; k += TPO_WARP)
        for (int o = 0; o < OUTS; o++) {
            const float weight = value_of(w[(int64_t)min(n0 + o, N - 1) * K + k]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sum[r][o] += x[(int64_t)min(m0 + r, M - 1) * ldx + k] * weight;
        }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int o = 0; o < OUTS; o++) {
            const float total = tpo_warp_sum(sum[r][o]);
            if (lane > 0 || m0 + r >= M || n0 + o >= N) continue;
            float *place = y + (int64_t)(m0 + r) * ldy + n0 + o;
            *place = (add ? *place : 0.0f) + total + (bias != NULL ? bias[n0 + o] : 0.0f);
        }
}

struct few {
    float *y;
    const float *x, *bias;
    int ldy, ldx, add, M, N, K, vectors;
};

template <int ROWS, int OUTS, typename Weight> static void run_few(struct tpo_stream *s, const struct few *f, const Weight *w)
{
    const int each = TPO_THREADS / TPO_WARP * OUTS;
    const dim3 grid((unsigned)(f->N + each - 1) / each, (unsigned)(f->M + ROWS - 1) / ROWS);
    few_rows<ROWS, OUTS><<<grid, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(f->y, f->ldy, f->x, f->ldx, w, f->bias, f->add, f->M, f->N,
                                                                       f->K, f->vectors);
}

/* More rows share one reading of the weights; two outputs share one of the rows. */
template <typename Weight> static void run_rows(struct tpo_stream *s, const struct few *f, const Weight *w)
{
    if (f->M == 1)
        run_few<1, 1>(s, f, w);
    else if (f->M == 2)
        run_few<2, 1>(s, f, w);
    else if (f->M <= 4)
        run_few<4, 2>(s, f, w);
    else
        run_few<8, 2>(s, f, w);
}

static int aligned(const void *p, int64_t row_bytes)
{
    return (uintptr_t)p % 16 == 0 && row_bytes % 16 == 0;
}

extern "C" int tpo_matvec_cuda(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w,
                               const float *bias, int add, int M, int N, int K)
{
    if (M < 1 || M > TPO_MATVEC_ROWS || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    const int half = w.dtype == TPO_BF16;
    const struct few f = {y,   x, bias, ldy, ldx,
                          add, M, N,    K,   aligned(x, (int64_t)ldx * 4) && aligned(w.data, (int64_t)K * (half ? 2 : 4))};
    if (half)
        run_rows(s, &f, (const uint16_t *)w.data);
    else
        run_rows(s, &f, (const float *)w.data);
    return tpo_cuda_launched();
}

/* --- gradient of the bias ---------------------------------------------------------------------------------------------------------- */

/* 32 columns to a block; its warps walk the rows, a last step joins them in order. */
__global__ void column_sums(float *db, const float *dy, int lddy, int add, int M, int N)
{
    __shared__ float parts[TPO_WARP][TPO_WARP + 1];
    const int lane = threadIdx.x, warp = threadIdx.y, c = (int)blockIdx.x * TPO_WARP + lane;
    float sum = 0.0f;
    for (int64_t m = warp; m < M && c < N; m += TPO_WARP) sum += dy[m * lddy + c];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= N) return;
    for (int i = 1; i < TPO_WARP; i++) sum += parts[i][lane];
    db[c] = add ? db[c] + sum : sum;
}

extern "C" int tpo_bias_grad_cuda(struct tpo_stream *s, float *db, const float *dy, int lddy, int add, int M, int N)
{
    if (M < 1 || N < 1 || lddy < N) return TPO_EINVAL;
    column_sums<<<(N + TPO_WARP - 1) / TPO_WARP, dim3(TPO_WARP, TPO_WARP), 0, tpo_cuda_stream(s)>>>(db, dy, lddy, add, M, N);
    return tpo_cuda_launched();
}
