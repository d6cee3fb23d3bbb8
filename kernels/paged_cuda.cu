/* This file owns attention over paged keys on CUDA.
 *
 * The keys of a query's head are dealt out to SPLITS x WARPS warps by their position, so that one long sequence keeps a whole GPU busy; what each
 * warp has (the maximum, the sum of weights, the sum of weighted values) is joined in one order. Nothing of that depends on other rows. */
#include "kernels/cuda.h"

#define WARPS  4
#define SPLITS 8
#define DEALT  (WARPS * SPLITS)
#define AHEAD  4 /* keys that a warp has on their way at once */

/* Where the pools hold head g of token t of row m's sequence. */
__device__ static int64_t place(const struct tpo_paged_shape &p, int m, int t, int g)
{
    const int64_t block = p.tables[(int64_t)p.seq[m] * p.max_blocks + t / p.block_tokens];
    return ((block * p.block_tokens + t % p.block_tokens) * p.G + g) * p.D;
}

__device__ static bool row_ok(const struct tpo_paged_shape &p, int m)
{
    return p.position[m] >= 0 && p.position[m] / p.block_tokens < p.max_blocks && p.seq[m] >= 0;
}

/* A lane's EACH columns of a head; zeros past D. */
template <int EACH> __device__ static void columns_of(float *to, const float *from, int D)
{
    const int first = threadIdx.x % TPO_WARP * EACH;
    if (EACH == 4 && D % 4 == 0 && (uintptr_t)from % sizeof(float4) == 0) {
        const float4 v = first < D ? *(const float4 *)(from + first) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) to[i] = first + i < D ? from[first + i] : 0.0f;
}

/* partial (M, H, SPLITS, 2 + D): a block's maximum, its sum of weights, its sum of weighted values. */
template <int EACH>
__global__ void paged(float *partial, const float *q, const float *pool_k, const float *pool_v, const struct tpo_paged_shape p,
                      int *fault)
{
    __shared__ float tops[WARPS], totals[WARPS], sums[WARPS][TPO_WARP * EACH];
    const int m = blockIdx.x, h = blockIdx.y, g = h / (p.H / p.G), lane = threadIdx.x % TPO_WARP, warp = threadIdx.x / TPO_WARP;
    float query[EACH], sum[EACH] = {}, top = -INFINITY, total = 0.0f;
    if (!row_ok(p, m)) {
        *fault = 1;
        return;
    }
    const int n = p.position[m] + 1;
    columns_of<EACH>(query, q + (int64_t)m * p.ldq + h * p.D, p.D);
    for (int t0 = (int)blockIdx.z * WARPS + warp; t0 < n; t0 += AHEAD * DEALT) {
        float key[AHEAD][EACH], value[AHEAD][EACH], score[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int64_t at = place(p, m, min(t0 + a * DEALT, n - 1), g);
            columns_of<EACH>(key[a], pool_k + at, p.D);
            columns_of<EACH>(value[a], pool_v + at, p.D);
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            score[a] = 0.0f;
#pragma unroll
            for (int i = 0; i < EACH; i++) score[a] += query[i] * key[a][i];
            score[a] = tpo_warp_sum(score[a]) * p.scale;
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (t0 + a * DEALT >= n) break;
            const float most = fmaxf(top, score[a]), shrink = expf(top - most), weight = expf(score[a] - most);
#pragma unroll
            for (int i = 0; i < EACH; i++) sum[i] = sum[i] * shrink + weight * value[a][i];
            total = total * shrink + weight;
            top = most;
        }
    }
    if (lane == 0) tops[warp] = top, totals[warp] = total;
#pragma unroll
    for (int i = 0; i < EACH; i++) sums[warp][lane * EACH + i] = sum[i];
    __syncthreads();
    float most = -INFINITY, weight[WARPS], all = 0.0f;
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w]);
    for (int w = 0; w < WARPS; w++) {
        weight[w] = tops[w] == -INFINITY ? 0.0f : expf(tops[w] - most); /* a warp that saw no key weighs nothing */
        all += weight[w] * totals[w];
    }
    float *out = partial + (((int64_t)m * p.H + h) * SPLITS + blockIdx.z) * (2 + p.D);
    if (threadIdx.x == 0) out[0] = most, out[1] = all;
    for (int c = threadIdx.x; c < p.D; c += blockDim.x) {
        float value = 0.0f;
        for (int w = 0; w < WARPS; w++) value += weight[w] * sums[w][c];
        out[2 + c] = value;
    }
}

__global__ void join(float *out, const float *partial, const struct tpo_paged_shape p)
{
    const int m = blockIdx.x, h = blockIdx.y;
    const float *part = partial + ((int64_t)m * p.H + h) * SPLITS * (2 + p.D);
    float most = -INFINITY, weight[SPLITS], all = 0.0f;
    if (!row_ok(p, m)) return;
    for (int i = 0; i < SPLITS; i++) most = fmaxf(most, part[i * (2 + p.D)]);
    for (int i = 0; i < SPLITS; i++) {
        weight[i] = part[i * (2 + p.D)] == -INFINITY ? 0.0f : expf(part[i * (2 + p.D)] - most);
        all += weight[i] * part[i * (2 + p.D) + 1];
    }
    for (int c = threadIdx.x; c < p.D; c += blockDim.x) {
        float value = 0.0f;
        for (int i = 0; i < SPLITS; i++) value += weight[i] * part[i * (2 + p.D) + 2 + c];
        out[(int64_t)m * p.ldo + h * p.D + c] = value / all;
    }
}

__global__ void write(float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv,
                      const struct tpo_paged_shape p, int *fault)
{
    const int m = blockIdx.x;
    if (!row_ok(p, m)) {
        *fault = 1;
        return;
    }
    const int64_t at = place(p, m, p.position[m], 0);
    for (int c = threadIdx.x; c < p.G * p.D; c += blockDim.x) {
        pool_k[at + c] = k[(int64_t)m * ldk + c];
        pool_v[at + c] = v[(int64_t)m * ldv + c];
    }
}

static int shape_ok(const struct tpo_paged_shape *p)
{
    return p->M > 0 && p->H > 0 && p->H <= 65535 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256 &&
           p->block_tokens > 0 && p->max_blocks > 0;
}

extern "C" int tpo_attention_paged_cuda(struct tpo_stream *s, float *out, const float *q, const float *pool_k, const float *pool_v,
                                        const struct tpo_paged_shape *shape)
{
    if (!shape_ok(shape) || shape->ldq < shape->H * shape->D || shape->ldo < shape->H * shape->D) return TPO_EINVAL;
    const dim3 grid((unsigned)shape->M, (unsigned)shape->H, SPLITS), rows((unsigned)shape->M, (unsigned)shape->H);
    const unsigned threads = WARPS * TPO_WARP;
    float *partial =
        (float *)tpo_cuda_scratch(s, (size_t)shape->M * (size_t)shape->H * SPLITS * (size_t)(2 + shape->D) * sizeof(float));
    int *fault = tpo_cuda_of(s)->fault;
    if (partial == NULL) return TPO_ENOMEM;
    if (shape->D <= 32)
        paged<1><<<grid, threads, 0, tpo_cuda_stream(s)>>>(partial, q, pool_k, pool_v, *shape, fault);
    else if (shape->D <= 64)
        paged<2><<<grid, threads, 0, tpo_cuda_stream(s)>>>(partial, q, pool_k, pool_v, *shape, fault);
    else if (shape->D <= 128)
        paged<4><<<grid, threads, 0, tpo_cuda_stream(s)>>>(partial, q, pool_k, pool_v, *shape, fault);
    else
        paged<8><<<grid, threads, 0, tpo_cuda_stream(s)>>>(partial, q, pool_k, pool_v, *shape, fault);
    join<<<rows, threads, 0, tpo_cuda_stream(s)>>>(out, partial, *shape);
    return tpo_cuda_launched();
}

extern "C" int tpo_kv_write_cuda(struct tpo_stream *s, float *pool_k, float *pool_v, const float *k, int ldk, const float *v,
                                 int ldv, const struct tpo_paged_shape *shape)
{
    if (!shape_ok(shape) || ldk < shape->G * shape->D || ldv < shape->G * shape->D) return TPO_EINVAL;
    write<<<shape->M, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(pool_k, pool_v, k, ldk, v, ldv, *shape, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}
