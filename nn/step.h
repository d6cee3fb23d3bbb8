/* step.h -- the inside of a tape, for the files that define operations (nn/tape_*.c) and nobody else.
 *
 * An operation makes its output with tpo_tape_make, runs its kernels under tpo_tape_check, and, when the output needs a
 * gradient, records a step: a struct that begins with struct tpo_step and holds what its backward needs. Backward reads
 * out->grad and hands gradients on by one of tpo_grad_begin (write or add), tpo_grad_zeroed (add only) and tpo_grad_give (the
 * buffer itself). */
#ifndef TPO_NN_STEP_H
#define TPO_NN_STEP_H

#include "nn/tape.h"

struct tpo_step {
    struct tpo_step *before;
    struct tpo_tensor *out;
    void (*backward)(struct tpo_tape *t, struct tpo_step *step); /* called only when out->grad is not NULL */
};

int32_t *tpo_tape_indices(struct tpo_tape *t, const int32_t *host, int64_t n); /* a device copy */
struct tpo_tensor *tpo_tape_make(struct tpo_tape *t, int rows, int cols, bool needs_grad);
/* A step of `size` bytes, cleared, appended; NULL when the tape does not record or memory ran out. */
void *tpo_tape_step(struct tpo_tape *t, size_t size, struct tpo_tensor *out,
                    void (*backward)(struct tpo_tape *, struct tpo_step *));

/* Where x's gradient goes; *add says whether something lies there already. NULL when x needs none or memory ran out. */
float *tpo_grad_begin(struct tpo_tape *t, struct tpo_tensor *x, int *add);
float *tpo_grad_zeroed(struct tpo_tape *t, struct tpo_tensor *x);
/* For a kernel that writes the gradients of n tensors under one `add` flag: fills places[], scratch memory where a tensor needs
 * none, all with the tensor's row distance; returns the flag. A place is NULL after an error only. */
int tpo_grads_begin(struct tpo_tape *t, int n, struct tpo_tensor *const *x, float **places);
/* dy (rows, cols, contiguous) is added to x's gradient; dy must not be used afterwards, for it may become that gradient. */
void tpo_grad_give(struct tpo_tape *t, struct tpo_tensor *x, float *dy);

#define TPO_STEP(type) type *step = (type *)base

#endif
