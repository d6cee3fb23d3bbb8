/* attention_parts.h -- what attention_cpu.c hands to the code for one instruction set: packed operands and which tiles a block of rows sees.
 * Private to kernels/. */
#ifndef TPO_KERNELS_ATTENTION_PARTS_H
#define TPO_KERNELS_ATTENTION_PARTS_H

#include <stdint.h>

#define TPO_ATTENTION_ROWS 8
#define TPO_ATTENTION_TILE 16

/* One (sample, head). Dp and Sp are D and S rounded up to TPO_ATTENTION_TILE; tile: keys in one vector; what was added is zero. */
struct tpo_attention_part {
    int D, Dp, tile;
    int64_t Sp;
    float scale;
    const int32_t *segments; /* (Sp) */
    float *kt, *k;           /* (D, Sp) and, backward, (Sp, Dp) */
    float *v, *vt;           /* (Sp, Dp) and, backward, (D, Sp) */
    float *dk, *dv;          /* (Sp, Dp), backward */
    float *rows, *dout;      /* (ROWS, Dp): the block's queries and, backward, the gradient of its output */
    float *score, *ds;       /* (ROWS, Sp) */
    float *out;              /* (ROWS, Dp): the block's output, or its dq */
    float sum[TPO_ATTENTION_ROWS], lse[TPO_ATTENTION_ROWS], delta[TPO_ATTENTION_ROWS];
};

/* A block of query rows: row r sees keys 0..last[r] that are of segment 0 or of its own. */
struct tpo_attention_block {
    int n_rows;
    int32_t last[TPO_ATTENTION_ROWS]; /* -1: none */
    int32_t segment[TPO_ATTENTION_ROWS];
    int n_tiles;
    int32_t *tiles;
    uint8_t *open; /* of each tile: every row sees every key */
};

typedef void tpo_attention_fn(struct tpo_attention_part *a, const struct tpo_attention_block *b);

#define TPO_ATTENTION_DECLARE(level)                                                                                               \
    void tpo_attention_forward_##level(struct tpo_attention_part *a, const struct tpo_attention_block *b);                         \
    void tpo_attention_backward_##level(struct tpo_attention_part *a, const struct tpo_attention_block *b);
TPO_ATTENTION_DECLARE(portable)
TPO_ATTENTION_DECLARE(avx2)
TPO_ATTENTION_DECLARE(avx512)

#endif
