/* learner.h -- one protocol for all that train (docs/mesh.md, Learner), as a struct of functions with two implementations: direct
 * calls into a model of this process (tpo_learner_open_direct) and, over the mesh, a gRPC stub of learner.proto
 * (trainer/steps/remote.h). The trainer sees nothing else.
 *
 * A step: Forward and Backward for every micro-batch, then Norms, Prepare, Commit. Versions count commits of a run from 0: step s reads
 * key.version and commits key.version + 1, so an aborted step does not count. Every call may be repeated: it answers the same and adds nothing
 * twice. FAILED_PRECONDITION "wrong_version" or "wrong_step" when key and state disagree, RESOURCE_EXHAUSTED "tapes" past N live tapes.
 * Backward's micro-batches come in index order within a lane. A Forward whose tape nobody needs (nothing trainable, no wants) keeps
 * none. Gradients of micro-batch m of M add into lane floor(m * lanes / M) in index order; Norms folds the lanes as a binary tree,
 * so replicas and one process sum alike.
 * Optimiser state (f32 weights, moments) lives behind the learner; Prepare writes version v+1 beside v and Commit swaps. */
#ifndef TPO_SERVICES_HOST_LEARNER_H
#define TPO_SERVICES_HOST_LEARNER_H

#include "common/sha256.h"
#include "nn/model.h"

struct tpo_key {
    char run[64];
    uint64_t step, version;
    uint32_t micro_batch;
};

enum tpo_optimiser { TPO_ADAMW, TPO_MUON };

struct tpo_group {
    char name[32];
    const char *const
        *patterns; /* tensor names; a `*` matches any run of characters; the first group that matches owns the tensor */
    int n_patterns;
    enum tpo_optimiser optimiser;
    float beta1, beta2, eps, weight_decay;
    bool clipped; /* whether the global norm counts it and the clip factor scales it */
    int split;    /* Muon only: a matrix is this many matrices stacked by rows (3 for a fused q, k, v); 0 and 1 mean one */
};

struct tpo_loss_weight {
    const char *name;
    float weight;
};

struct tpo_plan {
    uint64_t seed;
    int lanes, micro_batches;
    int first_lane, own_lanes; /* a replica's share: an aligned subtree of the lanes; own_lanes 0: all of them */
    const struct tpo_group *groups;
    int n_groups;
    const struct tpo_loss_weight *losses;
    int n_losses;
};

struct tpo_begun {
    char instance[64];
    uint64_t version;
    uint64_t prepared_step, committed_step; /* 0: none. What a trainer that comes back decides by (docs/mesh.md, Recovery) */
    int tapes;                              /* N: forwards that may await their Backward */
    int trainable;      /* tensors that a group owns; 0: nothing to learn here, Backward is needed only for wanted inputs */
    char device[16];    /* where it computes, "cpu" or "cuda": bits depend on it */
    char service[24];   /* this and the rest only over the mesh: what answered, */
    char config[65];    /* SHA-256 of its model folder's config.json, in hex, */
    char tokenizer[65]; /* that over the files which make ids of words (nn/config.h), "": it has none, */
    int threads;        /* of its compute team: the same in a whole run, as a precaution (work is cut by shape, not by threads) */
    uint64_t lease;     /* higher with every Begin, whoever's; 0: there are none here, */
    uint64_t own_since; /* the lease since which this trainer alone has begun there, */
    uint64_t served;    /* and the newest version that is served there; 0: the folder's */
};

/* What Forward answers: tensors and losses. Like what backward, norms and export_state answer, it is readable until the next call of
 * the same kind on this learner, or until Commit, Abort or End, whichever comes first. */
struct tpo_forwarded {
    struct tpo_named_tensor outputs[TPO_PORTS_MAX];
    int n_outputs;
    struct {
        const char *name;
        float value;
    } losses[TPO_PORTS_MAX];
    int n_losses;
    const struct tpo_row *rows;
    int n_rows;
};

struct tpo_norm {
    const char *name; /* tensor */
    int group;        /* index into plan.groups */
    double squared;
};

#define TPO_CHUNK_ELEMENTS ((int64_t)1 << 18) /* 1 MiB */

/* A piece of one f32 tensor: `count` of its elements from `offset` on. `part` is "weight", "m" or "v" of a trainable tensor, "start" for the weights
 * of another one, "gradient" for a sum. Borrowed until the call that got it returns, or the next call that gave it. */
struct tpo_chunk {
    const char *name, *part;
    int n_dims;
    int64_t shape[TPO_DIMS_MAX];
    int64_t offset, count;
    const float *data;
};

struct tpo_learner {
    const char *service; /* "encoder", "router", "region" */
    void *self;
    int (*begin)(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err);
    /* Whether this run is in progress, and at this version (NULL: any): what a process that serves calls of others asks before those that say no step
     * (export_state, import_state, publish, end). NULL in a learner that lives elsewhere, which is asked there. */
    int (*check)(void *self, const char *run, const uint64_t *version, struct tpo_error *err);
    int (*forward)(void *self, const struct tpo_key *key, const struct tpo_sample *samples, int n_samples,
                   const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants,
                   struct tpo_forwarded *out, struct tpo_error *err);
    /* gradients of outputs in; gradients of the wanted inputs out, in `inputs_out` (n_wants entries). Weights of the losses come from the plan. */
    int (*backward)(void *self, const struct tpo_key *key, const struct tpo_named_tensor *gradients, int n_gradients,
                    struct tpo_named_tensor *inputs_out, int *n_inputs_out, struct tpo_error *err);
    /* Only where a plan gives a replica a share. gather hands every trainable tensor of this replica's subtree to `sink` once, folded, in pieces, then
     * NULL; called while a step's Backwards are still to come it keeps `sink` for them, and a tensor leaves from within the last one as soon as it is
     * complete (a learner that lives elsewhere waits for that, so it is called from a thread of its own). What sink answers but TPO_OK ends it.
     * skipped: how many of the share's micro-batches have no Backward here in this step (a head that nobody called).
     * scatter gives back the total of all replicas, `x` NULL after the last piece. Both come before norms. */
    int (*gather)(void *self, const struct tpo_key *key, uint32_t skipped, int (*sink)(void *arg, const struct tpo_chunk *x),
                  void *arg, struct tpo_error *err);
    int (*scatter)(void *self, const struct tpo_key *key, const struct tpo_chunk *x, struct tpo_error *err);
    int (*norms)(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err);
    int (*prepare)(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err);
    int (*commit)(void *self, const struct tpo_key *key, struct tpo_error *err);
    /* Step 0 stands for whichever step is open. */
    int (*abort)(void *self, const struct tpo_key *key, struct tpo_error *err);
    /* The at-th part of the state, in name order, each tensor's weight, m and v: at most `most` elements of it from `offset` on (0: name, part and
     * shape alone). out->name is NULL past the last. */
    int (*export_state)(void *self, int at, int64_t offset, int64_t most, struct tpo_chunk *out, struct tpo_error *err);
    /* `x` NULL, after all pieces: the state is that of `version`. Part "start" reaches every tensor of the model, trainable or not. */
    int (*import_state)(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err);
    /* Whether the tensor that x names (part "start", no data) holds f32 data of this SHA-256 already; then it counts as imported, moments zero, and stays
     * where it lies: what a folder has mapped is not copied. NULL: nobody knows, import it. */
    int (*holds)(void *self, const struct tpo_chunk *x, const uint8_t digest[TPO_SHA256_BYTES], bool *held, struct tpo_error *err);
    /* Over the mesh: the committed weights become what the service serves, under the number `version`, beside the version before
     * (docs/versions.md). Numbers that are served only grow, whatever the run. RESOURCE_EXHAUSTED "versions" while a third would be
     * needed. The direct learner serves nothing and answers UNIMPLEMENTED. */
    int (*publish)(void *self, const struct tpo_key *key, uint64_t version, struct tpo_error *err);
    int (*end)(void *self, struct tpo_error *err);
    /* Milliseconds of computing behind the last Forward or Backward. NULL: the call's own time is that. */
    double (*run_ms)(void *self);
    void (*close)(void *self);
};

/* The model is borrowed; its parameters that a group of the plan matches become trainable at begin: their data then lies in memory of the
 * learner, stays there after end (so that a next run starts from it) and goes back to what was loaded at close.
 * begin with the name of the run in progress answers its state; with another name, or another share, it starts that run from the weights as they
 * are, moments zero. */
int tpo_learner_open_direct(struct tpo_learner *out, struct tpo_model *model, struct tpo_stream *s, struct tpo_error *err);

#endif
