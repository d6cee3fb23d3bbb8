/* This file owns attention over contiguous keys on CUDA, forward and backward.
 *
 * A block of 256 threads owns a tile of query rows (forward, dq) or of keys (dk, dv) of one head and walks the tiles of the other side, with the
 * running maximum of Milakov & Gimelshein 2018 forward and the recomputed probabilities of Dao 2022 (arXiv:2205.14135) backward. The threads are a
 * 16 x 16 grid; each holds a patch of the tile of scores: PATCH rows that lie together, PATCH columns that lie 16 apart. Everything is f32 and summed
 * in one order; dq and dk are made by two kernels, so that nobody adds to what another wrote. */
#include "kernels/attention_cuda.h"

#define SIDE 16 /* of the grid of threads */

/* How wide a head is taken, and how many rows a tile then has: what fits shared memory. */
template <int WIDE>
struct tile {
    static const int wide = WIDE, rows = WIDE <= 128 ? 64 : 32, patch = rows / SIDE, columns = WIDE / SIDE;
    static const int ld = WIDE + 4, ld_score = rows + 4; /* four more: neighbours start at other banks */
};

/* Rows first.. of a (rows, D) matrix with distance `from_ld`; zeros past n rows and past D. */
template <typename Tile>
__device__ static void load(float *to, const float *from, int64_t from_ld, int n, int D)
{
    for (int i = threadIdx.x; i < Tile::rows * Tile::wide; i += SIDE * SIDE) {
        const int r = i / Tile::wide, c = i % Tile::wide;
        to[r * Tile::ld + c] = r < n && c < D ? from[r * from_ld + c] : 0.0f;
    }
}

/* patch += a b^T, for rows ty*patch.. of a and rows tx + 16 j of b. */
template <typename Tile>
__device__ static void scores(float patch[Tile::patch][Tile::patch], const float *a, const float *b)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int c = 0; c < Tile::wide; c += 4) {
        float4 row[Tile::patch], key[Tile::patch];
#pragma unroll
        for (int i = 0; i < Tile::patch; i++) row[i] = *(const float4 *)(a + (ty * Tile::patch + i) * Tile::ld + c);
#pragma unroll
        for (int j = 0; j < Tile::patch; j++) key[j] = *(const float4 *)(b + (tx + SIDE * j) * Tile::ld + c);
#pragma unroll
        for (int i = 0; i < Tile::patch; i++)
#pragma unroll
            for (int j = 0; j < Tile::patch; j++)
                patch[i][j] += row[i].x * key[j].x + row[i].y * key[j].y + row[i].z * key[j].z + row[i].w * key[j].w;
    }
}

/* sum (rows ty*patch.., columns tx + 16 c) += p v, p (rows, rows) as stored by `keep`. */
template <typename Tile>
__device__ static void weigh(float sum[Tile::patch][Tile::columns], const float *p, const float *v)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int k = 0; k < Tile::rows; k++) {
        float value[Tile::columns];
#pragma unroll
        for (int c = 0; c < Tile::columns; c++) value[c] = v[k * Tile::ld + tx + SIDE * c];
#pragma unroll
        for (int i = 0; i < Tile::patch; i++) {
            const float weight = p[(ty * Tile::patch + i) * Tile::ld_score + k];
#pragma unroll
            for (int c = 0; c < Tile::columns; c++) sum[i][c] += weight * value[c];
        }
    }
}

/* The same with p^T: the thread's rows are p's columns. */
template <typename Tile>
__device__ static void weigh_turned(float sum[Tile::patch][Tile::columns], const float *p, const float *v)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int k = 0; k < Tile::rows; k++) {
        float value[Tile::columns];
#pragma unroll
        for (int c = 0; c < Tile::columns; c++) value[c] = v[k * Tile::ld + tx + SIDE * c];
#pragma unroll
        for (int i = 0; i < Tile::patch; i++) {
            const float weight = p[k * Tile::ld_score + ty * Tile::patch + i];
#pragma unroll
            for (int c = 0; c < Tile::columns; c++) sum[i][c] += weight * value[c];
        }
    }
}

template <typename Tile>
__device__ static void keep(float *p, const float patch[Tile::patch][Tile::patch])
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < Tile::patch; i++)
#pragma unroll
        for (int j = 0; j < Tile::patch; j++) p[(ty * Tile::patch + i) * Tile::ld_score + tx + SIDE * j] = patch[i][j];
}

/* Which of the patch's pairs see each other, a bit each, and whether any pair of the whole tile does. */
template <typename Tile>
__device__ static unsigned seen_pairs(bool *any, const struct tpo_attention_shape &p, int b, int t0, int s0)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    unsigned pairs = 0;
    for (int i = 0; i < Tile::patch; i++)
        for (int j = 0; j < Tile::patch; j++) {
            const int t = t0 + ty * Tile::patch + i, s = s0 + tx + SIDE * j;
            if (t < p.T && s < p.S && tpo_cuda_visible(p, b, t, s)) pairs |= 1u << (i * Tile::patch + j);
        }
    *any = __syncthreads_or(pairs != 0);
    return pairs;
}

/* Over the 16 threads that share rows. */
__device__ static float row_max(float x)
{
    for (int d = SIDE / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

__device__ static float row_sum(float x)
{
    for (int d = SIDE / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ static void causal_end(int *end, const struct tpo_attention_shape &p, int b, int t_last)
{
    *end = p.key_len != NULL ? min(max(p.key_len[b], 0), p.S) : p.S;
    if (p.causal) *end = min(*end, max(t_last + p.S - p.T + 1, 0));
}

template <typename Tile>
__global__ void __launch_bounds__(SIDE *SIDE) forward(float *out, float *lse, const float *q, const float *k, const float *v, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    float *q_tile = (float *)shared, *k_tile = q_tile + Tile::rows * Tile::ld, *v_tile = k_tile + Tile::rows * Tile::ld,
          *weights = v_tile + Tile::rows * Tile::ld;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE, t0 = (int)blockIdx.x * Tile::rows, h = blockIdx.y % p.H, b = blockIdx.y / p.H;
    const int g = h / (p.H / p.G), rows = min(Tile::rows, p.T - t0);
    float top[Tile::patch], total[Tile::patch], sum[Tile::patch][Tile::columns] = {};
    int end;
    for (int i = 0; i < Tile::patch; i++) top[i] = -INFINITY, total[i] = 0.0f;
    load<Tile>(q_tile, q + ((int64_t)b * p.T + t0) * p.ldq + h * p.D, p.ldq, rows, p.D);
    causal_end(&end, p, b, t0 + rows - 1);
    for (int s0 = 0; s0 < end; s0 += Tile::rows) {
        bool any;
        const unsigned pairs = seen_pairs<Tile>(&any, p, b, t0, s0);
        if (!any) continue;
        const int64_t at = (int64_t)b * p.S + s0;
        load<Tile>(k_tile, k + at * p.ldk + g * p.D, p.ldk, min(Tile::rows, p.S - s0), p.D);
        load<Tile>(v_tile, v + at * p.ldv + g * p.D, p.ldv, min(Tile::rows, p.S - s0), p.D);
        __syncthreads();
        float score[Tile::patch][Tile::patch] = {};
        scores<Tile>(score, q_tile, k_tile);
#pragma unroll
        for (int i = 0; i < Tile::patch; i++) {
            float most = -INFINITY, some = 0.0f;
#pragma unroll
            for (int j = 0; j < Tile::patch; j++) {
                score[i][j] = pairs >> (i * Tile::patch + j) & 1u ? score[i][j] * p.scale : -INFINITY;
                most = fmaxf(most, score[i][j]);
            }
            most = fmaxf(top[i], row_max(most));
            const float shrink = top[i] == -INFINITY ? 0.0f : expf(top[i] - most);
#pragma unroll
            for (int j = 0; j < Tile::patch; j++) {
                score[i][j] = score[i][j] == -INFINITY ? 0.0f : expf(score[i][j] - most);
                some += score[i][j];
            }
            total[i] = total[i] * shrink + row_sum(some);
            top[i] = most;
#pragma unroll
            for (int c = 0; c < Tile::columns; c++) sum[i][c] *= shrink;
        }
        keep<Tile>(weights, score);
        __syncthreads();
        weigh<Tile>(sum, weights, v_tile);
        __syncthreads();
    }
    for (int i = 0; i < Tile::patch; i++) {
        const int t = t0 + ty * Tile::patch + i;
        if (t >= p.T) continue;
        const int64_t row = (int64_t)b * p.T + t;
        const float share = total[i] > 0.0f ? 1.0f / total[i] : 0.0f;
        for (int c = 0; c < Tile::columns; c++)
            if (tx + SIDE * c < p.D) out[row * p.ldo + h * p.D + tx + SIDE * c] = sum[i][c] * share;
        if (lse != NULL && tx == 0) lse[row * p.H + h] = top[i] == -INFINITY ? -INFINITY : top[i] + logf(total[i]);
    }
}

struct grad {
    float *dq, *dk, *dv;
    const float *dout, *lse, *delta, *q, *k, *v;
    int add;
};

/* delta = the sum of dout out over a row's head, (B*T, H): a warp for each. */
__global__ void row_deltas(float *delta, const float *dout, const float *out, const struct tpo_attention_shape p)
{
    const int lane = threadIdx.x % TPO_WARP;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / TPO_WARP) + threadIdx.x / TPO_WARP;
    if (i >= (int64_t)p.B * p.T * p.H) return;
    const int64_t at = i / p.H * p.ldo + i % p.H * p.D;
    float sum = 0.0f;
    for (int c = lane; c < p.D; c += TPO_WARP) sum += dout[at + c] * out[at + c];
    sum = tpo_warp_sum(sum);
    if (lane == 0) delta[i] = sum;
}

/* Probabilities and the gradient of the scores of one tile of queries and keys, the patch of this thread. */
template <typename Tile>
__device__ static void slopes(float prob[Tile::patch][Tile::patch], float slope[Tile::patch][Tile::patch], const float *q_tile, const float *dout_tile,
                              const float *k_tile, const float *v_tile, unsigned pairs, const struct grad &g, const struct tpo_attention_shape &p, int b,
                              int h, int t0)
{
    const int ty = threadIdx.x / SIDE;
    scores<Tile>(prob, q_tile, k_tile);
    scores<Tile>(slope, dout_tile, v_tile);
#pragma unroll
    for (int i = 0; i < Tile::patch; i++) {
        const int t = t0 + ty * Tile::patch + i;
        const int64_t row = ((int64_t)b * p.T + t) * p.H + h;
        const float lse = t < p.T ? g.lse[row] : 0.0f, delta = t < p.T ? g.delta[row] : 0.0f;
#pragma unroll
        for (int j = 0; j < Tile::patch; j++) {
            const bool seen = pairs >> (i * Tile::patch + j) & 1u;
            prob[i][j] = seen ? expf(prob[i][j] * p.scale - lse) : 0.0f;
            slope[i][j] = seen ? prob[i][j] * (slope[i][j] - delta) * p.scale : 0.0f;
        }
    }
}

template <typename Tile>
__device__ static void put(float *to, int64_t ld, const float sum[Tile::patch][Tile::columns], int n, int D, int add)
{
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    for (int i = 0; i < Tile::patch; i++) {
        const int r = ty * Tile::patch + i;
        for (int c = 0; c < Tile::columns; c++) {
            if (r >= n || tx + SIDE * c >= D) continue;
            float *place = to + r * ld + tx + SIDE * c;
            *place = add ? *place + sum[i][c] : sum[i][c];
        }
    }
}

template <typename Tile>
__global__ void __launch_bounds__(SIDE *SIDE) query_grad(const struct grad g, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    const int size = Tile::rows * Tile::ld;
    float *q_tile = (float *)shared, *dout_tile = q_tile + size, *k_tile = dout_tile + size, *v_tile = k_tile + size, *weights = v_tile + size;
    const int t0 = (int)blockIdx.x * Tile::rows, h = blockIdx.y % p.H, b = blockIdx.y / p.H, group = h / (p.H / p.G), rows = min(Tile::rows, p.T - t0);
    const int64_t row = (int64_t)b * p.T + t0;
    float sum[Tile::patch][Tile::columns] = {};
    int end;
    load<Tile>(q_tile, g.q + row * p.ldq + h * p.D, p.ldq, rows, p.D);
    load<Tile>(dout_tile, g.dout + row * p.ldo + h * p.D, p.ldo, rows, p.D);
    causal_end(&end, p, b, t0 + rows - 1);
    for (int s0 = 0; s0 < end; s0 += Tile::rows) {
        bool any;
        const unsigned pairs = seen_pairs<Tile>(&any, p, b, t0, s0);
        if (!any) continue;
        const int64_t at = (int64_t)b * p.S + s0;
        load<Tile>(k_tile, g.k + at * p.ldk + group * p.D, p.ldk, min(Tile::rows, p.S - s0), p.D);
        load<Tile>(v_tile, g.v + at * p.ldv + group * p.D, p.ldv, min(Tile::rows, p.S - s0), p.D);
        __syncthreads();
        float prob[Tile::patch][Tile::patch] = {}, slope[Tile::patch][Tile::patch] = {};
        slopes<Tile>(prob, slope, q_tile, dout_tile, k_tile, v_tile, pairs, g, p, b, h, t0);
        keep<Tile>(weights, slope);
        __syncthreads();
        weigh<Tile>(sum, weights, k_tile);
        __syncthreads();
    }
    put<Tile>(g.dq + row * p.ldq + h * p.D, p.ldq, sum, rows, p.D, g.add);
}

template <typename Tile>
__global__ void __launch_bounds__(SIDE *SIDE) key_grad(const struct grad g, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    const int size = Tile::rows * Tile::ld;
    float *q_tile = (float *)shared, *dout_tile = q_tile + size, *k_tile = dout_tile + size, *v_tile = k_tile + size, *weights = v_tile + size;
    const int s0 = (int)blockIdx.x * Tile::rows, group = blockIdx.y % p.G, b = blockIdx.y / p.G, per_group = p.H / p.G, keys = min(Tile::rows, p.S - s0);
    const int64_t at = (int64_t)b * p.S + s0;
    float dk[Tile::patch][Tile::columns] = {}, dv[Tile::patch][Tile::columns] = {};
    load<Tile>(k_tile, g.k + at * p.ldk + group * p.D, p.ldk, keys, p.D);
    load<Tile>(v_tile, g.v + at * p.ldv + group * p.D, p.ldv, keys, p.D);
    const int begin = p.causal ? max(s0 - (p.S - p.T), 0) / Tile::rows * Tile::rows : 0; /* the first query that sees a key of the tile */
    for (int h = group * per_group; h < (group + 1) * per_group; h++)
        for (int t0 = begin; t0 < p.T; t0 += Tile::rows) {
            bool any;
            const unsigned pairs = seen_pairs<Tile>(&any, p, b, t0, s0);
            if (!any) continue;
            const int64_t row = (int64_t)b * p.T + t0;
            load<Tile>(q_tile, g.q + row * p.ldq + h * p.D, p.ldq, min(Tile::rows, p.T - t0), p.D);
            load<Tile>(dout_tile, g.dout + row * p.ldo + h * p.D, p.ldo, min(Tile::rows, p.T - t0), p.D);
            __syncthreads();
            float prob[Tile::patch][Tile::patch] = {}, slope[Tile::patch][Tile::patch] = {};
            slopes<Tile>(prob, slope, q_tile, dout_tile, k_tile, v_tile, pairs, g, p, b, h, t0);
            keep<Tile>(weights, prob);
            __syncthreads();
            weigh_turned<Tile>(dv, weights, dout_tile);
            __syncthreads();
            keep<Tile>(weights, slope);
            __syncthreads();
            weigh_turned<Tile>(dk, weights, q_tile);
            __syncthreads();
        }
    put<Tile>(g.dk + at * p.ldk + group * p.D, p.ldk, dk, keys, p.D, g.add);
    put<Tile>(g.dv + at * p.ldv + group * p.D, p.ldv, dv, keys, p.D, g.add);
}

static int shape_ok(const struct tpo_attention_shape *p)
{
    return p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256 &&
           (int64_t)p->B * p->H <= 65535; /* a grid's height */
}

template <typename Tile>
static size_t shared_bytes(int tiles)
{
    return (size_t)(tiles * Tile::rows * Tile::ld + Tile::rows * Tile::ld_score) * sizeof(float);
}

/* Shared memory beyond 48 KB is asked for by name. */
template <typename Kernel>
static int allow(Kernel kernel, size_t bytes)
{
    return tpo_cuda_code(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
}

template <int WIDE>
static int run_forward(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v, const struct tpo_attention_shape *p)
{
    typedef tile<WIDE> Tile;
    const size_t bytes = shared_bytes<Tile>(3);
    const dim3 grid((unsigned)(p->T + Tile::rows - 1) / Tile::rows, (unsigned)(p->B * p->H));
    const int rc = allow(forward<Tile>, bytes);
    if (rc != TPO_OK) return rc;
    forward<Tile><<<grid, SIDE * SIDE, bytes, tpo_cuda_stream(s)>>>(out, lse, q, k, v, *p);
    return tpo_cuda_launched();
}

template <int WIDE>
static int run_backward(struct tpo_stream *s, const struct grad *g, const struct tpo_attention_shape *p)
{
    typedef tile<WIDE> Tile;
    const size_t bytes = shared_bytes<Tile>(4);
    const dim3 queries((unsigned)(p->T + Tile::rows - 1) / Tile::rows, (unsigned)(p->B * p->H));
    const dim3 keys((unsigned)(p->S + Tile::rows - 1) / Tile::rows, (unsigned)(p->B * p->G));
    int rc = allow(query_grad<Tile>, bytes);
    if (rc == TPO_OK) rc = allow(key_grad<Tile>, bytes);
    if (rc != TPO_OK) return rc;
    query_grad<Tile><<<queries, SIDE * SIDE, bytes, tpo_cuda_stream(s)>>>(*g, *p);
    key_grad<Tile><<<keys, SIDE * SIDE, bytes, tpo_cuda_stream(s)>>>(*g, *p);
    return tpo_cuda_launched();
}

extern "C" int tpo_attention_cuda(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                                  const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    const int D = shape->D;
    return D <= 32    ? run_forward<32>(s, out, lse, q, k, v, shape)
           : D <= 64  ? run_forward<64>(s, out, lse, q, k, v, shape)
           : D <= 128 ? run_forward<128>(s, out, lse, q, k, v, shape)
                      : run_forward<256>(s, out, lse, q, k, v, shape);
}

extern "C" int tpo_attention_grad_cuda(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                                       const float *q, const float *k, const float *v, int add, const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    const int D = shape->D, warps = TPO_THREADS / TPO_WARP;
    const int64_t n = (int64_t)shape->B * shape->T * shape->H;
    float *delta = (float *)tpo_cuda_scratch(s, (size_t)n * sizeof(float));
    if (delta == NULL) return TPO_ENOMEM;
    row_deltas<<<(unsigned)((n + warps - 1) / warps), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(delta, dout, out, *shape);
    const struct grad g = {dq, dk, dv, dout, lse, delta, q, k, v, add};
    return D <= 32    ? run_backward<32>(s, &g, shape)
           : D <= 64  ? run_backward<64>(s, &g, shape)
           : D <= 128 ? run_backward<128>(s, &g, shape)
                      : run_backward<256>(s, &g, shape);
}
