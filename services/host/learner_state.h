/* learner_state.h -- what a learner owns per trainable tensor: two buffers of weight and moments, and one gradient per lane of its share.
 *
 * Buffer `now` is version v, the other is where Prepare writes v+1; Commit turns the index. Gradients of the share's l-th lane are lanes[l];
 * folding adds them as a binary tree into lanes[0] (docs/mesh.md, The same bits), which a total of all replicas may then replace.
 * One thread owns a state. */
#ifndef TPO_SERVICES_HOST_LEARNER_STATE_H
#define TPO_SERVICES_HOST_LEARNER_STATE_H

#include "services/host/learner.h"

#define TPO_LANES_MAX 16
#define TPO_HANDS_MAX 64

struct tpo_trainable {
    struct tpo_param *param;
    int group;                      /* index into the plan's groups */
    float *weight[2], *m[2], *v[2]; /* v is NULL under Muon */
    float *lanes[TPO_LANES_MAX];
    bool folded, told; /* told: to a Gather */
};

struct tpo_learner_state {
    struct tpo_stream *stream;
    struct tpo_trainable *items; /* by name */
    int n, n_lanes, now;
    /* The optimiser's step of a tensor is one part of the team's work, since most are too small to be shared out: member i runs it on a stream of
     * one thread, hands[i], with Muon's scratch[i]. Without a team, or with a larger one, the stream itself is the only hand. */
    int n_hands;
    struct tpo_stream *hands[TPO_HANDS_MAX];
    float *scratch[TPO_HANDS_MAX];
};

/* Whether `pattern` ('*' matches any run of characters) matches the whole name. */
bool tpo_pattern_match(const char *pattern, const char *name);

/* The group that owns a tensor of this name; -1: none, it stays frozen. */
int tpo_plan_group(const struct tpo_plan *plan, const char *name);

/* Whether open will take the plan, no memory asked for: INVALID_ARGUMENT "muon_vector" or "muon_split" when Muon gets something that is no matrix or
 * is not divisible by its split. */
int tpo_learner_state_check(const struct tpo_params *params, const struct tpo_plan *plan, struct tpo_error *err);

/* Makes the tensors that a group matches trainable: weights are copies of what the parameters hold now. The errors of
 * tpo_learner_state_check. */
int tpo_learner_state_open(struct tpo_learner_state *s, struct tpo_stream *stream, struct tpo_params *params,
                           const struct tpo_plan *plan, struct tpo_error *err);
void tpo_learner_state_free(
    struct tpo_learner_state *s); /* accepts the half-built; parameters become frozen, their data is not touched */

int tpo_learner_state_clear(struct tpo_learner_state *s);                         /* gradients of all lanes to zero */
void tpo_learner_state_lane(struct tpo_learner_state *s, int lane);               /* parameters' grad = that lane; -1: none */
int tpo_learner_state_fold(struct tpo_learner_state *s, struct tpo_trainable *x); /* its lanes added as a tree, once a step */
int tpo_learner_state_norms(struct tpo_learner_state *s, struct tpo_norm *out);
/* Weights and moments of update number t (from 1) into the other buffer. */
int tpo_learner_state_prepare(struct tpo_learner_state *s, const struct tpo_plan *plan, float clip, const float *rates, int64_t t);
void tpo_learner_state_commit(struct tpo_learner_state *s); /* turns the index and points the parameters at the new weights */

#endif
