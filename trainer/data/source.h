/* source.h -- an annotation file and its media as batches of training samples, the like of the world's (world.h).
 *
 * Sample `index` is a row and the frames of its medium, a pure function of the files, the seed and the index: annotations.h's order, epoch by
 * epoch. A row whose medium is gone or cannot be decoded is bad from then on; the draws that meet it take another row instead, which (seed,
 * index) alone names, so that a run that goes on later draws the same, and counts the same where it knows what the run before found (bad_rows.h).
 * A busy machine marks nothing: it is waited for. Frames come as the encoder service makes them (services/encoder/frames.h): an image is one
 * frame, a film is sampled by rule "middle" and resized. Of a row that asks more than n_conversations questions as many in a row are taken, the
 * first by (seed, index).
 *
 * With by_id a row's medium is decoded here when it is drawn first, which tells whether it can be; from then on its name is all that is needed. */
#ifndef TPO_TRAINER_DATA_SOURCE_H
#define TPO_TRAINER_DATA_SOURCE_H

#include "common/arena.h"
#include "common/media/media.h"
#include "kernels/stream.h"
#include "nn/config.h"
#include "trainer/data/annotations.h"
#include "trainer/world/world.h"

struct tpo_source;

/* Pointers are borrowed until close. */
struct tpo_source_options {
    struct tpo_annotations_options rows; /* tokens and on_bad are the source's own */
    const struct tpo_config *config;     /* of the model that learns: size, frames, task tokens */
    tpo_media_t *media;                  /* its timeout is that of one try */
    int threads;                         /* that decode side by side, 1..16 */
    int n_frames;                        /* of a film; 0: the model's num_frames, else fewer, where the model takes fewer */
    int n_conversations;                 /* about a medium, at most */
    float weight_end;                    /* of the </s> */
    const char *bad_rows;                /* the file that remembers bad rows (bad_rows.h); NULL: none */
    const char *rows_of;                 /* names the rows there: a digest of what decides which they are */
    uint64_t first;                      /* the sample that is filled first: a run goes on there */
    /* Samples name their medium (media_id, media_path) instead of bringing pixels, for an encoder that reads recorded media; films of fewer frames
     * than the model's bring them all the same, since a service samples by its own configuration. */
    bool by_id;
};

/* INVALID_ARGUMENT "frames" for films of so many frames (0: the model's number) where the model does not take them; `annotations` is for the
 * sentence. */
int tpo_source_takes(const struct tpo_config *c, const char *annotations, int n_frames, struct tpo_error *err);

/* Reads and checks the file. The errors of tpo_annotations_open and tpo_source_takes. Bad rows
 * are logged, the first ten with their reason, and all by number. */
int tpo_source_open(struct tpo_source **out, const struct tpo_source_options *o, struct tpo_error *err);
void tpo_source_close(struct tpo_source *s); /* accepts NULL */

/* Samples first .. first+n-1 into the batch, valid until its next fill. INVALID_ARGUMENT "annotations" once more than skip_most of the file's
 * rows are bad, or when 64 rows drawn for one sample are; FAILED_PRECONDITION "media_slow" for a file that is not decoded in five tries; what is
 * not a row's fault (no decoder, no memory, no more files, annotations that changed) as it is. */
int tpo_source_fill(struct tpo_source *s, struct tpo_world_batch *b, uint64_t first, int n, struct tpo_error *err);

/* The frames of a sample that names its medium, into the arena and in place of the name. `stream`: of the resize, one for each thread.
 * FAILED_PRECONDITION "media_gone" where the medium is not what it was when the sample was drawn; "media_slow". */
int tpo_source_pixels(tpo_media_t *media, const struct tpo_config *c, struct tpo_stream *stream, struct tpo_arena *a,
                      struct tpo_sample *s, struct tpo_error *err);

int64_t tpo_source_skipped(const struct tpo_source *s); /* bad ones that are known by now */
int64_t tpo_source_films(const struct tpo_source *s);   /* rows whose medium is said to be a film */

#endif
