/* attention_parts.h -- what attention_cpu.c hands to the code for one instruction set: packed operands and which tiles a block of rows sees.
 * Private to kernels/.
 *
 * Keys are taken in spans of TPO_ATTENTION_KEYS, so that what is packed of one lies in the second cache, and in it in tiles of two vectors. Query
 * rows go in blocks. Over the spans a row keeps the maximum so far, the sum of its weights and the sum of weighted values (Milakov & Gimelshein
 * 2018; Dao 2022, arXiv:2205.14135). */
#ifndef TPO_KERNELS_ATTENTION_PARTS_H
#define TPO_KERNELS_ATTENTION_PARTS_H

#include <stdint.h>

#define TPO_ATTENTION_STRIP 6   /* rows of one inner loop */
#define TPO_ATTENTION_ROWS  24  /* rows of a block: whole strips */
#define TPO_ATTENTION_KEYS  256 /* keys of a span: whole tiles of every build */
#define TPO_ATTENTION_WIDE  32  /* columns are rounded up to this: two vectors of every build */
#define TPO_ATTENTION_TILE  32  /* keys of a tile at most */

/* One span of keys of one (sample, head). Dp is D rounded up; what was added is zero. A panel is one tile turned: (D, tile).
 *
 * Paired, words of 32 bits hold two numbers of bf16 each: along D in k_panels (half of D, tile) and in the first half of each of `rows`, along the
 * keys in v (half of KEYS, Dp) and, once weighed, in the first half of each row of score. Forward only. */
struct tpo_attention_part {
    int D, Dp, tile, paired;
    float scale;
    int first;                  /* key of the span */
    int32_t *segments;          /* (KEYS) */
    float *k_panels, *v_panels; /* of k; of v, backward */
    float *k, *v;               /* (KEYS, Dp): backward; forward */
    float *dk, *dv;             /* (KEYS, Dp), backward: added to */
    float *rows, *dout;         /* (ROWS, Dp): the block's queries and, backward, the gradient of its output */
    float *score, *ds;          /* (ROWS, KEYS) */
    float *out;                 /* (ROWS, Dp): forward, the sums so far, added to; backward, this span's part of dq */
    float *top, *total;         /* (ROWS): forward, the maximum and the sum of weights so far */
    float lse[TPO_ATTENTION_ROWS], delta[TPO_ATTENTION_ROWS]; /* backward */
};

/* A block of query rows: row r sees keys 0..last[r] of the sample that are of segment 0 or of its own. */
struct tpo_attention_block {
    int n_rows;
    int32_t last[TPO_ATTENTION_ROWS]; /* -1: none */
    int32_t segment[TPO_ATTENTION_ROWS];
    int n_tiles; /* of the span, those in which some row sees a key */
    int32_t tiles[TPO_ATTENTION_KEYS];
    uint8_t open[TPO_ATTENTION_KEYS]; /* of each tile: every row sees every key */
};

typedef void tpo_attention_fn(struct tpo_attention_part *a, const struct tpo_attention_block *b);

struct tpo_attention_code {
    int tile;
    tpo_attention_fn *forward, *backward;
};

extern const struct tpo_attention_code tpo_attention_portable, tpo_attention_avx2, tpo_attention_avx512, tpo_attention_avx512bf16;

#endif
