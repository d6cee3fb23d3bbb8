/* This file owns attention over paged keys on CUDA: a block for each query and head, whose warps share out the keys and join at the end. */
#include "kernels/cuda.h"

#define WARPS 4
#define MOST  8 /* columns of a head to a lane: 256 / 32 */

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

__global__ void paged(float *out, const float *q, const float *pool_k, const float *pool_v, const struct tpo_paged_shape p, int *fault)
{
    __shared__ float tops[WARPS], totals[WARPS], sums[WARPS][TPO_WARP * MOST];
    const int m = blockIdx.x, h = blockIdx.y, g = h / (p.H / p.G), lane = threadIdx.x % TPO_WARP, warp = threadIdx.x / TPO_WARP;
    float query[MOST], sum[MOST] = {0.0f}, top = -INFINITY, total = 0.0f;
    if (!row_ok(p, m)) {
        *fault = 1;
        return;
    }
    for (int i = 0; i < MOST; i++) query[i] = lane + TPO_WARP * i < p.D ? q[(int64_t)m * p.ldq + h * p.D + lane + TPO_WARP * i] : 0.0f;
    for (int t = warp; t <= p.position[m]; t += WARPS) {
        const int64_t at = place(p, m, t, g);
        float dot = 0.0f;
        for (int i = 0; i < MOST; i++)
            if (lane + TPO_WARP * i < p.D) dot += query[i] * pool_k[at + lane + TPO_WARP * i];
        const float score = tpo_warp_sum(dot) * p.scale, most = fmaxf(top, score), shrink = expf(top - most), weight = expf(score - most);
        for (int i = 0; i < MOST; i++)
            if (lane + TPO_WARP * i < p.D) sum[i] = sum[i] * shrink + weight * pool_v[at + lane + TPO_WARP * i];
        total = total * shrink + weight;
        top = most;
    }
    if (lane == 0) tops[warp] = top, totals[warp] = total;
    for (int i = 0; i < MOST; i++) sums[warp][lane + TPO_WARP * i] = sum[i];
    __syncthreads();
    float most = -INFINITY, weight[WARPS], all = 0.0f;
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w]);
    for (int w = 0; w < WARPS; w++) {
        weight[w] = expf(tops[w] - most); /* a warp that saw no key weighs nothing */
        all += weight[w] * totals[w];
    }
    for (int c = threadIdx.x; c < p.D; c += blockDim.x) {
        float value = 0.0f;
        for (int w = 0; w < WARPS; w++) value += weight[w] * sums[w][c];
        out[(int64_t)m * p.ldo + h * p.D + c] = value / all;
    }
}

__global__ void write(float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv, const struct tpo_paged_shape p, int *fault)
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
    return p->M > 0 && p->H > 0 && p->H <= 65535 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256 && p->block_tokens > 0 && p->max_blocks > 0;
}

extern "C" int tpo_attention_paged_cuda(struct tpo_stream *s, float *out, const float *q, const float *pool_k, const float *pool_v,
                                        const struct tpo_paged_shape *shape)
{
    if (!shape_ok(shape) || shape->ldq < shape->H * shape->D || shape->ldo < shape->H * shape->D) return TPO_EINVAL;
    const dim3 grid((unsigned)shape->M, (unsigned)shape->H);
    paged<<<grid, WARPS * TPO_WARP, 0, tpo_cuda_stream(s)>>>(out, q, pool_k, pool_v, *shape, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}

extern "C" int tpo_kv_write_cuda(struct tpo_stream *s, float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv,
                                 const struct tpo_paged_shape *shape)
{
    if (!shape_ok(shape) || ldk < shape->G * shape->D || ldv < shape->G * shape->D) return TPO_EINVAL;
    write<<<shape->M, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(pool_k, pool_v, k, ldk, v, ldv, *shape, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}
