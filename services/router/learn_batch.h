/* learn_batch.h -- a micro-batch as the decoder takes it: conversations made into prompts and packed. Only
 * services/router/learn*.c see it. */
#ifndef TPO_SERVICES_ROUTER_LEARN_BATCH_H
#define TPO_SERVICES_ROUTER_LEARN_BATCH_H

#include "services/router/learn.h"
#include "services/router/prompt.h"

/* One conversation and where it went: its own row r is row tpo_learn_row(...) of the batch. */
struct tpo_packed {
    int sample, conversation;
    const struct tpo_conversation *source;
    struct tpo_prompt prompt;
    int prefix; /* shared rows before it, at the sample's start */
    int start;  /* row of the sample where its own part begins */
};

struct tpo_learn_batch {
    const struct tpo_router_learn *learn;
    const struct tpo_forward *f;
    int n_packed;
    struct tpo_packed *packed; /* by sample, then conversation */
    int queries;               /* visual rows per sample, 0 without the input */
    struct tpo_decoder_batch rows;
    int32_t *ids, *visual; /* (B*T) */
    float *boxes;          /* user boxes in row order */
    int n_boxes;
    int32_t *kept; /* (B*T) where a row lies among rows.keep, -1 */
};

/* Row of the sample; add sample * T for the row of the batch. */
static inline int tpo_learn_row(const struct tpo_packed *p, int row)
{
    return row < p->prefix ? row : p->start + row - p->prefix;
}

/* Aids (docs/model.md, Aids); NULL when the micro-batch has no target (or the tape failed). */
struct tpo_tensor *tpo_learn_slot_loss(struct tpo_tape *t, const struct tpo_learn_batch *b, struct tpo_tensor *projected,
                                       struct tpo_error *err);
struct tpo_tensor *tpo_learn_attention_loss(struct tpo_tape *t, const struct tpo_learn_batch *b,
                                            const struct tpo_decoder_seen *seen, struct tpo_error *err);

#endif
