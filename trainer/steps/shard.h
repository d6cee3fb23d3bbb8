/* shard.h -- the state of one learner in one file, and the weights a stage starts from.
 *
 * A shard is a safetensors file of "weight/NAME", "m/NAME", "v/NAME", f32, trainable tensors only. It is streamed piece by piece
 * (TPO_CHUNK_ELEMENTS), so a state of any size passes through a megabyte of memory. */
#ifndef TPO_TRAINER_STEPS_SHARD_H
#define TPO_TRAINER_STEPS_SHARD_H

#include "services/host/learner.h"

/* RESOURCE_EXHAUSTED "disk_full", FAILED_PRECONDITION "write" for other troubles of the file; then nothing of it is left. */
int tpo_shard_write(const char *path, struct tpo_learner *l, struct tpo_error *err);
/* Hands every piece to the learner. The caller ends the import with a NULL piece. DATA_LOSS "checkpoint" for a file that is no shard. */
int tpo_shard_read(const char *path, struct tpo_learner *l, uint64_t version, struct tpo_error *err);

/* Every tensor of a model, as the learner's start (part "start"): trainable or not, moments zero. What the learner holds already, by its SHA-256,
 * is not sent; a line of the log tells how many tensors were. */
int tpo_start_send(struct tpo_stream *s, const struct tpo_params *params, struct tpo_learner *l, struct tpo_error *err);

/* SHA-256, in hex, over those tensors of some models as they are now: of each, in the schemas' order, its name (with its NUL), its shape as int64
 * and its data as f32, also where it stays BF16. Reads all of them once. */
int tpo_start_digest(char out[TPO_SHA256_HEX], struct tpo_stream *s, struct tpo_model *const *models, int n_models,
                     struct tpo_error *err);

#endif
