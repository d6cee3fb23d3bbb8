/* loss.h -- losses whose rows are independent, with their gradients.
 *
 * Softmax cross entropy:  loss[m] = weight[m] * (logsumexp(logits[m]) - logits[m][label[m]]);  label -100 (or weight 0): loss 0, no gradient
 *   logits (M, V), label (M) int32, weight (M) or NULL (all 1), loss (M)
 *   grad:  dlogits (M, V) = upstream * weight[m] * (softmax - onehot); may alias logits
 * Box loss of TPO's code (docs/model.md, Region head; DETR's GIoU):  l1 = mean|p - g| over n*4;  giou = mean(1 - GIoU) over
 *   predictions with x1 >= x0 and y1 >= y0, or the constant 2 without gradient when there is none
 *   p, g (n, 4) corners; out[0] = l1, out[1] = giou term; giou[n] each 1-GIoU or NaN where not valid (may be NULL)
 *   grad:  dp = up_l1 * d l1 + up_giou * d giou
 * Weighted L1 / squared error:  loss[m] = weight[m] * sum_c |p - g|  (or (p-g)^2), rows of C
 * TPO_EINVAL when a size is not positive or a label is outside [0, V) and not -100; of a label a GPU says so when it is next waited for. */
#ifndef TPO_KERNELS_LOSS_H
#define TPO_KERNELS_LOSS_H

#include "kernels/stream.h"

int tpo_cross_entropy(struct tpo_stream *s, float *loss, const float *logits, const int32_t *label, const float *weight, int M,
                      int V);
int tpo_cross_entropy_grad(struct tpo_stream *s, float *dlogits, const float *logits, const int32_t *label, const float *weight,
                           float upstream, int M, int V);
int tpo_box_loss(struct tpo_stream *s, float *out, float *giou, const float *p, const float *g, int n);
int tpo_box_loss_grad(struct tpo_stream *s, float *dp, const float *p, const float *g, float up_l1, float up_giou, int n);
int tpo_l1_rows(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M, int C);
int tpo_l1_rows_grad(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream, int M,
                     int C);
int tpo_mse_rows(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M, int C);
int tpo_mse_rows_grad(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream, int M,
                      int C);

/* Row maximum's index, lowest on a tie: out (M) int32. */
int tpo_argmax(struct tpo_stream *s, int32_t *out, const float *x, int M, int V);

#endif
