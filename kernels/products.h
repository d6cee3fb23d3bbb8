/* products.h -- matrix products in packed panels, on the stream's team. Private to kernels/; matmul.h is what callers use.
 *
 *   y (rows, cols) [+]= a (rows, depth) b (depth, cols) [+ bias (cols)]
 *
 * The right operand is packed first, at most PACKED floats at a time, into panels of a few vectors' columns; then blocks of rows walk the panels.
 * Goto & van de Geijn 2008 (doi:10.1145/1356052.1356053). Sums run along the depth in order, in chunks whose length is fixed, so an element's
 * bits depend on its row of a, its column of b and the depth alone. */
#ifndef TPO_KERNELS_PRODUCTS_H
#define TPO_KERNELS_PRODUCTS_H

#include <stdint.h>

#include "common/status.h"
#include "kernels/stream.h"

struct tpo_product {
    float *y;
    const float *a, *bias;
    const void *b; /* f32, or bf16 with b_half */
    int b_half;    /* with b_turned and not a_turned a is rounded, too, where that pays and the stream allows it (matmul.h) */
    int64_t ldy, lda, ldb;
    int a_turned;  /* element (r, d) of a lies at d*lda + r, else at r*lda + d */
    int b_turned;  /* element (d, c) of b lies at c*ldb + d, else at d*ldb + c */
    int add;       /* to what y holds; bias is added once */
    int symmetric; /* y is, and square: what lies above the diagonal is computed and copied below; not with add or bias */
    int rows, cols, depth;
};

/* TPO_ENOMEM when memory for the panels is short. */
int tpo_product_run(struct tpo_stream *s, const struct tpo_product *p);

#endif
