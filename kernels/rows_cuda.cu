/* This file owns the row moves on CUDA. */
#include "kernels/cuda.h"

__global__ void gather(float *y, const float *table, const int32_t *index, int C, int n_rows, int *fault)
{
    const int64_t m = blockIdx.x;
    const int32_t from = index[m];
    if (from >= n_rows) *fault = 1;
    if (from < 0 || from >= n_rows) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) y[m * C + c] = table[(int64_t)from * C + c];
}

/* A block for each row: the first of those that go to one place brings them all there, in order; the last wins where nothing is added. */
__global__ void scatter(float *table, const float *x, const int32_t *index, int add, int M, int C, int n_rows, int *fault)
{
    __shared__ int32_t some[TPO_THREADS];
    const int m = blockIdx.x, to = index[m];
    if (to >= n_rows) *fault = 1;
    if (to < 0 || to >= n_rows) return;
    int earlier = 0;
    for (int i = threadIdx.x; i < m; i += blockDim.x) earlier |= index[i] == to;
    if (__syncthreads_or(earlier)) return;
    float *place = table + (int64_t)to * C;
    for (int first = m; first < M; first += blockDim.x) {
        const int n = min((int)blockDim.x, M - first);
        __syncthreads();
        if ((int)threadIdx.x < n) some[threadIdx.x] = index[first + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < n; i++) {
            if (some[i] != to) continue;
            const float *row = x + (int64_t)(first + i) * C;
            for (int c = threadIdx.x; c < C; c += blockDim.x) place[c] = add ? place[c] + row[c] : row[c];
        }
    }
}

extern "C" int tpo_rows_gather_cuda(struct tpo_stream *s, float *y, const float *table, const int32_t *index, int M, int C,
                                    int n_rows)
{
    if (M < 1 || C < 1 || n_rows < 1) return TPO_EINVAL;
    gather<<<M, tpo_cuda_row_threads(C), 0, tpo_cuda_stream(s)>>>(y, table, index, C, n_rows, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}

extern "C" int tpo_rows_scatter_cuda(struct tpo_stream *s, float *table, const float *x, const int32_t *index, int add, int M,
                                     int C, int n_rows)
{
    if (M < 1 || C < 1 || n_rows < 1) return TPO_EINVAL;
    scatter<<<M, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(table, x, index, add, M, C, n_rows, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}

__global__ void add_rows(float *y, const float *x, int64_t period_n, int64_t n)
{
    TPO_EACH(i, n) y[i] += x[i % period_n];
}

extern "C" int tpo_add_rows_cuda(struct tpo_stream *s, float *y, const float *x, int M, int period, int C)
{
    if (M < 1 || C < 1 || period < 1) return TPO_EINVAL;
    const int64_t n = (int64_t)M * C;
    add_rows<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(y, x, (int64_t)period * C, n);
    return tpo_cuda_launched();
}

/* 32 columns of one row of y to a block; its warps walk the rows of x that go there, a last step joins them in order. */
__global__ void sum_rows(float *y, const float *x, int M, int period, int C)
{
    __shared__ float parts[TPO_WARP][TPO_WARP + 1];
    const int lane = threadIdx.x, warp = threadIdx.y, c = (int)blockIdx.x * TPO_WARP + lane;
    float sum = 0.0f;
    for (int64_t m = blockIdx.y + (int64_t)warp * period; m < M && c < C; m += (int64_t)blockDim.y * period) sum += x[m * C + c];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= C) return;
    for (int i = 1; i < (int)blockDim.y; i++) sum += parts[i][lane];
    y[(int64_t)blockIdx.y * C + c] += sum;
}

extern "C" int tpo_sum_rows_cuda(struct tpo_stream *s, float *y, const float *x, int M, int period, int C)
{
    if (M < 1 || C < 1 || period < 1 || period > 65535) return TPO_EINVAL;
    const int rows = (M + period - 1) / period;
    const dim3 grid((unsigned)(C + TPO_WARP - 1) / TPO_WARP, (unsigned)period), block(TPO_WARP, rows < 16 ? 4 : TPO_WARP);
    sum_rows<<<grid, block, 0, tpo_cuda_stream(s)>>>(y, x, M, period, C);
    return tpo_cuda_launched();
}

__global__ void patchify(float *rows, const float *pixels, int H, int W, int p, int u, int64_t n)
{
    const int P = H / p, Q = W / p;
    TPO_EACH(i, n)
    {
        int64_t at = i;
        const int dx = (int)(at % p);
        at /= p;
        const int dy = (int)(at % p);
        at /= p;
        const int t = (int)(at % u);
        at /= u;
        const int c = (int)(at % 3);
        at /= 3;
        const int q = (int)(at % Q);
        at /= Q;
        const int y = (int)(at % P);
        at /= P; /* sample and tubelet */
        rows[i] = pixels[(((at * u + t) * 3 + c) * H + y * p + dy) * W + q * p + dx];
    }
}

extern "C" int tpo_patchify_cuda(struct tpo_stream *s, float *rows, const float *pixels, int B, int T, int H, int W, int patch,
                                 int tubelet)
{
    if (B < 1 || T < 1 || H < 1 || W < 1 || patch < 1 || tubelet < 1 || H % patch != 0 || W % patch != 0 || T % tubelet != 0)
        return TPO_EINVAL;
    const int64_t n = (int64_t)B * T * 3 * H * W;
    patchify<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(rows, pixels, H, W, patch, tubelet, n);
    return tpo_cuda_launched();
}
