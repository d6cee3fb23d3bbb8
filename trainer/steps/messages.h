/* messages.h -- whether what a micro-batch passes on over a mesh fits a message: known from the recipe and the model, before the first step.
 *
 * Pixels go to the encoder (unless samples name their media), visual tokens of f32 to the router and their gradients back. */
#ifndef TPO_TRAINER_STEPS_MESSAGES_H
#define TPO_TRAINER_STEPS_MESSAGES_H

#include "nn/config.h"
#include "nn/params.h"
#include "trainer/steps/recipe.h"

/* Of one entry of a stage's data; by_id as in feed.h, n_films: how many rows of its source may be films. INVALID_ARGUMENT "samples", with what to
 * change. */
int tpo_message_check(const struct tpo_recipe_stage *s, int data, const struct tpo_config *c, bool by_id, int64_t n_films,
                      struct tpo_error *err);

/* Of all entries of stages first.. at their least, no file read: a source that mixes pictures and films is taken for pictures. */
int tpo_messages_check(const struct tpo_recipe *r, int first, const struct tpo_config *c, const struct tpo_params *encoder,
                       struct tpo_error *err);

#endif
