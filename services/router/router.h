/* router.h -- the language model and its scheduler: text and visual tokens in, text and task embeddings out.
 *
 * It runs without a network. One thread owns a router: it submits requests and calls tpo_router_step until nothing is left; events come back from
 * within step, never from within submit. Equal requests get equal bits whatever else is in flight (docs/mesh.md, Router). Sequences
 * of several versions of the weights run side by side, in passes of one version each, over the same pool. */
#ifndef TPO_SERVICES_ROUTER_H
#define TPO_SERVICES_ROUTER_H

#include "nn/config.h"
#include "nn/params.h"
#include "nn/snapshot.h"

struct tpo_router;

struct tpo_router_options {
    const char *folder; /* weights, tokenizer.model, added_tokens.json */
    bool merge_lora;    /* W + scale B A once at load; false keeps them apart */
    size_t kv_bytes;    /* the pool of key/value blocks; 0: tpo_kv_bytes_default */
    int max_sequences;  /* in flight at once */
    int prefill_tokens; /* most prompt rows one step takes */
};

/* aids: with the tensors that only training has, ext.router.slot.* of the slot loss. */
void tpo_router_schema(struct tpo_params *p, const struct tpo_config *c, int aids);
int tpo_router_open(struct tpo_router **out, struct tpo_stream *s, const struct tpo_config *c, const struct tpo_router_options *o,
                    struct tpo_error *err);
void tpo_router_close(struct tpo_router *r);

struct tpo_chat_turn {
    const char *role, *text;
};

/* Borrowed until tpo_router_submit returns. */
struct tpo_router_request {
    int n_turns;
    const struct tpo_chat_turn *turns;
    int n_boxes;
    const float (*boxes)[4]; /* normalised corners */
    const char *task;        /* "auto", "none" or a task's name; without visual no task is called (task.h) */
    const char *media_kind;  /* "image", "video" or NULL */
    const float *visual;     /* (Q, C); NULL without media */
    int n_frames;
    const double *frame_times_s;
    int max_new_tokens;
    uint64_t seed;
    float temperature, top_p;           /* 0: greedy; 0: 1 */
    const struct tpo_snapshot *weights; /* of tpo_router_params, unmerged; must live until on_done. NULL: those of the last pass */
};

/* Called from within tpo_router_step. Text holds whole code points. Returning non-zero cancels the sequence. */
struct tpo_router_events {
    void *owner;
    int (*on_text)(void *owner, const char *text, size_t length);
    int (*on_task)(void *owner, const char *task, int index, int text_offset, const float *e, int D);
    void (*on_done)(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                    const struct tpo_error *err);
    void (*on_first)(void *owner); /* the first token is chosen, whether it has a text or not; NULL: nobody asks */
};

/* INVALID_ARGUMENT "kv_bytes" when the pool is too small for a question about a picture and an answer of the default length. */
int tpo_router_check_pool(const struct tpo_router *r, struct tpo_error *err);

/* Admits the request: reserves prompt + max_new_tokens of the pool, or answers INVALID_ARGUMENT "kv_full" when the pool is too small for it ever,
 * and TPO_UNAVAILABLE "kv_busy" when it must wait (the caller keeps it queued). *handle names it for cancel. */
int tpo_router_submit(struct tpo_router *r, const struct tpo_router_request *q, const struct tpo_router_events *on,
                      uint64_t *handle, struct tpo_error *err);
/* Whether a sequence and `rows` positions are free. Submit reads the whole prompt: who was told "kv_busy" asks this before the next try, with what
 * tpo_router_wanted says of the last one so told. */
bool tpo_router_room(const struct tpo_router *r, int rows);
int tpo_router_wanted(const struct tpo_router *r);
void tpo_router_cancel(struct tpo_router *r, uint64_t handle); /* on_done follows from the next step, with TPO_CANCELLED */
int tpo_router_step(struct tpo_router *r);                     /* one scheduler step; the number of sequences still in flight */

/* What it serves. The router's own; it learns nothing (learn.h does). */
struct tpo_params *tpo_router_params(struct tpo_router *r);

#endif
