/* view.h -- a scene drawn for an index, with its facts: what samples, items and files start from. */
#ifndef TPO_TRAINER_WORLD_VIEW_H
#define TPO_TRAINER_WORLD_VIEW_H

#include "trainer/world/ask.h"

struct tpo_world {
    struct tpo_world_options options;
    uint64_t key;
    struct tpo_phrases phrases;
};

struct tpo_view {
    uint64_t key; /* of the scene; sentences draw from tpo_rng_key(key, TPO_VIEW_TEXT + i) */
    struct tpo_scene scene;
    struct tpo_facts facts;
};
#define TPO_VIEW_TEXT 16

/* Streams keep samples, items of each kind and files apart: no two share a scene. */
enum tpo_view_stream { TPO_VIEW_SAMPLES, TPO_VIEW_ITEMS /* + kind */, TPO_VIEW_FILES = 64, TPO_VIEW_CLIPS, TPO_VIEW_CORPUS };

int tpo_view_alloc(struct tpo_view *v, const struct tpo_world *w, struct tpo_arena *arena, int n_frames);
/* `attempt` counts up when a scene did not offer what was wanted. */
void tpo_view_make(struct tpo_view *v, const struct tpo_world *w, int stream, uint64_t index, int attempt, int min_objects);

#endif
