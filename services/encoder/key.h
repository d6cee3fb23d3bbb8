/* key.h -- the key under which the cache holds what the encoder makes of a medium (docs/mesh.md, Cache), for serving and, in f32, for training alike.
 *
 * A value depends on the medium, on which frames are taken and how they are resized, on the weights, and on what changes no tensor: heads, mean and
 * deviation of the pixels, the epsilon of a norm (config.json, as a whole), the type that products are made in and whether this machine rounds what it
 * multiplies (which training never does), the device. */
#ifndef TPO_SERVICES_ENCODER_KEY_H
#define TPO_SERVICES_ENCODER_KEY_H

#include "common/cache_value.h"
#include "nn/config.h"

/* All but the medium and the weights, as words. */
struct tpo_encoder_how {
    char words[256];
};

/* folder: of the model; device: the stream's name; rounds: whether the stream does. tpo_config_hash's errors. */
int tpo_encoder_how_make(struct tpo_encoder_how *how, const struct tpo_config *c, const char *folder, const char *device,
                         bool rounds, struct tpo_error *err);
/* media_id: 64 hex digits; digest: of the weights (nn/snapshot.h). */
void tpo_encoder_key(struct tpo_cache_key *key, const struct tpo_encoder_how *how, const char *media_id, const char *digest);

#endif
