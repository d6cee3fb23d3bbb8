/* data_digest.h -- what an entry of a stage's data is of, as two digests: a run that goes on with another entry would learn from other samples.
 *
 * `draw`: how samples are drawn: share, samples, frames, conversations, mix and the like. `rows`: of a source which rows there are: its kind, its
 * split and the bytes of its annotation files, which are read whole (that is quick beside their parsing); "" for the world. What is not in it may
 * change: where files and media lie, the media themselves (a file that does not decode is replaced by an empty one), and skip_most. */
#ifndef TPO_TRAINER_STEPS_DATA_DIGEST_H
#define TPO_TRAINER_STEPS_DATA_DIGEST_H

#include "common/sha256.h"
#include "trainer/steps/recipe.h"

struct tpo_data_digest {
    char draw[TPO_SHA256_HEX], rows[TPO_SHA256_HEX];
};

/* NOT_FOUND "annotations" for a file that cannot be read. */
int tpo_data_digest(struct tpo_data_digest *out, const struct tpo_recipe_data *d, struct tpo_error *err);

#endif
