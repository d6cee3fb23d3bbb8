/* This file owns the products on CUDA: cuBLAS for many rows, a pass over the weights for few.
 *
 * cuBLAS counts columns first, so each row-major matrix is its transpose there: y^T (N, M) = w^T' x^T and so on. Weights in bf16 are widened to f32
 * a slab of outputs at a time, in scratch, and multiplied in f32: the promise of matmul.h, at the price of one more pass over them. */
#include "kernels/cuda.h"

#define SLAB_BYTES ((int64_t)64 << 20)

static int blas_code(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? TPO_OK : status == CUBLAS_STATUS_ALLOC_FAILED ? TPO_ENOMEM : TPO_INTERNAL;
}

/* c (m, n) = op(a) op(b), in cuBLAS's order. */
static int gemm(struct tpo_stream *s, cublasOperation_t opa, cublasOperation_t opb, int m, int n, int k, const float *a, int lda, const float *b, int ldb,
                int add, float *c, int ldc)
{
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    return blas_code(cublasSgemm(tpo_cuda_of(s)->blas, opa, opb, m, n, k, &one, a, lda, b, ldb, &beta, c, ldc));
}

__global__ void widen(float *y, const uint16_t *x, int64_t n)
{
    TPO_EACH(i, n) y[i] = tpo_bf16_value(x[i]);
}

/* Rows first..first+n-1 of w (N, K) in f32: where they lie, or in scratch. */
static const float *rows_of(struct tpo_stream *s, struct tpo_weight w, int64_t first, int64_t n, int64_t K)
{
    if (w.dtype == TPO_F32) return (const float *)w.data + first * K;
    float *wide = (float *)tpo_cuda_scratch(s, (size_t)(n * K) * sizeof(float));
    if (wide == NULL) return NULL;
    widen<<<tpo_cuda_blocks(n * K, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(wide, (const uint16_t *)w.data + first * K, n * K);
    return wide;
}

static int64_t slab_rows(struct tpo_weight w, int N, int K)
{
    const int64_t rows = SLAB_BYTES / ((int64_t)K * (int64_t)sizeof(float));
    return w.dtype == TPO_F32 || rows > N ? N : rows < 1 ? 1 : rows;
}

__global__ void add_bias(float *y, int ldy, const float *bias, int N, int64_t n)
{
    TPO_EACH(i, n) y[i / N * ldy + i % N] += bias[i % N];
}

extern "C" int tpo_matmul_cuda(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add, int M,
                               int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    const int64_t slab = slab_rows(w, N, K);
    for (int64_t first = 0; first < N; first += slab) {
        const int n = (int)(N - first < slab ? N - first : slab);
        const float *rows = rows_of(s, w, first, n, K);
        if (rows == NULL) return TPO_ENOMEM;
        const int rc = gemm(s, CUBLAS_OP_T, CUBLAS_OP_N, n, M, K, rows, K, x, ldx, add, y + first, ldy);
        if (rc != TPO_OK) return rc;
    }
    if (bias == NULL) return tpo_cuda_launched();
    const int64_t cells = (int64_t)M * N;
    add_bias<<<tpo_cuda_blocks(cells, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, ldy, bias, N, cells);
    return tpo_cuda_launched();
}

extern "C" int tpo_matmul_dx_cuda(struct tpo_stream *s, float *dx, int lddx, const float *dy, int lddy, struct tpo_weight w, int add, int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || lddx < K || lddy < N) return TPO_EINVAL;
    const int64_t slab = slab_rows(w, N, K);
    for (int64_t first = 0; first < N; first += slab) {
        const int n = (int)(N - first < slab ? N - first : slab);
        const float *rows = rows_of(s, w, first, n, K);
        if (rows == NULL) return TPO_ENOMEM;
        const int rc = gemm(s, CUBLAS_OP_N, CUBLAS_OP_N, K, M, n, rows, K, dy + first, lddy, add || first > 0, dx, lddx);
        if (rc != TPO_OK) return rc;
    }
    return tpo_cuda_launched();
}

extern "C" int tpo_matmul_dw_cuda(struct tpo_stream *s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add, int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || lddy < N || ldx < K) return TPO_EINVAL;
    return gemm(s, CUBLAS_OP_N, CUBLAS_OP_T, K, N, M, x, ldx, dy, lddy, add, dw, K);
}

/* --- few rows ------------------------------------------------------------------------------------------------------------------------- */

#define AT_ONCE 4 /* rows whose sums one warp holds */

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

/* A warp for each output of AT_ONCE rows. vectors: x and w may be read eight elements at a time. */
template <typename Weight>
__global__ void few_rows(float *y, int ldy, const float *x, int ldx, const Weight *w, const float *bias, int add, int M, int N, int K, int vectors)
{
    const int lane = threadIdx.x % TPO_WARP, n = (int)(blockIdx.x * (blockDim.x / TPO_WARP) + threadIdx.x / TPO_WARP), m0 = (int)blockIdx.y * AT_ONCE;
    const int rows = min(AT_ONCE, M - m0);
    if (n >= N) return;
    w += (int64_t)n * K;
    x += (int64_t)m0 * ldx;
    float sum[AT_ONCE] = {0.0f};
    int k = lane * 8;
    for (; k + 8 <= K && vectors; k += TPO_WARP * 8) {
        float weight[8], row[8];
        eight(weight, w + k);
        for (int r = 0; r < AT_ONCE; r++) {
            if (r >= rows) break;
            eight(row, x + (int64_t)r * ldx + k);
            for (int i = 0; i < 8; i++) sum[r] += row[i] * weight[i];
        }
    }
    for (k = (vectors ? K / 8 * 8 : 0) + lane; k < K; k += TPO_WARP) {
        const float weight = value_of(w[k]);
        for (int r = 0; r < AT_ONCE && r < rows; r++) sum[r] += x[(int64_t)r * ldx + k] * weight;
    }
    for (int r = 0; r < AT_ONCE; r++) {
        if (r >= rows) break;
        const float total = tpo_warp_sum(sum[r]) + (bias != NULL ? bias[n] : 0.0f);
        float *place = y + (int64_t)(m0 + r) * ldy + n;
        if (lane == 0) *place = add ? *place + total : total;
    }
}

static int aligned(const void *p, int64_t row_bytes)
{
    return (uintptr_t)p % 16 == 0 && row_bytes % 16 == 0;
}

extern "C" int tpo_matvec_cuda(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add, int M,
                               int N, int K)
{
    if (M < 1 || M > TPO_MATVEC_ROWS || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    const int half = w.dtype == TPO_BF16, warps = TPO_THREADS / TPO_WARP;
    const int vectors = aligned(x, (int64_t)ldx * 4) && aligned(w.data, (int64_t)K * (half ? 2 : 4));
    const dim3 grid((unsigned)(N + warps - 1) / warps, (unsigned)(M + AT_ONCE - 1) / AT_ONCE);
    if (half)
        few_rows<<<grid, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, ldy, x, ldx, (const uint16_t *)w.data, bias, add, M, N, K, vectors);
    else
        few_rows<<<grid, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, ldy, x, ldx, (const float *)w.data, bias, add, M, N, K, vectors);
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
