/* This file owns the encoder's cache key. */
#include "services/encoder/key.h"

#include <stdio.h>

#include "services/encoder/frames.h"

int tpo_encoder_how_make(struct tpo_encoder_how *how, const struct tpo_config *c, const char *folder, const char *device,
                         bool rounds, struct tpo_error *err)
{
    char rule[96], hash[TPO_SHA256_HEX];
    const int rc = tpo_config_hash(hash, folder, err);
    if (rc != TPO_OK) return rc;
    snprintf(how->words, sizeof(how->words), "%s config=%s %s %s%s", tpo_frames_rule(rule, sizeof(rule), c), hash,
             c->keep_bf16 ? "bf16" : "f32", device, rounds ? " rounded" : "");
    return TPO_OK;
}

void tpo_encoder_key(struct tpo_cache_key *key, const struct tpo_encoder_how *how, const char *media_id, const char *digest)
{
    const char *const parts[] = {"encoder", media_id, how->words, digest};
    tpo_cache_key_make(key, parts, 4);
}
