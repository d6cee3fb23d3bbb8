/* checkpoint.h -- what a run leaves on disk, and how it goes on from there.
 *
 *   OUT/STAGE/step-00000500/   encoder.safetensors, router.safetensors, region.safetensors (shard.h); manifest.json last: what it is of
 *                              (identity.h), step, version, aborted, generator (seed, counter), threads, devices, next_sample (how many each
 *                              entry of data has given), SHA-256 of each shard.
 *                              Without a manifest that fits there is no checkpoint, and the one before is used.
 *   OUT/STAGE/model/           a whole model folder in f32, training-only tensors included, once the stage is done; the next stage starts here
 *
 * A folder is written under another name, synced and renamed, so that a killed run or a full disk leaves an old one or a new one. */
#ifndef TPO_TRAINER_STEPS_CHECKPOINT_H
#define TPO_TRAINER_STEPS_CHECKPOINT_H

#include "trainer/steps/crew.h"
#include "trainer/steps/identity.h"

struct tpo_checkpoint {
    int step;
    uint64_t version, aborted;
    struct tpo_identity of;
    const struct tpo_recipe *recipe; /* what its data are drawn by; borrowed */
    int stage;
    int threads[TPO_PARTS];      /* of each service's compute team */
    char devices[TPO_PARTS][16]; /* where each computes; "": none does */
    bool trains[TPO_PARTS];      /* which of them learn in this stage, hence have a shard */
    char path[4000];             /* of what was found, and which shards it has */
    bool has[TPO_PARTS];
};

/* Writes OUT/STAGE/step-N, shards streamed from the first replica of each service, and removes older ones but the last.
 * RESOURCE_EXHAUSTED "disk_full": what was there before is whole, and nothing of the new one is left. */
int tpo_checkpoint_write(const char *stage_dir, struct tpo_crew *t, const struct tpo_checkpoint *c, struct tpo_error *err);

/* Whether the newest manifest of this run is of what *c is of, its shards unread. FAILED_PRECONDITION "checkpoint" or "model" (identity.h); "checkpoint"
 * also where its generator and next_sample are not what the seed and its step give: its steps were drawn otherwise. */
int tpo_checkpoint_check(const char *stage_dir, const struct tpo_checkpoint *c, struct tpo_error *err);
/* The newest sound checkpoint of the stage; c->step is 0 where there is none. Refused as above, and "checkpoint" when its team sizes or devices are not
 * those of *c (the bits would differ), or when its shards are not those of the services that learn. */
int tpo_checkpoint_find(const char *stage_dir, struct tpo_checkpoint *c, struct tpo_error *err);
/* What was found, into a learner that has begun the stage and holds its start (or an earlier state of it). */
int tpo_checkpoint_send(const struct tpo_checkpoint *c, int part, struct tpo_learner *l, struct tpo_error *err);

/* The model folder of a finished stage: companions of `from`, every tensor of the models. Its hash is in stage.json (identity.h) by then. */
int tpo_checkpoint_finish(const char *stage_dir, const struct tpo_identity *of, const char *from, struct tpo_stream *s,
                          struct tpo_model *const *models, int n_models, struct tpo_error *err);

#endif
