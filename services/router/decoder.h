/* decoder.h -- the router's tensors and its forward pass on a tape: Mistral with LoRA (docs/model.md, Decoder), the
 * projection of the visual rows, the box encoder, the task vectors.
 *
 * Serving (router.c and its engine) reads the same struct and walks the layers with the paged attention; training and the parity
 * runner use the tape functions here. Linear weights are [out, in]; y = w x + (alpha / r) b (a x). */
#ifndef TPO_SERVICES_ROUTER_DECODER_H
#define TPO_SERVICES_ROUTER_DECODER_H

#include "nn/config.h"
#include "nn/tape.h"

/* One linear of the language model: names end in base_layer.weight, lora_A.default.weight, lora_B.default.weight. */
struct tpo_lora {
    struct tpo_param *w; /* (out, in) */
    struct tpo_param *a; /* (r, in), NULL with use_lora false */
    struct tpo_param *b; /* (out, r) */
};

struct tpo_decoder_layer {
    struct tpo_param *input_norm, *post_norm; /* (hidden) */
    struct tpo_lora q, k, v, o, gate, up, down;
};

struct tpo_decoder {
    const struct tpo_config *config;  /* borrowed */
    struct tpo_param *embed_tokens;   /* (vocab, hidden) */
    struct tpo_decoder_layer *layers; /* config->llm.num_hidden_layers */
    struct tpo_param *norm;
    struct tpo_lora lm_head;                       /* (vocab, hidden) */
    struct tpo_param *project_up_w, *project_up_b; /* (hidden, bridge hidden) */
    struct tpo_param *slot_position; /* (queries, hidden), added after project_up; NULL without llm.ext_slot_position */
    struct tpo_param *box_w0, *box_b0, *box_w1, *box_b1; /* loc_encoder.0 and .2: 4 -> box_encoder_hidden_size, ReLU, -> hidden */
    struct tpo_param *vectors[TPO_TASKS_MAX];            /* v_i of config->tasks[i], (1, 1, hidden) */
    /* Heads of the slot loss, with `aids` only: ext.router.slot.box (4) and ext.router.slot.centre (2), .weight and .bias each. */
    struct tpo_param *slot_box_w, *slot_box_b, *slot_centre_w, *slot_centre_b;
};

/* Declares every tensor the router owns and keeps the pointers. TPO_ENOMEM; close accepts what is half-made. */
int tpo_decoder_declare(struct tpo_decoder *d, struct tpo_params *p, const struct tpo_config *c, int aids);
void tpo_decoder_close(struct tpo_decoder *d);

/* merged (out, in) = w + (alpha / r) b a, in f32; w alone without LoRA. merged may not be w. */
int tpo_decoder_merge(struct tpo_stream *s, float *merged, const struct tpo_lora *l, float scale);

/* Where the rows of a batch lie: B sequences of T rows, the short ones padded on the right. Arrays are borrowed until the tape
 * is reset. */
struct tpo_decoder_batch {
    int B, T;
    const int32_t *positions; /* (B*T) */
    const int32_t *lengths;   /* (B); NULL: all T */
    const int32_t *segments;  /* (B, T), attention.h's rule; NULL: one conversation each */
    /* (n_keep) rows whose hidden state anyone will read, in the order wanted; NULL: all. What comes after the last layer's
     * attention runs on these alone. */
    const int32_t *keep;
    int n_keep;
};

struct tpo_attention_shape tpo_decoder_shape(const struct tpo_decoder *d, const struct tpo_decoder_batch *batch);

/* What one attention layer saw, for the attention losses and the tests: q (B*T, heads*head_dim), k, v (B*T, kv heads*head_dim),
 * after rotation. */
struct tpo_decoder_seen {
    struct tpo_tensor *q, *k, *v;
};

/* x (B*T, hidden) -> hidden states after the final norm, (B*T or n_keep, hidden). `dropout` 0 outside training; `noise` keys it.
 * seen: num_hidden_layers entries or NULL. */
struct tpo_tensor *tpo_decoder_forward(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *x,
                                       const struct tpo_decoder_batch *batch, float dropout, uint64_t noise,
                                       struct tpo_decoder_seen *seen);
/* Rows e (n, hidden) -> logits (n, vocab). */
struct tpo_tensor *tpo_decoder_logits(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *e, float dropout,
                                      uint64_t noise);
/* Connector rows (clips * queries, bridge hidden) -> rows of the language model, slot positions added where configured. */
struct tpo_tensor *tpo_decoder_project(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *visual);
/* Boxes (n, 4) -> rows (n, hidden). */
struct tpo_tensor *tpo_decoder_box(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *boxes);

/* The prompt's rows (docs/model.md, Rows). Row m is, in this order of strength: v_i where ids[m] is a task's slot; row visual[m]
 * of `projected` where that is not negative; the next row of `boxes` where ids[m] is <track_box> (in row order; a plain
 * embedding when `boxes` has run out or is NULL); else the embedding of ids[m], which takes a gradient only when embed_tokens is
 * trained. */
struct tpo_tensor *tpo_decoder_splice(struct tpo_tape *t, const struct tpo_decoder *d, const int32_t *ids, const int32_t *visual,
                                      int n, struct tpo_tensor *projected, struct tpo_tensor *boxes);

#endif
