/* annotations.h -- annotation files of real data sets as training samples: which medium, what is asked, what is answered, where the boxes are.
 *
 *   refcoco      refs.json [{ann_id, file_name, split, sentences: [{sent}]}] beside instances.json {images: [{id, file_name, width, height}],
 *                annotations: [{id, image_id, bbox: [x, y, w, h] in pixels}]}; a row answers "<box_begin><boxes>" to "Where is SENT?" for each
 *                sentence. The medium is the image's file_name; the row's counts only where that is missing, since RefCOCO's own names no file
 *   videochat2   [{video or image, QA: [{i, q, a}]}]; a question is "i q" where i is not empty
 *   mvbench      [{video, question, candidates: [], answer}]; the answer is the candidate's letter, "(B)", as in multiple choice
 *
 * A file is read whole once and its rows are indexed by offset: no row is kept, so memory is 24 bytes a row then, and refcoco's boxes (instances.h). A
 * row that is drawn is read again from the file that was opened. A bad
 * row is one that is no JSON object, lacks a field or has one of the wrong type, is empty, has a box that is NaN, inverted or outside its
 * picture, answers with a task token, or names what is no file below the media folder (or a path that leads out of it). Each is counted and
 * reported to on_bad as "file:line: why". */
#ifndef TPO_TRAINER_DATA_ANNOTATIONS_H
#define TPO_TRAINER_DATA_ANNOTATIONS_H

#include "common/arena.h"
#include "common/status.h"
#include "nn/sample.h"

enum tpo_annotation_source { TPO_ANNOTATIONS_REFCOCO, TPO_ANNOTATIONS_VIDEOCHAT2, TPO_ANNOTATIONS_MVBENCH, TPO_ANNOTATION_SOURCES };

enum tpo_annotation_fault {
    TPO_FAULT_ROW_BROKEN, /* no JSON object, or a field missing or of the wrong type */
    TPO_FAULT_ROW_EMPTY,  /* nothing asked, or nothing answered */
    TPO_FAULT_ROW_BOX,    /* NaN, inverted, without area, or outside the picture */
    TPO_FAULT_ROW_ANSWER, /* the answer is not among the candidates */
    TPO_FAULT_ROW_TOKEN,  /* an answer holds a task token: it would be learned as a call without a target */
    TPO_FAULT_ROW_MEDIA,  /* not there, no file, or outside the folder */
    TPO_ROW_FAULTS
};
const char *tpo_annotation_fault_name(enum tpo_annotation_fault f);

struct tpo_annotations; /* opaque: constant once open, any number of threads may read */

struct tpo_annotations_options {
    enum tpo_annotation_source source;
    const char *annotations, *instances /* refcoco: NULL is instances.json beside the annotations */, *media;
    const char *split; /* refcoco: rows of another split are left out; NULL: all are taken */
    double skip_most;  /* share of bad rows that is passed over, 0..1 */
    uint64_t seed;     /* of the order */
    const char *const
        *tokens; /* what no answer of the file may hold, borrowed until close; NULL ends them, NULL: nothing is asked */
    void (*on_bad)(void *owner, const char *text);
    void *owner;
};

/* Where refcoco's boxes are unless they are named: instances.json beside the annotations. */
void tpo_annotations_instances(char *out, size_t size, const char *annotations);

/* Reads and checks every row. NOT_FOUND "annotations" for a missing file or folder; INVALID_ARGUMENT "annotations" when the file is no list or more
 * than one, holds no good row, or more than skip_most of its rows are bad: the sentence names the commonest fault and the first row that has it. */
int tpo_annotations_open(struct tpo_annotations **out, const struct tpo_annotations_options *o, struct tpo_error *err);
void tpo_annotations_close(struct tpo_annotations *a); /* accepts NULL */

/* Those that draws name: good ones, and those whose medium is missing, so that the order is that of the file, whatever lies beside it. */
int64_t tpo_annotations_rows(const struct tpo_annotations *a);
bool tpo_annotations_missing(const struct tpo_annotations *a, int64_t row); /* its medium was, when the file was read */
int64_t tpo_annotations_bad(const struct tpo_annotations *a, enum tpo_annotation_fault f);
int64_t tpo_annotations_all_bad(const struct tpo_annotations *a);
int64_t tpo_annotations_films(const struct tpo_annotations *a);              /* good ones whose medium is said to be a film */
int64_t tpo_annotations_left_out(const struct tpo_annotations *a);           /* of other splits: neither good nor bad */
unsigned tpo_annotations_line(const struct tpo_annotations *a, int64_t row); /* of the file, where it begins */

/* The row that draw `index` takes: epoch index / rows is an order of its own in which every row comes once, a pure function of (seed, index). */
int64_t tpo_annotations_pick(const struct tpo_annotations *a, uint64_t index);

/* A row (0..rows-1) as a sample in the arena: media_id is the medium's path below the media folder as the row spells it ("./a.png" is a.png),
 * pixels is NULL: the caller decodes; n_frames is 1 for an image, 0 for a film. Language weights are 1. NOT_FOUND "annotations" when its medium went
 * away, DATA_LOSS "annotations" when its bytes changed or are gone, TPO_ENOMEM when the arena is full. */
int tpo_annotations_row(const struct tpo_annotations *a, struct tpo_arena *arena, int64_t row, struct tpo_sample *out,
                        struct tpo_error *err);

#endif
