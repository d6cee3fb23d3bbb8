/* attention_cuda.h -- who sees whom, for all kernels of attention. Private to the .cu files. */
#ifndef TPO_KERNELS_ATTENTION_CUDA_H
#define TPO_KERNELS_ATTENTION_CUDA_H

#include "kernels/cuda.h"

/* attention.h's three conditions, for 0 <= t < T and 0 <= s < S. */
__device__ static inline bool tpo_cuda_visible(const struct tpo_attention_shape &p, int b, int t, int s)
{
    const int at = t + p.S - p.T;
    if (p.key_len != NULL && s >= p.key_len[b]) return false;
    if (p.causal && s > at) return false;
    if (p.segments == NULL) return true;
    const int32_t segment = p.segments[(int64_t)b * p.S + s];
    return segment == 0 || (at >= 0 && at < p.S && segment == p.segments[(int64_t)b * p.S + at]);
}

#endif
