/* sample.h -- one training sample, as every learner sees it (learner.proto's Sample): pixels, 1..n conversations behind one visual prefix
 * (masked from each other, positions restarted), named target tensors.
 *
 * Text is plain; the router alone makes ids, labels and slots, with the code that serves. Everything is borrowed from the trainer
 * until the step's Forward has returned. */
#ifndef TPO_NN_SAMPLE_H
#define TPO_NN_SAMPLE_H

#include <stdint.h>

#include "nn/params.h"

/* A host tensor with a name. data holds product(shape) elements of dtype. */
struct tpo_named_tensor {
    const char *name;
    enum tpo_dtype dtype;
    int n_dims;
    int64_t shape[TPO_DIMS_MAX];
    const void *data;
};

struct tpo_turn {
    const char *question; /* may hold {box} for a user box */
    const char *answer;   /* task tokens are written as in the templates: "<box_begin><boxes>" */
};

/* Where an attention target's row or goal is. Words are given by the byte offset of their first letter in the last turn's question
 * or answer; the router finds the token that covers it. */
enum tpo_attention_place {
    TPO_AT_VECTOR, /* v_i's own position (the slot of the first task in the answer) */
    TPO_AT_ANSWER, /* the position that predicts a word of the answer (0: its first) */
    TPO_AT_WORD,   /* a word of the question */
    TPO_AT_SLOTS,  /* the visual rows; as goal only, with `slots` */
};

/* A training-only aid (docs/model.md, Aids): row `from` of one attention head should look at `to`. */
struct tpo_attention_target {
    int layer, head;
    float weight;
    enum tpo_attention_place from;
    int from_offset;
    enum tpo_attention_place to;
    int to_offset;
    const float *slots; /* (n_slots), sums to 1; only for TPO_AT_SLOTS, and then n_slots is the number of visual rows */
    int n_slots;
};

struct tpo_conversation {
    const char *system;
    int n_turns;
    const struct tpo_turn *turns;
    int n_user_boxes;
    const float (*user_boxes)[4]; /* normalised corners, in order of {box} */
    int n_boxes;
    const float (*boxes)[4]; /* targets, one per <boxes> of the answers, in order; normalised corners */
    float weight;            /* of its language loss, 1 as a rule */
    float weight_end;        /* of the </s> relative to the rest, 1 as a rule */
    int n_attention;
    const struct tpo_attention_target *attention;
};

struct tpo_sample {
    int n_frames, height, width;
    const uint8_t *pixels;     /* (T, H, W, 3), already at the encoder's size */
    const char *media_id;      /* instead of pixels, for recorded data; NULL: none */
    const char *media_path;    /* where the trainer has the bytes of media_id; never sent */
    const char *next_media_id; /* what the next step will need, NULL: nothing */
    int n_conversations;
    const struct tpo_conversation *conversations;
    int n_targets;
    const struct tpo_named_tensor *targets;
};

#endif
