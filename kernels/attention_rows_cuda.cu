/* This file owns the cross entropy of single attention rows on CUDA. */
#include "kernels/attention_cuda.h"

struct single_rows {
    const float *q, *k;
    const int32_t *rows;
    const float *target, *weight;
    int n;
};

/* Whether row i names a sample, a query and a head. */
__device__ static bool row_ok(const int32_t *row, const struct tpo_attention_shape &p)
{
    return row[0] >= 0 && row[0] < p.B && row[1] >= 0 && row[1] < p.T && row[2] >= 0 && row[2] < p.H;
}

/* A block for each row: score (n, S) becomes log p over the visible keys, -INFINITY elsewhere. */
__device__ static void log_row(float *score, const struct single_rows &r, const int32_t *row, const struct tpo_attention_shape &p)
{
    const int b = row[0], t = row[1], h = row[2];
    const float *q = r.q + ((int64_t)b * p.T + t) * p.ldq + h * p.D;
    float top = -INFINITY, total = 0.0f;
    for (int s = threadIdx.x; s < p.S; s += blockDim.x) {
        const float *k = r.k + ((int64_t)b * p.S + s) * p.ldk + h / (p.H / p.G) * p.D;
        float dot = 0.0f;
        for (int c = 0; c < p.D; c++) dot += q[c] * k[c];
        score[s] = tpo_cuda_visible(p, b, t, s) ? p.scale * dot : -INFINITY;
        top = fmaxf(top, score[s]);
    }
    top = tpo_block_max(top);
    if (top == -INFINITY) return;
    for (int s = threadIdx.x; s < p.S; s += blockDim.x) total += expf(score[s] - top);
    const float lse = top + logf(tpo_block_sum(total));
    for (int s = threadIdx.x; s < p.S; s += blockDim.x) score[s] -= lse;
}

__global__ void row_losses(float *loss, float *scores, const struct single_rows r, const struct tpo_attention_shape p, int *fault)
{
    const int32_t *row = r.rows + 3 * (int64_t)blockIdx.x;
    float *score = scores + (int64_t)blockIdx.x * p.S, sum = 0.0f;
    const float *target = r.target + (int64_t)blockIdx.x * p.S;
    if (!row_ok(row, p)) {
        *fault = 1;
        return;
    }
    log_row(score, r, row, p);
    for (int s = threadIdx.x; s < p.S; s += blockDim.x)
        if (score[s] != -INFINITY) sum -= target[s] * score[s];
    sum = tpo_block_sum(sum);
    if (threadIdx.x == 0) loss[blockIdx.x] = r.weight[blockIdx.x] * sum;
}

/* score becomes the gradient of the scaled dot products: upstream weight scale (p total - target), 0 where unseen. */
__global__ void row_slopes(float *scores, float upstream, const struct single_rows r, const struct tpo_attention_shape p,
                           int *fault)
{
    const int32_t *row = r.rows + 3 * (int64_t)blockIdx.x;
    float *score = scores + (int64_t)blockIdx.x * p.S, total = 0.0f;
    const float *target = r.target + (int64_t)blockIdx.x * p.S, scale = upstream * r.weight[blockIdx.x] * p.scale;
    if (!row_ok(row, p)) {
        *fault = 1;
        return;
    }
    log_row(score, r, row, p);
    for (int s = threadIdx.x; s < p.S; s += blockDim.x)
        if (score[s] != -INFINITY) total += target[s];
    total = tpo_block_sum(total);
    for (int s = threadIdx.x; s < p.S; s += blockDim.x)
        score[s] = score[s] == -INFINITY ? 0.0f : scale * (expf(score[s]) * total - target[s]);
}

/* A block for each row: the first of those that share a query adds all their gradients, in order. */
__global__ void add_to_queries(float *dq, const float *slopes, const struct single_rows r, const struct tpo_attention_shape p)
{
    const int32_t *row = r.rows + 3 * (int64_t)blockIdx.x;
    int earlier = 0;
    if (!row_ok(row, p)) return;
    for (int i = threadIdx.x; i < (int)blockIdx.x; i += blockDim.x) {
        const int32_t *other = r.rows + 3 * (int64_t)i;
        earlier |= other[0] == row[0] && other[1] == row[1] && other[2] == row[2];
    }
    if (__syncthreads_or(earlier)) return;
    const float *keys = r.k + (int64_t)row[0] * p.S * p.ldk + row[2] / (p.H / p.G) * p.D;
    float *place = dq + ((int64_t)row[0] * p.T + row[1]) * p.ldq + row[2] * p.D;
    for (int c = threadIdx.x; c < p.D; c += blockDim.x) {
        float sum = place[c];
        for (int i = blockIdx.x; i < r.n; i++) {
            const int32_t *other = r.rows + 3 * (int64_t)i;
            if (other[0] != row[0] || other[1] != row[1] || other[2] != row[2]) continue;
            for (int s = 0; s < p.S; s++) sum += slopes[(int64_t)i * p.S + s] * keys[(int64_t)s * p.ldk + c];
        }
        place[c] = sum;
    }
}

/* A block for each key of a sample's key/value head: it walks all rows and takes its own. */
__global__ void add_to_keys(float *dk, const float *slopes, const struct single_rows r, const struct tpo_attention_shape p)
{
    const int s = blockIdx.x, g = blockIdx.y % p.G, b = blockIdx.y / p.G;
    float *place = dk + ((int64_t)b * p.S + s) * p.ldk + g * p.D;
    for (int c = threadIdx.x; c < p.D; c += blockDim.x) {
        float sum = place[c];
        for (int i = 0; i < r.n; i++) {
            const int32_t *row = r.rows + 3 * (int64_t)i;
            if (row[0] != b || !row_ok(row, p) || row[2] / (p.H / p.G) != g) continue;
            sum += slopes[(int64_t)i * p.S + s] * r.q[((int64_t)b * p.T + row[1]) * p.ldq + row[2] * p.D + c];
        }
        place[c] = sum;
    }
}

static int shape_ok(const struct tpo_attention_shape *p, int n)
{
    return n > 0 && p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256 &&
           (int64_t)p->B * p->G <= 65535;
}

extern "C" int tpo_attention_rows_cuda(struct tpo_stream *s, float *loss, const float *q, const float *k, const int32_t *rows,
                                       const float *target, const float *weight, int n, const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape, n)) return TPO_EINVAL;
    const struct single_rows r = {q, k, rows, target, weight, n};
    float *scores = (float *)tpo_cuda_scratch(s, (size_t)n * (size_t)shape->S * sizeof(float));
    if (scores == NULL) return TPO_ENOMEM;
    row_losses<<<n, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(loss, scores, r, *shape, tpo_cuda_of(s)->fault);
    return tpo_cuda_launched();
}

extern "C" int tpo_attention_rows_grad_cuda(struct tpo_stream *s, float *dq, float *dk, float upstream, const float *q,
                                            const float *k, const int32_t *rows, const float *target, const float *weight, int n,
                                            const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape, n)) return TPO_EINVAL;
    const struct single_rows r = {q, k, rows, target, weight, n};
    const dim3 keys((unsigned)shape->S, (unsigned)(shape->B * shape->G));
    const unsigned threads = tpo_cuda_row_threads(shape->D);
    float *slopes = (float *)tpo_cuda_scratch(s, (size_t)n * (size_t)shape->S * sizeof(float));
    if (slopes == NULL) return TPO_ENOMEM;
    row_slopes<<<n, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(slopes, upstream, r, *shape, tpo_cuda_of(s)->fault);
    add_to_queries<<<n, threads, 0, tpo_cuda_stream(s)>>>(dq, slopes, r, *shape);
    add_to_keys<<<keys, threads, 0, tpo_cuda_stream(s)>>>(dk, slopes, r, *shape);
    return tpo_cuda_launched();
}
