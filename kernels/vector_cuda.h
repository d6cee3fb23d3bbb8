/* vector_cuda.h -- a sum that stays on the device, for kernels that go on with it. Private to the .cu files. */
#ifndef TPO_KERNELS_VECTOR_CUDA_H
#define TPO_KERNELS_VECTOR_CUDA_H

#include "kernels/cuda.h"

/* The sum of x (square: of its squares), n >= 1 elements, blocks of vector.h's size added as a tree, the same each time; lies in scratch until that
 * is taken again. NULL when out of memory. */
const double *tpo_cuda_sum(struct tpo_stream *s, const float *x, int square, int64_t n);

#endif
