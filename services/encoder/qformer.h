/* qformer.h -- the Q-Former (docs/model.md, Q-Former): patch tokens to a fixed number of query rows. Only
 * services/encoder and the parity runner see it. */
#ifndef TPO_SERVICES_ENCODER_QFORMER_H
#define TPO_SERVICES_ENCODER_QFORMER_H

#include "nn/config.h"
#include "nn/tape.h"

struct tpo_dense {
    struct tpo_param *w, *b;
};

struct tpo_qformer_attention {
    struct tpo_dense query, key, value, output, norm;
};

struct tpo_qformer_layer {
    struct tpo_qformer_attention self, cross;              /* cross.query.w is NULL where the layer has none */
    struct tpo_dense inner_query, outer_query, norm_query; /* intermediate_query, output_query */
    struct tpo_dense inner, outer, norm;                   /* intermediate, output: the text rows' */
};

struct tpo_qformer {
    const struct tpo_config *config;           /* borrowed */
    struct tpo_param *queries, *extra_queries; /* (1, n, hidden); extra NULL when there are none */
    struct tpo_param *words, *positions;       /* text path, idle in serving */
    struct tpo_dense norm;
    struct tpo_param *key_position; /* ext_key_position only */
    struct tpo_qformer_layer *layers;
};

int tpo_qformer_declare(struct tpo_qformer *q, struct tpo_params *p, const struct tpo_config *c);
void tpo_qformer_close(struct tpo_qformer *q);

struct tpo_qformer_input {
    struct tpo_tensor *visual; /* (B * N, vision width) after vision_layernorm */
    int B, N;
    int text_length;                     /* 0: no text */
    const int32_t *text_ids, *text_mask; /* (B, text_length), mask 1 = valid */
    float dropout, drop_path;            /* of what learns, sublayer by sublayer; 0 outside training */
    uint64_t noise;
};

/* Query rows (B * queries, hidden). */
struct tpo_tensor *tpo_qformer_forward(struct tpo_tape *t, const struct tpo_qformer *q, const struct tpo_qformer_input *in);

#endif
