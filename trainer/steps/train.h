/* train.h -- `tpo train RECIPE`: the stages of a recipe one after the other, in one process or over a mesh, with checkpoints. */
#ifndef TPO_TRAINER_STEPS_TRAIN_H
#define TPO_TRAINER_STEPS_TRAIN_H

#include "kernels/stream.h"
#include "trainer/steps/recipe.h"

struct tpo_train_options {
    const char *recipe, *out;
    const char *model;         /* "": the recipe's */
    const char *data;          /* where relative paths of annotations and media start; "": the recipe's folder */
    const char *mesh;          /* as --mesh (mesh.h); "": one process */
    struct tpo_stream *stream; /* where this process computes; borrowed */
    int threads;               /* of its compute team; 0 where the device has none */
    int checkpoint_every;      /* steps; 0: at the end of a stage only */
    int log_every;             /* steps per line */
    int publish_every;         /* steps, over a mesh; 0: never */
    int stop_after;            /* stages; 0: all */
    int lease_ms, call_ms;
    int wait_ms; /* how long a service may be away */
    bool quiet;  /* no progress bar */
};

int tpo_train(const struct tpo_train_options *o, struct tpo_error *err);

/* The subcommand; its exit status. */
int tpo_train_main(int argc, char **argv);

#endif
