/* attention.h -- scaled dot-product attention, contiguous and paged, never materialising the score matrix.
 *
 * Vaswani et al. 2017 (arXiv:1706.03762), eq. 1:  out = softmax(q k^T scale + mask) v, computed over fixed tiles of keys with a running
 * maximum (Milakov & Gimelshein 2018), so scores of any size are safe and a row's bits depend on its own keys alone.
 *
 * Contiguous layout is token-major, so that a fused projection is read where it lies: row t of sample b is at ptr + (b*T + t)*ld, and head h
 * at + h*D. H query heads share G key/value heads (H % G == 0; head h reads h / (H/G)).
 *
 *   q    (B, T, H, D)   k, v (B, S, G, D)   out (B, T, H, D)   lse (B, T, H): log-sum-exp of the scaled scores, for backward; NULL skips
 *
 * A key s of sample b is visible to query t when all hold:
 *   s < key_len[b]                            (key_len NULL: S)
 *   !causal or s <= t + S - T                 (the last query sees the last key)
 *   seg NULL, or seg[b*S+s] == 0, or seg[b*S+s] == seg[b*S+t+S-T]      (segment 0 is the prefix that all conversations share)
 * A query that sees no key gets zeros and lse = -INFINITY, and no gradient.
 *
 * On a stream that `rounds` (stream.h) tpo_attention takes q, k, v and the weights exp(score - maximum) rounded to bf16, what is too small for a normal
 * number as zero; sums stay f32. No other function here rounds.
 *
 * Backward writes (or with `add`, adds to) dq, dk, dv, laid out as q, k, v with the distances given.
 * TPO_EINVAL when a size is not positive, H % G != 0 or D > 256. */
#ifndef TPO_KERNELS_ATTENTION_H
#define TPO_KERNELS_ATTENTION_H

#include "kernels/stream.h"

struct tpo_attention_shape {
    int B, T, S, H, G, D;
    int ldq, ldk, ldv, ldo; /* elements between tokens of q (and dq), k (dk), v (dv), out (dout) */
    float scale;            /* 1/sqrt(D) as a rule */
    int causal;
    const int32_t *key_len;  /* (B) or NULL */
    const int32_t *segments; /* (B, S) or NULL */
};

int tpo_attention(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                  const struct tpo_attention_shape *shape);
int tpo_attention_grad(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                       const float *q, const float *k, const float *v, int add, const struct tpo_attention_shape *shape);

/* Cross entropy of single attention rows with target distributions: a training-only aid (docs/model.md, Aids).
 *   rows (n, 3) int32: sample b, query t, head h       target (n, S) f32, each row sums to 1 over visible keys
 *   weight (n)          loss[i] = -weight[i] sum_s target log p(s)     p is that row's softmax
 * The gradient adds upstream * d(sum of loss) to dq and dk, rows in order. */
int tpo_attention_rows(struct tpo_stream *s, float *loss, const float *q, const float *k, const int32_t *rows, const float *target,
                       const float *weight, int n, const struct tpo_attention_shape *shape);
int tpo_attention_rows_grad(struct tpo_stream *s, float *dq, float *dk, float upstream, const float *q, const float *k,
                            const int32_t *rows, const float *target, const float *weight, int n,
                            const struct tpo_attention_shape *shape);

/* Paged: keys and values live in blocks of `block_tokens`; block i of a sequence is pool block table[i].
 *   pool_k, pool_v  (n_blocks, block_tokens, G, D)
 *   q, out          (M, H, D), one row per query, row distance ldq, ldo; row m belongs to sequence seq[m] and sees keys 0..position[m]
 *   tables          (n_seqs, max_blocks) int32
 * Prefill chunks and decode rows mix freely. */
struct tpo_paged_shape {
    int M, H, G, D, ldq, ldo, block_tokens, max_blocks;
    float scale;
    const int32_t *seq;      /* (M) */
    const int32_t *position; /* (M) */
    const int32_t *tables;   /* (n_seqs, max_blocks) */
};
int tpo_attention_paged(struct tpo_stream *s, float *out, const float *q, const float *pool_k, const float *pool_v,
                        const struct tpo_paged_shape *shape);
/* Writes rows k, v (M, G, D), row distance ldk, ldv, into the pools at (seq[m], position[m]). */
int tpo_kv_write(struct tpo_stream *s, float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv,
                 const struct tpo_paged_shape *shape);

#endif
