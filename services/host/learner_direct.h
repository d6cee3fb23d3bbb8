/* learner_direct.h -- the direct learner as its own files see it: learner.c (runs, forward, backward), learner_step.c, learner_plan.c,
 * learner_chunks.c.
 *
 * Private to services/host/learner*.c. One thread owns a learner (learner.h). */
#ifndef TPO_SERVICES_HOST_LEARNER_DIRECT_H
#define TPO_SERVICES_HOST_LEARNER_DIRECT_H

#include "common/arena.h"
#include "services/host/learner_state.h"

#define TPO_DIRECT_TAPES 4

enum tpo_micro_state { TPO_MICRO_EMPTY, TPO_MICRO_FORWARDED, TPO_MICRO_DONE };

/* One micro-batch of the open step. Replies lie in the step's arena. */
struct tpo_micro {
    enum tpo_micro_state state;
    struct tpo_tape *tape; /* NULL: none was kept, or its Backward has replied */
    struct tpo_forward f;
    const char *wants[TPO_PORTS_MAX];
    int n_wants;
    struct tpo_forwarded reply;
    struct tpo_named_tensor gradients[TPO_PORTS_MAX];
    int n_gradients;
};

/* A tensor that was trained by an earlier run of this learner keeps its weights here. */
struct tpo_kept {
    float *copy, *loaded;
};

struct tpo_direct {
    struct tpo_model *model;
    struct tpo_stream *stream;
    struct tpo_kept *kept; /* one per parameter */
    char run[64], instance[64];
    bool begun, folded, scattered;
    struct tpo_arena plan_arena, step_arena;
    struct tpo_plan plan;
    struct tpo_learner_state state;
    uint64_t version, step, prepared, committed; /* 0: no such step */
    struct tpo_micro *passes;
    int lane_next[TPO_LANES_MAX]; /* the least micro-batch whose Backward a lane still takes */
    struct tpo_norm *norms;
    float *exported;                                       /* the piece that export told last */
    int (*sum_sink)(void *arg, const struct tpo_chunk *x); /* a Gather that waits for the last Backward */
    void *sum_arg;
    int n_done, n_own; /* micro-batches of this share: whose Backward has run, all */
    int n_skipped;     /* of those, that a Gather says need none in this step */
    struct tpo_tape *idle[TPO_DIRECT_TAPES];
    int n_idle, n_live;
};

/* INVALID_ARGUMENT "lanes", "micro_batches" or "share". */
int tpo_plan_check(const struct tpo_plan *p, struct tpo_error *err);
/* Texts and lists go into the arena, which is emptied before; own_lanes becomes a number. TPO_ENOMEM leaves out as it was. */
int tpo_plan_copy(struct tpo_plan *out, struct tpo_arena *a, const struct tpo_plan *from);
float tpo_plan_loss_weight(const struct tpo_plan *plan, const char *name); /* 0 for a loss that the plan does not name */

/* FAILED_PRECONDITION "wrong_run", "wrong_version" or "wrong_step". */
int tpo_direct_key_check(const struct tpo_direct *d, const struct tpo_key *key, struct tpo_error *err);
int tpo_direct_step_close(struct tpo_direct *d); /* forgets the open step; weights stay as they are */

void tpo_direct_replaced(const struct tpo_direct *d); /* tells the model that its weights may be others */

/* Of struct tpo_learner. */
int tpo_direct_norms(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err);
int tpo_direct_prepare(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err);
int tpo_direct_commit(void *self, const struct tpo_key *key, struct tpo_error *err);
int tpo_direct_abort(void *self, const struct tpo_key *key, struct tpo_error *err);
int tpo_direct_gather(void *self, const struct tpo_key *key, uint32_t skipped, int (*sink)(void *arg, const struct tpo_chunk *x),
                      void *arg, struct tpo_error *err);
int tpo_direct_scatter(void *self, const struct tpo_key *key, const struct tpo_chunk *x, struct tpo_error *err);
int tpo_direct_export(void *self, int at, int64_t offset, int64_t most, struct tpo_chunk *out, struct tpo_error *err);
int tpo_direct_holds(void *self, const struct tpo_chunk *x, const uint8_t digest[TPO_SHA256_BYTES], bool *held,
                     struct tpo_error *err);
int tpo_direct_import(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err);

/* For a Gather that waits: one tensor's sum is complete (within the last Backward), all are (after it). */
void tpo_direct_on_gradient(void *self, struct tpo_param *p);
void tpo_direct_sums_finish(struct tpo_direct *d);

#endif
