/* feed.h -- samples drawn ahead of the step by a thread of its own. What a step gets is a pure function of (recipe, stage, step): the thread
 * only decides when it is drawn. */
#ifndef TPO_TRAINER_STEPS_FEED_H
#define TPO_TRAINER_STEPS_FEED_H

#include "nn/config.h"
#include "trainer/steps/data_digest.h"
#include "trainer/steps/recipe.h"

struct tpo_feed; /* opaque: owns its thread and a ring of batches */

/* Borrowed until close. */
struct tpo_feed_options {
    const struct tpo_recipe *recipe;
    int stage, first_step;
    const struct tpo_config *config;               /* of the model that learns */
    int (*word_id)(void *owner, const char *word); /* the vocabulary id of a word (world.h); NULL where no stage wants slots */
    void *owner;
    bool over_mesh;  /* a micro-batch that no message can hold is refused (messages.h) */
    bool by_id;      /* samples of a source name their media (source.h): an encoder over the mesh, frozen in this stage */
    const char *dir; /* of the stage: rows whose media are bad are remembered there, in bad-rows-N; NULL: nowhere */
    const struct tpo_data_digest *data; /* of each entry: whose rows those are; NULL where dir is */
    const char *media_program;          /* as media.h has it; started only where the stage reads files */
};

/* Draws steps first_step, first_step + 1, ... of the stage. A source's rows come in its own order (source.h): the micro-batches that draw from
 * it, from the stage's first step on, go through it epoch by epoch. The errors of tpo_world_open, tpo_source_open, tpo_media_open and
 * tpo_message_check. */
int tpo_feed_open(struct tpo_feed **out, const struct tpo_feed_options *o, struct tpo_error *err);
void tpo_feed_close(struct tpo_feed *f); /* accepts NULL; joins the thread */

/* Whether the model takes what stages first.. of the recipe draw, no file read: a stage's faults are told before the run's first step.
 * INVALID_ARGUMENT with the reason of tpo_world_open, tpo_world_draw_check, tpo_encoder_takes or tpo_source_takes, stage and entry in the message. */
int tpo_feed_check(const struct tpo_recipe *r, int first, const struct tpo_config *c, struct tpo_error *err);

/* Whether the stage reads files, and how many of their rows are passed over as of the step that was taken last: bad ones, and those whose media
 * are. */
bool tpo_feed_reads(const struct tpo_feed *f);
int64_t tpo_feed_skipped(const struct tpo_feed *f);

/* The samples of the next step: *out[micro_batch], valid until the next call. Waits for the thread; its error, if it met one. */
int tpo_feed_next(struct tpo_feed *f, const struct tpo_world_batch **out, struct tpo_error *err);

/* The frames of a sample that names its medium, decoded anew into the arena, in place of the name: as source.h would have made them. Any thread.
 * FAILED_PRECONDITION "media_gone" for a medium that was good when it was drawn: another draw would find that out. */
int tpo_feed_pixels(const struct tpo_feed *f, struct tpo_arena *a, struct tpo_sample *s, struct tpo_error *err);

#endif
