/* asker.h -- a model folder that answers a world's items in this process, through the code that serves: the encoder's run, the router's
 * scheduler with many sequences in flight, the region head. No network, no cache. */
#ifndef TPO_TRAINER_EVAL_ASKER_H
#define TPO_TRAINER_EVAL_ASKER_H

#include "kernels/stream.h"
#include "trainer/world/world.h"

#define TPO_ASKER_TEXT 512

struct tpo_asker_answer {
    char text[TPO_ASKER_TEXT]; /* cut there */
    int length;
    bool called; /* the region head */
    float box[4];
};

struct tpo_asker;

/* Computes on `stream`, which is borrowed. */
int tpo_asker_open(struct tpo_asker **out, struct tpo_stream *stream, const char *folder, struct tpo_error *err);
void tpo_asker_close(struct tpo_asker *a); /* accepts NULL */
/* Calls answered(owner) after each answer. */
void tpo_asker_watch(struct tpo_asker *a, void (*answered)(void *owner), void *owner);
int tpo_asker_side(const struct tpo_asker *a);   /* pixels of a picture */
int tpo_asker_frames(const struct tpo_asker *a); /* most frames of a clip that a world makes */
/* INVALID_ARGUMENT when it takes no clips of so many frames. */
int tpo_asker_takes(const struct tpo_asker *a, int frames, struct tpo_error *err);

/* Looks at n items' pixels once, then answers their questions: seen[i] about its own picture, and, where blind is not NULL, blind[i] about the
 * next item's. INVALID_ARGUMENT "items" for blind ones of a single item, which has no other picture. The first question that ends without an
 * answer, or call without a box, ends the run with its error. */
int tpo_asker_run(struct tpo_asker *a, const struct tpo_world_item *items, int n, struct tpo_asker_answer *seen,
                  struct tpo_asker_answer *blind, struct tpo_error *err);

#endif
