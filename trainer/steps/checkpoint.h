/* checkpoint.h -- what a run leaves on disk, and how it goes on from there.
 *
 *   OUT/STAGE/step-00000500/   encoder.safetensors, router.safetensors, region.safetensors ("weight/NAME", "m/NAME", "v/NAME", f32, trainable
 *                              tensors only); manifest.json last: run, step, version, aborted, seeds, lanes, micro_batches, threads, the
 *                              next sample, SHA-256 of each shard. Without a manifest that fits there is no checkpoint.
 *   OUT/STAGE/model/           a whole model folder in f32, training-only tensors included, once the stage is done; the next stage starts here
 *
 * A folder is written under another name and renamed, so that a killed run leaves an old one or a new one. */
#ifndef TPO_TRAINER_STEPS_CHECKPOINT_H
#define TPO_TRAINER_STEPS_CHECKPOINT_H

#include "trainer/steps/step.h"

struct tpo_checkpoint {
    int step;
    uint64_t version, aborted;
    uint64_t recipe_seed;
    int lanes, micro_batches, threads;
};

/* Writes OUT/STAGE/step-N and removes older ones but the last. */
int tpo_checkpoint_write(const char *stage_dir, struct tpo_team_of_learners *t, const struct tpo_checkpoint *c, struct tpo_error *err);

/* Imports the newest sound checkpoint of the stage into the learners (which have begun it). c->step is 0 where there is none. FAILED_PRECONDITION
 * when its lanes, micro-batches, seed or team size are not those of *c: the bits would differ. */
int tpo_checkpoint_read(const char *stage_dir, struct tpo_team_of_learners *t, struct tpo_checkpoint *c, struct tpo_error *err);

/* The model folder of a finished stage: companions of `from`, every tensor of the models. */
int tpo_checkpoint_finish(const char *stage_dir, const char *from, struct tpo_model *const *models, int n_models, struct tpo_error *err);

#endif
