/* identity.h -- what a stage is of: what has to be the same wherever its steps, its checkpoints and its model come from.
 *
 *   OUT/k-NAME/stage.json   {"run": "RECIPE/STAGE", "seed", "lanes", "micro_batches", "groups", "losses" (plan_digest.h),
 *                           "data": [{"draw", "rows"}, ...] (data_digest.h), "config", "tokenizer", "start"}, from before the stage's first step
 *                           on; the stage's model is of it, too, and once that is written, "model": SHA-256 of its model.safetensors
 *
 * The manifest of a checkpoint holds the same keys beside its own. */
#ifndef TPO_TRAINER_STEPS_IDENTITY_H
#define TPO_TRAINER_STEPS_IDENTITY_H

#include <jansson.h>

#include "trainer/steps/data_digest.h"
#include "trainer/steps/plan_digest.h"
#include "trainer/steps/recipe.h"

struct tpo_identity {
    char run[68];  /* RECIPE/STAGE */
    uint64_t seed; /* the recipe's */
    int lanes, micro_batches;
    struct tpo_plan_digest plan;
    int n_data;
    struct tpo_data_digest data[TPO_DATA_MAX];
    char config[TPO_SHA256_HEX], tokenizer[TPO_SHA256_HEX]; /* of the model's folder (nn/config.h); config "": any */
    char start[TPO_SHA256_HEX]; /* of the weights it began with, frozen ones included (shard.h); "": any */
};

/* Of a stage of the recipe; config and start are "". The error of tpo_data_digest: annotation files are read. */
int tpo_identity_of(struct tpo_identity *out, const struct tpo_recipe *r, int stage, struct tpo_error *err);

/* Whether the annotation files, which are read anew as services are recovered, are still those. DATA_LOSS "annotations". */
int tpo_identity_rows(const struct tpo_identity *x, const struct tpo_recipe *r, int stage, struct tpo_error *err);

/* Its keys, into an object. */
void tpo_identity_put(json_t *j, const struct tpo_identity *x);
/* Whether an object, found in `where`, tells the same. FAILED_PRECONDITION `reason`, or "model" for another start, config.json or tokenizer,
 * with what differs. */
int tpo_identity_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason, struct tpo_error *err);

/* Writes stage.json where there is none yet. */
int tpo_identity_keep(const char *stage_dir, const struct tpo_identity *x, struct tpo_error *err);
/* Writes it anew, with the hash of the model that is about to stand beside it. */
int tpo_identity_end(const char *stage_dir, const struct tpo_identity *x, const char model[TPO_SHA256_HEX], struct tpo_error *err);
/* Whether a model folder that a stage left is as it left it; of other folders nothing is known. DATA_LOSS "model". Reads all of its weights. */
int tpo_identity_model(const char *folder, struct tpo_error *err);
/* Compares it: FAILED_PRECONDITION "out" or "model". Without the file all is well, unless the stage has `ended`. */
int tpo_identity_kept(const char *stage_dir, const struct tpo_identity *x, bool ended, struct tpo_error *err);

#endif
