/* model_folder.h -- `tpo model`: a model folder checked, made of random weights, or exported from a checkpoint. */
#ifndef TPO_TRAINER_MODEL_FOLDER_H
#define TPO_TRAINER_MODEL_FOLDER_H

#include <stdint.h>

#include "common/dtype.h"
#include "common/status.h"

/* Writes DIR with config.json, added_tokens.json and tokenizer.model of `from`, every tensor that the services' schemas ask of that config, in
 * shards where there is much of it (shards.h), and manifest.json: values from the weights of `from`, or with `random` from `seed`, then with what
 * FROM/tensors.txt lists besides (tensor_list.h). dtype F32 or BF16 (round to nearest even). Training-only tensors (ext.*.dense, ext.*.slot
 * heads) are left out. DIR must not hold a model yet: ALREADY_EXISTS; no room: RESOURCE_EXHAUSTED "disk_full". A failure leaves what was there
 * before. */
int tpo_model_folder_write(const char *dir, const char *from, int random, uint64_t seed, enum tpo_dtype dtype,
                           struct tpo_error *err);

/* ALREADY_EXISTS where `dir` holds weights. */
int tpo_model_folder_vacant(const char *dir, struct tpo_error *err);

/* Makes `dir` where it is missing, lets `write` put files into DIR/.part and moves them once it is done: a failure leaves what was there before. */
int tpo_model_folder_fill(const char *dir, int (*write)(void *owner, const char *part, struct tpo_error *err), void *owner,
                          struct tpo_error *err);

/* Copies config.json, added_tokens.json and tokenizer.model. */
int tpo_model_folder_companions(const char *dir, const char *from, struct tpo_error *err);

/* Writes manifest.json: the hash of every tensor, so that a service which starts on this folder need not read it to tell its digest. */
int tpo_model_folder_manifest(const char *dir, struct tpo_error *err);

/* The subcommand; its exit status. */
int tpo_model_main(int argc, char **argv);

#endif
