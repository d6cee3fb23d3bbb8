/* feed.h -- samples drawn ahead of the step by a thread of its own. What a step gets is a pure function of (recipe, stage, step): the thread
 * only decides when it is drawn. */
#ifndef TPO_TRAINER_STEPS_FEED_H
#define TPO_TRAINER_STEPS_FEED_H

#include "trainer/steps/recipe.h"

struct tpo_feed; /* opaque: owns its thread and a ring of batches */

/* Draws steps first_step, first_step + 1, ... of a stage. word_id gives the vocabulary id of a word (world.h), NULL where no stage wants slots. */
int tpo_feed_open(struct tpo_feed **out, const struct tpo_recipe *r, int stage, int first_step, int side,
                  int (*word_id)(void *owner, const char *word), void *owner, struct tpo_error *err);
void tpo_feed_close(struct tpo_feed *f); /* accepts NULL; joins the thread */

/* The samples of the next step: *out[micro_batch], valid until the next call. Waits for the thread; its error, if it met one. */
int tpo_feed_next(struct tpo_feed *f, const struct tpo_world_batch **out, struct tpo_error *err);

#endif
