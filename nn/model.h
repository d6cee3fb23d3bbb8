/* model.h -- what a model shows to services/host so that it can be trained: its parameters and one forward pass.
 *
 * Backward needs nothing from a model: the tape knows. Tensors between services are matrices (tape.h) with names; losses are 1 x 1
 * tensors. The host seeds each active loss with weight / M and each named output with the gradient it was given. */
#ifndef TPO_NN_MODEL_H
#define TPO_NN_MODEL_H

#include "nn/sample.h"
#include "nn/tape.h"

#define TPO_PORTS_MAX 16

struct tpo_port {
    const char *name; /* "visual", "e.region", "language" */
    struct tpo_tensor *tensor;
};

/* Which sample, conversation and position a row of e came from. */
struct tpo_row {
    int sample, conversation, position;
    int task; /* index into config.tasks */
};

struct tpo_forward {
    /* in */
    const struct tpo_sample *samples;
    int n_samples;
    struct tpo_port inputs[TPO_PORTS_MAX];
    int n_inputs;
    bool (*wants_loss)(void *plan, const char *name); /* false: the loss has no weight in this run, don't compute it */
    void *plan;
    bool training;  /* dropout and drop-path on (only what has trainable parameters in it) */
    uint64_t noise; /* key of this micro-batch: mix in the module and element */
    /* out */
    struct tpo_port outputs[TPO_PORTS_MAX];
    int n_outputs;
    struct tpo_port losses[TPO_PORTS_MAX];
    int n_losses;
    const struct tpo_row *rows; /* of e, in (sample, conversation, position) order; in the tape's arena */
    int n_rows;
};

struct tpo_model {
    const char *stage; /* "encoder", "router", "region" */
    void *self;
    struct tpo_params *params;
    /* Adds outputs and losses to *f; the error is also the tape's. */
    int (*forward)(void *self, struct tpo_tape *tape, struct tpo_forward *f, struct tpo_error *err);
    /* Another run has begun, or weights came in: what the model keeps of its weights' values is out of date. NULL: it keeps nothing. */
    void (*replaced)(void *self);
};

/* Ports by name; NULL when absent. */
struct tpo_tensor *tpo_forward_input(const struct tpo_forward *f, const char *name);
void tpo_forward_output(struct tpo_forward *f, const char *name, struct tpo_tensor *x);
void tpo_forward_loss(struct tpo_forward *f, const char *name, struct tpo_tensor *x);

#endif
