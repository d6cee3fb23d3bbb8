/* products.h -- the library's (oneDNN's) matrix products, kept by shape. Private to kernels/; matmul.h is what callers use.
 *
 *   y (rows, cols) [+]= x (rows, depth) w (depth, cols) [+ bias (cols)]
 * x_t says that x lies transposed: element (r, d) at d*ldx + r.
 *
 * The library is called with one thread, from a member of our team. Its OpenMP runtime would start threads of its own that spin: every thread
 * that creates or runs a product first tells it to use one (omp_set_num_threads, which is per thread), so that no environment
 * variable has to be set before the program starts. */
#ifndef TPO_KERNELS_PRODUCTS_H
#define TPO_KERNELS_PRODUCTS_H

#include "common/status.h"

struct tpo_product_shape {
    int rows, cols, depth;
    int ldx, ldw, ldy;
    int x_t, bias, add;
};

struct tpo_products;
struct tpo_product;

int tpo_products_open(struct tpo_products **out, int n_members, struct tpo_error *err);
void tpo_products_close(struct tpo_products *p); /* accepts NULL */

/* Finds or makes the product of a shape; NULL when the library refuses it or memory is short, and then a loop of ours does it. The stream's caller only. */
const struct tpo_product *tpo_product_get(struct tpo_products *p, const struct tpo_product_shape *shape);
/* From any member, each with its own number. bias is ignored unless the shape has one. */
void tpo_product_run(const struct tpo_product *p, int member, float *y, const float *x, const float *w, const float *bias);

#endif
