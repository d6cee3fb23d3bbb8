/* rows.h -- moving rows: embedding look-up, splicing, and what their gradients need.
 *
 *   tpo_rows_gather       y[m] = table[index[m]]                      table (n_rows, C), index < 0 leaves y[m] untouched
 *   tpo_rows_scatter      table[index[m]] = x[m]                      (+= with `add`, in row order, duplicates allowed)
 *   tpo_add_rows          y[m] += x[m % period]                       a position table, added
 *   tpo_sum_rows          y[c] += x[m][c] over m % period == r        its gradient: y (period, C)
 *   tpo_patchify          pixels (B, T, 3, P*p, Q*p) -> rows (B, T/tubelet, P, Q | 3, tubelet, p, p), the im2col of a convolution whose
 *                         kernel equals its stride
 * All f32, row-major, index int32. TPO_EINVAL when a size is not positive or an index is past the table
 * (on CUDA the latter is told by the next call that waits). */
#ifndef TPO_KERNELS_ROWS_H
#define TPO_KERNELS_ROWS_H

#include "kernels/matmul.h"
#include "kernels/stream.h"

int tpo_rows_gather(struct tpo_stream *s, float *y, const float *table, const int32_t *index, int M, int C, int n_rows);
/* The same out of a table that may be bf16, whose rows are widened; `places` is `index` in host memory. */
int tpo_rows_take(struct tpo_stream *s, float *y, struct tpo_weight table, const int32_t *index, const int32_t *places, int M,
                  int C, int n_rows);
int tpo_rows_scatter(struct tpo_stream *s, float *table, const float *x, const int32_t *index, int add, int M, int C, int n_rows);
int tpo_add_rows(struct tpo_stream *s, float *y, const float *x, int M, int period, int C);
int tpo_sum_rows(struct tpo_stream *s, float *y, const float *x, int M, int period, int C);
int tpo_patchify(struct tpo_stream *s, float *rows, const float *pixels, int B, int T, int H, int W, int patch, int tubelet);

#endif
