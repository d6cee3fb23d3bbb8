/* snapshot.h -- one version of a model's weights: where each tensor of its schema lies, and the tensors that training changed, copied.
 *
 * Serving owns one model and turns it to the version of the next pass with tpo_snapshot_use, which moves pointers and nothing else. Frozen tensors
 * lie where the folder was mapped, in every version, so a version costs the memory of what a run trains (with LoRA: of the adapter).
 *
 * Digest: the folder's as it was loaded; of a version in which tensors changed, SHA-256 in hex over the folder's digest (with its NUL), then for each
 * changed tensor, in the schema's order, its name (with its NUL), " " and each dimension, a NUL, and 64 hex digits of the SHA-256 of its f32 data. So
 * frozen weights are not read again, equal weights have equal digests, and a service of which nothing was trained keeps the folder's. */
#ifndef TPO_NN_SNAPSHOT_H
#define TPO_NN_SNAPSHOT_H

#include "nn/params.h"

struct tpo_snapshot {
    float **data; /* (n), as in the schema; borrowed but for `owned` */
    int n;
    float **owned; /* of the device */
    int n_owned;
    char digest[72];
};

/* The weights as they are in p now, all borrowed; digest may be "". TPO_ENOMEM. */
int tpo_snapshot_open(struct tpo_snapshot **out, const struct tpo_params *p, const char *digest, struct tpo_error *err);
/* `loaded` with the tensors that `trainee` no longer keeps where `untrained`, a snapshot of it from before its training, found them. p and
 * `loaded` are serving's; tensors of the trainee alone (a training aid's) are left out. Reads the trainee's committed weights, so on the thread
 * that trains. */
int tpo_snapshot_of_trained(struct tpo_snapshot **out, struct tpo_stream *s, const struct tpo_params *p,
                            const struct tpo_snapshot *loaded, const struct tpo_params *trainee,
                            const struct tpo_snapshot *untrained, struct tpo_error *err);
/* The digest that a snapshot of trained weights would have, nothing copied: serving's key for them, published or not. out: 72 letters. TPO_ENOMEM. */
int tpo_snapshot_digest_trained(char out[72], struct tpo_stream *s, const char *loaded, const struct tpo_params *trainee,
                                const struct tpo_snapshot *untrained, struct tpo_error *err);
void tpo_snapshot_close(struct tpo_snapshot *x, struct tpo_stream *s); /* accepts NULL; no pass with it may be under way */

/* Turns the model whose schema p is to these weights. */
void tpo_snapshot_use(const struct tpo_snapshot *x, struct tpo_params *p);

#endif
