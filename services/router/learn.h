/* learn.h -- the router's training forward pass: samples with their conversations in, e and losses out (docs/model.md,
 * Losses and Aids).
 *
 * Every conversation of a sample is packed behind one visual prefix: segment 0 is everything up to and including the visual
 * block and is shared, conversation i is segment i + 1, sees the prefix and itself, and its positions go on from the prefix's
 * end. */
#ifndef TPO_SERVICES_ROUTER_LEARN_H
#define TPO_SERVICES_ROUTER_LEARN_H

#include "nn/model.h"
#include "services/router/decoder.h"

struct tpo_tokenizer; /* nn/tokenizer.h */

struct tpo_router_learn {
    struct tpo_model model;
    struct tpo_decoder *decoder;
    struct tpo_tokenizer *tokenizer;
};

/* A router that only learns: no pool, no scheduler. Tokenizer from `folder`; weights too, or random ones of `seed`; aids: with the tensors of the
 * slot loss, ext.router.slot.*. LoRA stays apart from its base. Borrowed: the stream. close accepts NULL. */
struct tpo_router_trainee;
int tpo_router_trainee_open(struct tpo_router_trainee **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder,
                            bool random, uint64_t seed, int aids, struct tpo_error *err);
/* Input "visual" (samples * Q, C); outputs "e.NAME" per task that occurs; losses "language", "slot", "attention". Targets of the slot loss:
 * "slot.words" (Q, 4 or 5) I32 vocabulary ids or -100, "slot.boxes" (Q, 4) F32, "slot.centres" (Q, 2) F32, a row with NaN taking no part. */
struct tpo_model *tpo_router_trainee_model(struct tpo_router_trainee *r);
void tpo_router_trainee_close(struct tpo_router_trainee *r);

/* The model alone, of parts that lie elsewhere. All borrowed; owns no memory, so there is nothing to close. */
void tpo_router_learn_open(struct tpo_router_learn *l, struct tpo_decoder *d, struct tpo_params *p,
                           struct tpo_tokenizer *tokenizer);

#endif
