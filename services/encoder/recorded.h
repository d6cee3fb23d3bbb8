/* recorded.h -- training on recorded media: samples that name a file instead of bringing pixels (learner.proto, Sample.media_id).
 *
 * Frames come by the path that serving takes (media store, tpo-media worker, frames.h), decoded on threads of its own: what a sample names as its
 * next_media_id is decoded while this step computes. Where nothing of the encoder learns and the dense aid is off, a clip's visual
 * tokens are serving's own value: taken from its cache or put there (docs/mesh.md, Cache), clip by clip. The key holds the digest of
 * the weights as they are, whatever trained or replaced them before: the one that serving has for them once they are published
 * (nn/snapshot.h).
 * Counted: tpo_training_visual_total{source="cache"|"encoder"}, tpo_media_decodes_total. */
#ifndef TPO_SERVICES_ENCODER_RECORDED_H
#define TPO_SERVICES_ENCODER_RECORDED_H

#include "common/cache.h"
#include "common/media/media.h"
#include "common/media/store.h"
#include "services/encoder/encoder.h"
#include "services/encoder/key.h"

struct tpo_recorded;

/* All borrowed until close, but digest, which is copied. */
struct tpo_recorded_options {
    struct tpo_encoder *encoder; /* the one that learns, as it was loaded */
    const struct tpo_config *config;
    const struct tpo_encoder_how *how; /* serving's part of the cache's keys */
    tpo_store_t *store;
    tpo_media_t *media;
    tpo_cache_t *cache; /* NULL: none */
    struct tpo_metrics *metrics;
    const char *digest; /* of the loaded weights, as serving's keys have it */
    int timeout_ms, threads;
};

int tpo_recorded_open(struct tpo_recorded **out, const struct tpo_recorded_options *o, struct tpo_error *err);
void tpo_recorded_close(struct tpo_recorded *r); /* accepts NULL; after the learner over its model */

/* tpo_encoder_model that reads samples with media ids too. FAILED_PRECONDITION "media_missing" where the bytes are not here, INVALID_ARGUMENT
 * "media_id", else media.h's errors. */
struct tpo_model *tpo_recorded_model(struct tpo_recorded *r);

#endif
