/* This file owns attention over contiguous keys on CUDA, forward and backward.
 *
 * A block of four warps owns 64 rows of one side (queries for out and dq, keys for dk and dv), 16 to a warp, and walks tiles of the other side,
 * with the running maximum of Milakov & Gimelshein 2018 forward and the recomputed probabilities of Dao 2022 (arXiv:2205.14135) backward. dq and
 * dk are made by two kernels, so that nobody adds to what another wrote; everything is summed in one order.
 *
 * Products run on the tensor cores in TF32, which has 11 bits of a mantissa: each number goes as a large part and the rest of it, and three products
 * (large x rest, rest x large, large x large) hold 22 bits, the accuracy of f32 arithmetic (Markidis et al. 2018, arXiv:1803.04014). */
#include "kernels/attention_cuda.h"

#define WARPS 4
#define OWN   (16 * WARPS) /* rows of the block's own side */

/* How wide a head is taken, and how many rows a tile of the other side has: what fits shared memory and registers. */
template <int WIDE> struct tile {
    static const int wide = WIDE, rows = WIDE <= 128 ? 64 : 32, ld = WIDE + 4; /* four more: the lanes of a load meet 32 banks */
    static const int score_blocks = rows / 8, wide_blocks = WIDE / 8;
};

/* --- the tensor cores ------------------------------------------------------------------------------------------------------------------- */

/* x = large + rest, both as TF32, rounded; of an infinity or a NaN the large part is one too (the NaN that a GPU makes is all ones, and rounding it
 * would carry into the sign). */
__device__ static void split(unsigned *large, unsigned *rest, float x)
{
    const unsigned bits = __float_as_uint(x);
    *large = (x == x ? bits + 0x1000u : bits) & 0xffffe000u;
    *rest = __float_as_uint(x - __uint_as_float(*large)) + 0x1000u;
}

/* sum (16, 8) += a (16, 8) b (8, 8), f32 in and out. With g = lane / 4 and t = lane % 4 a lane holds of a the elements (g, t), (g + 8, t), (g, t
 * + 4), (g + 8, t + 4), of b (t, g), (t + 4, g), of the sum (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). */
struct operand_a {
    unsigned large[4], rest[4];
};

__device__ static struct operand_a operand_of(float a0, float a1, float a2, float a3)
{
    struct operand_a a;
    split(&a.large[0], &a.rest[0], a0);
    split(&a.large[1], &a.rest[1], a1);
    split(&a.large[2], &a.rest[2], a2);
    split(&a.large[3], &a.rest[3], a3);
    return a;
}

__device__ static void multiply_once(float sum[4], const unsigned a[4], const unsigned b[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ static void multiply(float sum[4], const struct operand_a *a, float b0, float b1)
{
    unsigned large[2], rest[2];
    split(&large[0], &rest[0], b0);
    split(&large[1], &rest[1], b1);
    multiply_once(sum, a->large, rest);
    multiply_once(sum, a->rest, large);
    multiply_once(sum, a->large, large);
}

/* Rows of n (at most `rows`) by D with distance from_ld; zeros past both. */
template <typename Tile> __device__ static void load(float *to, const float *from, int64_t from_ld, int rows, int n, int D)
{
    if (D % 4 == 0 && from_ld % 4 == 0 && (uintptr_t)from % sizeof(float4) == 0) {
        for (int i = threadIdx.x; i < rows * Tile::wide / 4; i += WARPS * TPO_WARP) {
            const int r = i / (Tile::wide / 4), c = i % (Tile::wide / 4) * 4;
            *(float4 *)(to + r * Tile::ld + c) =
                r < n && c < D ? *(const float4 *)(from + r * from_ld + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        return;
    }
    for (int i = threadIdx.x; i < rows * Tile::wide; i += WARPS * TPO_WARP) {
        const int r = i / Tile::wide, c = i % Tile::wide;
        to[r * Tile::ld + c] = r < n && c < D ? from[r * from_ld + c] : 0.0f;
    }
}

/* score (16 own rows of this warp, Tile::rows) = own other^T. */
template <typename Tile> __device__ static void scores(float score[Tile::score_blocks][4], const float *own, const float *other)
{
    const int lane = threadIdx.x % TPO_WARP, g = lane / 4, t = lane % 4;
    own += threadIdx.x / TPO_WARP * 16 * Tile::ld;
#pragma unroll
    for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) score[j][i] = 0.0f;
    for (int k = 0; k < Tile::wide; k += 8) {
        const float *a = own + g * Tile::ld + k + t;
        const struct operand_a rows = operand_of(a[0], a[8 * Tile::ld], a[4], a[8 * Tile::ld + 4]);
#pragma unroll
        for (int j = 0; j < Tile::score_blocks; j++) {
            const float *b = other + (8 * j + g) * Tile::ld + k + t;
            multiply(score[j], &rows, b[0], b[4]);
        }
    }
}

/* sum (16 own rows, wide) += weight (16 own rows, Tile::rows) other. The sum's layout becomes the operand's by taking the other side's rows in the
 * order 0, 2, 4, 6, 1, 3, 5, 7 of each eight. */
template <typename Tile>
__device__ static void weigh(float sum[Tile::wide_blocks][4], const float weight[Tile::score_blocks][4], const float *other)
{
    const int lane = threadIdx.x % TPO_WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < Tile::score_blocks; j++) {
        const struct operand_a rows = operand_of(weight[j][0], weight[j][2], weight[j][1], weight[j][3]);
        const float *b = other + (8 * j + 2 * t) * Tile::ld + g;
#pragma unroll
        for (int c = 0; c < Tile::wide_blocks; c++) multiply(sum[c], &rows, b[8 * c], b[8 * c + Tile::ld]);
    }
}

/* Writes or adds the warp's rows of a sum, each times its factor (of row g, of row g + 8), to a (.., D) matrix whose row 0 is the block's first. */
template <typename Tile>
__device__ static void put(float *to, int64_t ld, const float sum[Tile::wide_blocks][4], float factor, float factor8, int n, int D,
                           int add)
{
    const int lane = threadIdx.x % TPO_WARP, r = threadIdx.x / TPO_WARP * 16 + lane / 4;
#pragma unroll
    for (int c = 0; c < Tile::wide_blocks; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = r + i / 2 * 8, column = 8 * c + lane % 4 * 2 + i % 2;
            if (row >= n || column >= D) continue;
            float *place = to + row * ld + column, value = sum[c][i] * (i < 2 ? factor : factor8);
            *place = add ? *place + value : value;
        }
}

/* --- who sees whom ---------------------------------------------------------------------------------------------------------------------- */

#define NO_SEGMENT INT32_MIN

/* A query: the key at its own place and that one's segment. A key: its place and its segment. Past the end a query is before all keys, a key behind
 * all queries. */
struct place {
    int at;
    int32_t segment;
};

__device__ static struct place query_place(const struct tpo_attention_shape &p, int b, int t)
{
    const int at = t + p.S - p.T;
    struct place place = {at, NO_SEGMENT};
    if (t >= p.T) place.at = -1;
    if (t < p.T && p.segments != NULL && at >= 0 && at < p.S) place.segment = p.segments[(int64_t)b * p.S + at];
    return place;
}

__device__ static struct place key_place(const struct tpo_attention_shape &p, int b, int s)
{
    struct place place = {s, 0};
    if (s >= p.S || (p.key_len != NULL && s >= p.key_len[b])) place.at = INT32_MAX;
    if (s < p.S && p.segments != NULL) place.segment = p.segments[(int64_t)b * p.S + s];
    return place;
}

__device__ static bool sees(const struct tpo_attention_shape &p, struct place query, struct place key, bool query_there)
{
    return query_there && key.at < p.S && (!p.causal || key.at <= query.at) &&
           (p.segments == NULL || key.segment == 0 || key.segment == query.segment);
}

/* A bit for each of the warp's scores that this lane holds: 4 * block + element. OWN_QUERIES: the own side asks. */
template <typename Tile, bool OWN_QUERIES>
__device__ static unsigned seen_pairs(const struct tpo_attention_shape &p, int b, int own0, int other0, struct place *others)
{
    const int lane = threadIdx.x % TPO_WARP, row = own0 + threadIdx.x / TPO_WARP * 16 + lane / 4;
    for (int i = threadIdx.x; i < Tile::rows; i += WARPS * TPO_WARP)
        others[i] = OWN_QUERIES ? key_place(p, b, other0 + i) : query_place(p, b, other0 + i);
    __syncthreads();
    const struct place own[2] = {OWN_QUERIES ? query_place(p, b, row) : key_place(p, b, row),
                                 OWN_QUERIES ? query_place(p, b, row + 8) : key_place(p, b, row + 8)};
    unsigned pairs = 0;
#pragma unroll
    for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int other = 8 * j + lane % 4 * 2 + i % 2;
            const bool seen = OWN_QUERIES ? sees(p, own[i / 2], others[other], row + i / 2 * 8 < p.T)
                                          : sees(p, others[other], own[i / 2], other0 + other < p.T);
            if (seen) pairs |= 1u << (4 * j + i);
        }
    return pairs;
}

__device__ static bool seen(unsigned pairs, int j, int i)
{
    return pairs >> (4 * j + i) & 1u;
}

/* Over the four lanes that share a row. */
__device__ static float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ static float row_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Keys that any query up to t_last sees. */
__device__ static int keys_end(const struct tpo_attention_shape &p, int b, int t_last)
{
    const int end = p.key_len != NULL ? min(max(p.key_len[b], 0), p.S) : p.S;
    return p.causal ? min(end, max(t_last + p.S - p.T + 1, 0)) : end;
}

/* --- forward ---------------------------------------------------------------------------------------------------------------------------- */

/* One tile's scores become weights; the rows' maximum and total move on, `sum` shrinks to the new maximum. */
template <typename Tile>
__device__ static void soften(float score[Tile::score_blocks][4], float top[2], float total[2], float sum[Tile::wide_blocks][4],
                              unsigned pairs, float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY, some = 0.0f;
#pragma unroll
        for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                score[j][i] = seen(pairs, j, i) ? score[j][i] * scale : -INFINITY;
                most = fmaxf(most, score[j][i]);
            }
        most = fmaxf(top[half], row_max(most));
        const float shrink = top[half] == -INFINITY ? 0.0f : expf(top[half] - most);
#pragma unroll
        for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                score[j][i] = score[j][i] == -INFINITY ? 0.0f : expf(score[j][i] - most);
                some += score[j][i];
            }
        total[half] = total[half] * shrink + row_sum(some);
        top[half] = most;
#pragma unroll
        for (int c = 0; c < Tile::wide_blocks; c++) sum[c][2 * half] *= shrink, sum[c][2 * half + 1] *= shrink;
    }
}

template <typename Tile>
__global__ void __launch_bounds__(WARPS *TPO_WARP)
    forward(float *out, float *lse, const float *q, const float *k, const float *v, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    __shared__ struct place others[Tile::rows];
    float *q_tile = (float *)shared, *k_tile = q_tile + OWN * Tile::ld, *v_tile = k_tile + Tile::rows * Tile::ld;
    const int t0 = (int)blockIdx.x * OWN, h = blockIdx.y % p.H, b = blockIdx.y / p.H, g = h / (p.H / p.G),
              rows = min(OWN, p.T - t0);
    const int64_t row0 = (int64_t)b * p.T + t0;
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, sum[Tile::wide_blocks][4] = {}, score[Tile::score_blocks][4];
    load<Tile>(q_tile, q + row0 * p.ldq + h * p.D, p.ldq, OWN, rows, p.D);
    const int end = keys_end(p, b, t0 + rows - 1);
    for (int s0 = 0; s0 < end; s0 += Tile::rows) {
        const unsigned pairs = seen_pairs<Tile, true>(p, b, t0, s0, others);
        if (!__syncthreads_or(pairs != 0)) continue;
        const int64_t at = (int64_t)b * p.S + s0;
        const int keys = min(Tile::rows, end - s0);
        load<Tile>(k_tile, k + at * p.ldk + g * p.D, p.ldk, Tile::rows, keys, p.D);
        load<Tile>(v_tile, v + at * p.ldv + g * p.D, p.ldv, Tile::rows, keys, p.D);
        __syncthreads();
        scores<Tile>(score, q_tile, k_tile);
        soften<Tile>(score, top, total, sum, pairs, p.scale);
        weigh<Tile>(sum, score, v_tile);
        __syncthreads();
    }
    put<Tile>(out + row0 * p.ldo + h * p.D, p.ldo, sum, total[0] > 0.0f ? 1.0f / total[0] : 0.0f,
              total[1] > 0.0f ? 1.0f / total[1] : 0.0f, rows, p.D, 0);
    const int row = threadIdx.x / TPO_WARP * 16 + threadIdx.x % TPO_WARP / 4;
    for (int half = 0; half < 2; half++)
        if (lse != NULL && threadIdx.x % 4 == 0 && row + 8 * half < rows)
            lse[(row0 + row + 8 * half) * p.H + h] = top[half] + logf(total[half]); /* -infinity where no key was seen */
}

/* --- backward --------------------------------------------------------------------------------------------------------------------------- */

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

/* Own rows are queries: dq. */
template <typename Tile>
__global__ void __launch_bounds__(WARPS *TPO_WARP) query_grad(const struct grad g, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    __shared__ struct place others[Tile::rows];
    float *q_tile = (float *)shared, *dout_tile = q_tile + OWN * Tile::ld, *k_tile = dout_tile + OWN * Tile::ld,
          *v_tile = k_tile + Tile::rows * Tile::ld;
    const int t0 = (int)blockIdx.x * OWN, h = blockIdx.y % p.H, b = blockIdx.y / p.H, group = h / (p.H / p.G),
              rows = min(OWN, p.T - t0);
    const int64_t row0 = (int64_t)b * p.T + t0;
    const int row = threadIdx.x / TPO_WARP * 16 + threadIdx.x % TPO_WARP / 4;
    float sum[Tile::wide_blocks][4] = {}, prob[Tile::score_blocks][4], slope[Tile::score_blocks][4], lse[2], delta[2];
    for (int half = 0; half < 2; half++) {
        const bool there = row + 8 * half < rows;
        lse[half] = there ? g.lse[(row0 + row + 8 * half) * p.H + h] : 0.0f;
        delta[half] = there ? g.delta[(row0 + row + 8 * half) * p.H + h] : 0.0f;
    }
    load<Tile>(q_tile, g.q + row0 * p.ldq + h * p.D, p.ldq, OWN, rows, p.D);
    load<Tile>(dout_tile, g.dout + row0 * p.ldo + h * p.D, p.ldo, OWN, rows, p.D);
    const int end = keys_end(p, b, t0 + rows - 1);
    for (int s0 = 0; s0 < end; s0 += Tile::rows) {
        const unsigned pairs = seen_pairs<Tile, true>(p, b, t0, s0, others);
        if (!__syncthreads_or(pairs != 0)) continue;
        const int64_t at = (int64_t)b * p.S + s0;
        const int keys = min(Tile::rows, end - s0);
        load<Tile>(k_tile, g.k + at * p.ldk + group * p.D, p.ldk, Tile::rows, keys, p.D);
        load<Tile>(v_tile, g.v + at * p.ldv + group * p.D, p.ldv, Tile::rows, keys, p.D);
        __syncthreads();
        scores<Tile>(prob, q_tile, k_tile);
        scores<Tile>(slope, dout_tile, v_tile);
#pragma unroll
        for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                slope[j][i] =
                    seen(pairs, j, i) ? expf(prob[j][i] * p.scale - lse[i / 2]) * (slope[j][i] - delta[i / 2]) * p.scale : 0.0f;
        weigh<Tile>(sum, slope, k_tile);
        __syncthreads();
    }
    put<Tile>(g.dq + row0 * p.ldq + h * p.D, p.ldq, sum, 1.0f, 1.0f, rows, p.D, g.add);
}

/* Own rows are keys: dk and dv, over all query heads that read them. */
template <typename Tile>
__global__ void __launch_bounds__(WARPS *TPO_WARP) key_grad(const struct grad g, const struct tpo_attention_shape p)
{
    extern __shared__ float4 shared[];
    __shared__ struct place others[Tile::rows];
    __shared__ float lse[Tile::rows], delta[Tile::rows];
    float *k_tile = (float *)shared, *v_tile = k_tile + OWN * Tile::ld, *q_tile = v_tile + OWN * Tile::ld,
          *dout_tile = q_tile + Tile::rows * Tile::ld;
    const int s0 = (int)blockIdx.x * OWN, group = blockIdx.y % p.G, b = blockIdx.y / p.G, per_group = p.H / p.G,
              keys = min(OWN, p.S - s0);
    const int64_t at = (int64_t)b * p.S + s0;
    const int column = threadIdx.x % 4 * 2;
    float dk[Tile::wide_blocks][4] = {}, dv[Tile::wide_blocks][4] = {}, prob[Tile::score_blocks][4], slope[Tile::score_blocks][4];
    load<Tile>(k_tile, g.k + at * p.ldk + group * p.D, p.ldk, OWN, keys, p.D);
    load<Tile>(v_tile, g.v + at * p.ldv + group * p.D, p.ldv, OWN, keys, p.D);
    const int begin =
        p.causal ? max(s0 - (p.S - p.T), 0) / Tile::rows * Tile::rows : 0; /* the first tile with a query that sees a key of ours */
    for (int h = group * per_group; h < (group + 1) * per_group; h++)
        for (int t0 = begin; t0 < p.T; t0 += Tile::rows) {
            const unsigned pairs = seen_pairs<Tile, false>(p, b, s0, t0, others);
            if (!__syncthreads_or(pairs != 0)) continue;
            const int64_t row0 = (int64_t)b * p.T + t0;
            const int rows = min(Tile::rows, p.T - t0);
            load<Tile>(q_tile, g.q + row0 * p.ldq + h * p.D, p.ldq, Tile::rows, rows, p.D);
            load<Tile>(dout_tile, g.dout + row0 * p.ldo + h * p.D, p.ldo, Tile::rows, rows, p.D);
            for (int i = threadIdx.x; i < rows; i += WARPS * TPO_WARP)
                lse[i] = g.lse[(row0 + i) * p.H + h], delta[i] = g.delta[(row0 + i) * p.H + h];
            __syncthreads();
            scores<Tile>(prob, k_tile, q_tile);
            scores<Tile>(slope, v_tile, dout_tile);
#pragma unroll
            for (int j = 0; j < Tile::score_blocks; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int query = 8 * j + column + i % 2;
                    prob[j][i] = seen(pairs, j, i) ? expf(prob[j][i] * p.scale - lse[query]) : 0.0f;
                    slope[j][i] = seen(pairs, j, i) ? prob[j][i] * (slope[j][i] - delta[query]) * p.scale : 0.0f;
                }
            weigh<Tile>(dv, prob, dout_tile);
            weigh<Tile>(dk, slope, q_tile);
            __syncthreads();
        }
    put<Tile>(g.dk + at * p.ldk + group * p.D, p.ldk, dk, 1.0f, 1.0f, keys, p.D, g.add);
    put<Tile>(g.dv + at * p.ldv + group * p.D, p.ldv, dv, 1.0f, 1.0f, keys, p.D, g.add);
}

/* --- launching -------------------------------------------------------------------------------------------------------------------------- */

static int shape_ok(const struct tpo_attention_shape *p)
{
    return p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256 &&
           (int64_t)p->B * p->H <= 65535; /* a grid's height */
}

/* Of so many tiles of the own side and two of the other. */
template <typename Tile> static size_t shared_bytes(int own)
{
    return (size_t)(own * OWN + 2 * Tile::rows) * Tile::ld * sizeof(float);
}

/* Shared memory beyond 48 KB is asked for by name. A GPU whose blocks have less (docs/gpu.md) is told so. */
template <typename Kernel> static int allow(Kernel kernel, size_t bytes)
{
    const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    const int code = tpo_cuda_code(e);
    return e == cudaErrorInvalidValue ? TPO_UNIMPLEMENTED : code;
}

static dim3 grid_of(int rows, int heads)
{
    return dim3((unsigned)(rows + OWN - 1) / OWN, (unsigned)heads);
}

template <int WIDE>
static int run_forward(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                       const struct tpo_attention_shape *p)
{
    typedef tile<WIDE> Tile;
    const size_t bytes = shared_bytes<Tile>(1);
    const int rc = allow(forward<Tile>, bytes);
    if (rc != TPO_OK) return rc;
    forward<Tile><<<grid_of(p->T, p->B * p->H), WARPS * TPO_WARP, bytes, tpo_cuda_stream(s)>>>(out, lse, q, k, v, *p);
    return tpo_cuda_launched();
}

template <int WIDE> static int run_backward(struct tpo_stream *s, const struct grad *g, const struct tpo_attention_shape *p)
{
    typedef tile<WIDE> Tile;
    const size_t bytes = shared_bytes<Tile>(2);
    int rc = allow(query_grad<Tile>, bytes);
    if (rc == TPO_OK) rc = allow(key_grad<Tile>, bytes);
    if (rc != TPO_OK) return rc;
    query_grad<Tile><<<grid_of(p->T, p->B * p->H), WARPS * TPO_WARP, bytes, tpo_cuda_stream(s)>>>(*g, *p);
    key_grad<Tile><<<grid_of(p->S, p->B * p->G), WARPS * TPO_WARP, bytes, tpo_cuda_stream(s)>>>(*g, *p);
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

extern "C" int tpo_attention_grad_cuda(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out,
                                       const float *lse, const float *q, const float *k, const float *v, int add,
                                       const struct tpo_attention_shape *shape)
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
