/* This file owns the Learner service: messages in, calls of the learner, messages out. */
#include "services/host/learner_rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cores.h"
#include "common/log.h"
#include "nn/config.h"
#include "services/host/fault.h"
#include "services/host/host_private.h"
#include "services/host/learner.h"
#include "services/host/learner_wire.h"
#include "services/host/lease.h"
#include "services/host/versions.h"

struct tpo_learner_rpc {
    struct tpo_host *host;
    struct tpo_learner learner;
    struct tpo_arena arena; /* of the job that runs */
    char config[TPO_SHA256_HEX], tokenizer[TPO_SHA256_HEX];
    int threads;

    struct tpo_lease *lease;
    struct tpo_key open; /* of the last Forward; step 0: no step is open */
    bool prepared;

    struct tpo_job *gather; /* a Gather that waits for the last Backward */
};

/* --- a Gather that waits ------------------------------------------------------------------------------------------------------------------ */

static void gather_end(struct tpo_learner_rpc *l, const struct tpo_error *err)
{
    struct tpo_job *job = l->gather;
    l->gather = NULL;
    if (job != NULL) tpo_job_finish(job, err);
}

static void gather_abort(struct tpo_learner_rpc *l, const char *why)
{
    struct tpo_error err = {0};
    if (l->gather == NULL) return;
    tpo_fail(&err, TPO_ABORTED, "gather", "%s", why);
    gather_end(l, &err);
}

/* --- the end of a lease -------------------------------------------------------------------------------------------------------------------- */

/* What a trainer whose lease is over has left behind. Whichever comes first calls it: the watch, or the next trainer's Begin. */
static void lease_settle(void *owner)
{
    struct tpo_learner_rpc *l = owner;
    if (l->open.step == 0) return;
    gather_abort(l, "the lease has ended");
    if (!l->prepared) {
        l->learner.abort(l->learner.self, &l->open, NULL);
        l->open.step = 0;
    }
    tpo_log(TPO_LOG_WARN, "lease_ended", "holder=%.16s prepared=%d", tpo_lease_holder(l->lease), l->prepared);
}

/* The step that calls belong to, for the end of the lease. */
static void step_open(struct tpo_learner_rpc *l, const struct tpo_key *key)
{
    if (l->open.step != key->step) l->prepared = false;
    l->open = *key;
}

/* --- calls that the lease covers ------------------------------------------------------------------------------------------------------------ */

/* One of them, on its way through its act: what it works on, what came of it. */
struct visit {
    struct tpo_job *job;
    struct tpo_learner_rpc *l;
    const struct tpo_learner *x;
    struct tpo_key key;
    struct tpo_error err; /* means something where a function answered an error */
    bool entered;         /* under the lease, which is renewed when it leaves */
    bool replied;         /* by the act; else Empty is the reply */
    bool kept;            /* the job goes on: it is l->gather */
};

static int no_learner(struct visit *v)
{
    return tpo_fail(&v->err, TPO_UNIMPLEMENTED, "train", "this process was not started with --train");
}

static int enter(struct visit *v, struct tpo_job *job, const Tpo__V1__Key *m)
{
    struct tpo_learner_rpc *l = job->host->learner;
    *v = (struct visit){.job = job, .l = l};
    if (l == NULL) return no_learner(v);
    v->x = &l->learner;
    tpo_arena_reset(&l->arena);
    int rc = tpo_key_unpack(&v->key, m, &v->err);
    if (rc != TPO_OK) return rc;
    rc = tpo_lease_check(l->lease, m->lease, job->queued_us, &v->err);
    v->entered = rc == TPO_OK;
    return rc;
}

static int reply(struct visit *v, const ProtobufCMessage *message)
{
    tpo_call_send(v->job->call, message, NULL);
    v->replied = true;
    return TPO_OK;
}

static int no_memory(struct visit *v)
{
    return tpo_fail(&v->err, TPO_ENOMEM, "memory", "no memory for a reply");
}

/* The lease lasts from the end of the work, however long that took. */
static int leave(struct visit *v, int rc)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    if (v->entered) tpo_lease_renew(v->l->lease);
    if (v->kept) return TPO_OK;
    if (rc == TPO_OK && !v->replied) reply(v, &empty.base);
    tpo_job_finish(v->job, rc != TPO_OK ? &v->err : NULL);
    return TPO_OK;
}

static uint64_t served_now(struct tpo_learner_rpc *l)
{
    uint64_t held[TPO_VERSIONS_HELD];
    return tpo_versions_list(tpo_host_versions(l->host), held) > 0 ? held[0] : 0;
}

static int begin(struct visit *v, const Tpo__V1__BeginRequest *m)
{
    struct tpo_learner_rpc *l = v->l;
    struct tpo_plan plan;
    struct tpo_begun begun;
    if (l == NULL) return no_learner(v);
    int rc = tpo_lease_allow(l->lease, m->holder, m->lease_ms, v->job->queued_us, l->learner.service, &v->err);
    if (rc != TPO_OK) return rc;
    if (!tpo_lease_ran(l->lease, v->job->queued_us)) lease_settle(l);
    tpo_arena_reset(&l->arena);
    rc = tpo_plan_unpack(&plan, &l->arena, m->plan, &v->err);
    if (rc == TPO_OK) rc = l->learner.begin(l->learner.self, m->run, &plan, &begun, &v->err);
    if (rc != TPO_OK) return rc;
    gather_abort(l, "its trainer has begun again");
    const uint64_t number = tpo_lease_take(l->lease, m->holder, m->lease_ms);
    l->prepared = begun.prepared_step != 0;
    Tpo__V1__BeginReply answer = TPO__V1__BEGIN_REPLY__INIT;
    answer.instance = begun.instance;
    answer.version = begun.version;
    answer.prepared_step = begun.prepared_step;
    answer.committed_step = begun.committed_step;
    answer.tapes = (uint32_t)begun.tapes;
    answer.trainable = (uint32_t)begun.trainable;
    answer.lease = number;
    answer.own_since = tpo_lease_own_since(l->lease);
    answer.stage = (char *)l->learner.service;
    answer.config = l->config;
    answer.tokenizer = l->tokenizer;
    answer.device = begun.device;
    answer.threads = (uint32_t)l->threads;
    answer.served = served_now(l);
    tpo_log(TPO_LOG_INFO, "begin", "run=%.63s version=%llu lease=%llu trainable=%d", m->run, (unsigned long long)begun.version,
            (unsigned long long)number, begun.trainable);
    return reply(v, &answer.base);
}

/* --- forward and backward -------------------------------------------------------------------------------------------------------------------- */

static int forward_reply(struct visit *v, const struct tpo_forwarded *f)
{
    Tpo__V1__ForwardReply answer = TPO__V1__FORWARD_REPLY__INIT;
    Tpo__V1__LossValue losses[TPO_PORTS_MAX], *list[TPO_PORTS_MAX];
    for (int i = 0; i < f->n_losses; i++) {
        tpo__v1__loss_value__init(&losses[i]);
        losses[i].name = (char *)f->losses[i].name;
        losses[i].value = f->losses[i].value;
        list[i] = &losses[i];
    }
    answer.losses = list;
    answer.n_losses = (size_t)f->n_losses;
    answer.n_tensors = (size_t)f->n_outputs;
    answer.tensors = tpo_tensors_pack(&v->l->arena, f->outputs, f->n_outputs);
    answer.n_rows = (size_t)f->n_rows;
    answer.rows = tpo_rows_pack(&v->l->arena, f->rows, f->n_rows);
    answer.run_ms = tpo_job_run_ms(v->job);
    if (answer.tensors == NULL || answer.rows == NULL) return no_memory(v);
    return reply(v, &answer.base);
}

static int forward(struct visit *v, const Tpo__V1__ForwardRequest *m)
{
    const struct tpo_sample *samples = NULL;
    struct tpo_named_tensor inputs[TPO_PORTS_MAX];
    struct tpo_forwarded f = {0};
    int rc = tpo_samples_unpack(&samples, &v->l->arena, m->samples, m->n_samples, &v->err);
    if (rc == TPO_OK) rc = tpo_tensors_unpack(inputs, &v->l->arena, m->tensors, m->n_tensors, &v->err);
    if (rc == TPO_OK && m->n_wants > TPO_PORTS_MAX) rc = tpo_fail(&v->err, TPO_INVALID_ARGUMENT, "wants", "%zu wants", m->n_wants);
    if (rc == TPO_OK)
        rc = v->x->forward(v->x->self, &v->key, samples, (int)m->n_samples, inputs, (int)m->n_tensors,
                           (const char *const *)m->wants, (int)m->n_wants, &f, &v->err);
    if (rc != TPO_OK) return rc;
    step_open(v->l, &v->key);
    tpo_fault_reach(TPO_FAULT_FORWARD_AFTER);
    return forward_reply(v, &f);
}

static int backward(struct visit *v, const Tpo__V1__BackwardRequest *m)
{
    struct tpo_named_tensor given[TPO_PORTS_MAX], wanted[TPO_PORTS_MAX];
    Tpo__V1__BackwardReply answer = TPO__V1__BACKWARD_REPLY__INIT;
    int n_wanted = 0;
    int rc = tpo_tensors_unpack(given, &v->l->arena, m->gradients, m->n_gradients, &v->err);
    if (rc == TPO_OK) rc = v->x->backward(v->x->self, &v->key, given, (int)m->n_gradients, wanted, &n_wanted, &v->err);
    if (rc != TPO_OK) return rc;
    tpo_fault_reach(TPO_FAULT_BACKWARD_AFTER);
    answer.n_gradients = (size_t)n_wanted;
    answer.gradients = tpo_tensors_pack(&v->l->arena, wanted, n_wanted);
    answer.run_ms = tpo_job_run_ms(v->job);
    return answer.gradients != NULL ? reply(v, &answer.base) : no_memory(v);
}

/* --- the sums of a share ---------------------------------------------------------------------------------------------------------------------- */

static int chunk_send(struct tpo_call *call, const struct tpo_chunk *x)
{
    Tpo__V1__Chunk m;
    int64_t shape[TPO_DIMS_MAX];
    if (tpo_call_cancelled(call)) return TPO_CANCELLED;
    tpo_chunk_pack(&m, x, shape);
    tpo_call_send(call, &m.base, NULL);
    return TPO_OK;
}

/* One piece of a sum that is complete, from within the last Backward or after it; NULL: those were all. */
static int on_sum(void *arg, const struct tpo_chunk *x)
{
    struct tpo_learner_rpc *l = arg;
    if (l->gather == NULL) return TPO_OK;
    if (x != NULL) return chunk_send(l->gather->call, x);
    gather_end(l, NULL);
    return TPO_OK;
}

/* From here on the job is gather_end's, which this may already have called when it returns. */
static int gather(struct visit *v, const Tpo__V1__GatherRequest *m)
{
    gather_abort(v->l, "another Gather has come");
    v->l->gather = v->job;
    v->kept = true;
    int rc = v->x->gather(v->x->self, &v->key, m->skipped, on_sum, v->l, &v->err);
    if (rc == TPO_OK)
        step_open(v->l, &v->key);
    else
        gather_end(v->l, &v->err);
    return rc;
}

static int scatter(struct visit *v, const Tpo__V1__Chunk *m)
{
    struct tpo_chunk x;
    int rc = tpo_chunk_unpack(&x, &v->l->arena, m, &v->err);
    if (rc == TPO_OK) rc = v->x->scatter(v->x->self, &v->key, m->name[0] != '\0' ? &x : NULL, &v->err);
    return rc;
}

/* --- the step ------------------------------------------------------------------------------------------------------------------------------- */

/* No step is open any more; a Gather that still waits is told why. */
static void step_ended(struct tpo_learner_rpc *l, const char *why)
{
    gather_abort(l, why);
    l->open.step = 0;
    l->prepared = false;
}

static int norms(struct visit *v, const Tpo__V1__StepRequest *m)
{
    const struct tpo_norm *found = NULL;
    Tpo__V1__NormsReply answer = TPO__V1__NORMS_REPLY__INIT;
    int n = 0;
    (void)m;
    int rc = v->x->norms(v->x->self, &v->key, &found, &n, &v->err);
    if (rc != TPO_OK) return rc;
    step_open(v->l, &v->key);
    Tpo__V1__Norm *items = tpo_arena_alloc(&v->l->arena, sizeof(*items) * (size_t)(n + 1));
    answer.norms = tpo_arena_alloc(&v->l->arena, sizeof(*answer.norms) * (size_t)(n + 1));
    if (items == NULL || answer.norms == NULL) return no_memory(v);
    for (int i = 0; i < n; i++) {
        tpo__v1__norm__init(&items[i]);
        items[i].name = (char *)found[i].name;
        items[i].squared = found[i].squared;
        items[i].group = (uint32_t)found[i].group;
        answer.norms[answer.n_norms++] = &items[i];
    }
    return reply(v, &answer.base);
}

static int prepare(struct visit *v, const Tpo__V1__PrepareRequest *m)
{
    int rc = v->x->prepare(v->x->self, &v->key, m->clip, m->rates, (int)m->n_rates, &v->err);
    if (rc != TPO_OK) return rc;
    v->l->open = v->key;
    v->l->prepared = true;
    tpo_fault_reach(TPO_FAULT_PREPARE_AFTER);
    return TPO_OK;
}

static int commit(struct visit *v, const Tpo__V1__StepRequest *m)
{
    (void)m;
    const bool open = v->l->open.step != 0;
    int rc = v->x->commit(v->x->self, &v->key, &v->err);
    if (rc != TPO_OK) return rc;
    tpo_fault_reach(TPO_FAULT_COMMIT_AFTER);
    step_ended(v->l, "the step is committed");
    if (open) tpo_metrics_add(tpo_host_metrics(v->l->host), "tpo_training_steps_total", "result=\"committed\"", 1);
    return TPO_OK;
}

static int abort_step(struct visit *v, const Tpo__V1__StepRequest *m)
{
    (void)m;
    const bool open = v->l->open.step != 0;
    int rc = v->x->abort(v->x->self, &v->key, &v->err);
    if (rc != TPO_OK) return rc;
    step_ended(v->l, "the step is aborted");
    if (open) tpo_metrics_add(tpo_host_metrics(v->l->host), "tpo_training_steps_total", "result=\"aborted\"", 1);
    return TPO_OK;
}

/* Those that say no step. */
static int run_check(struct visit *v)
{
    return v->x->check(v->x->self, v->key.run, &v->key.version, &v->err);
}

/* --- state ------------------------------------------------------------------------------------------------------------------------------------ */

static int export_state(struct visit *v, const Tpo__V1__ExportRequest *m)
{
    struct tpo_chunk x;
    Tpo__V1__Chunk answer;
    int64_t shape[TPO_DIMS_MAX];
    if (m->at > INT32_MAX || m->offset > INT64_MAX || m->most > TPO_CHUNK_ELEMENTS)
        return tpo_fail(&v->err, TPO_INVALID_ARGUMENT, "export", "at most %lld elements of one tensor",
                        (long long)TPO_CHUNK_ELEMENTS);
    int rc = run_check(v);
    if (rc == TPO_OK) rc = v->x->export_state(v->x->self, (int)m->at, (int64_t)m->offset, (int64_t)m->most, &x, &v->err);
    if (rc != TPO_OK) return rc;
    tpo_chunk_pack(&answer, &x, shape);
    return reply(v, &answer.base);
}

/* Whether a tensor need come at all. */
static int import_held(struct visit *v, const Tpo__V1__Chunk *m)
{
    struct tpo_chunk x;
    bool held = false;
    Tpo__V1__ImportReply answer = TPO__V1__IMPORT_REPLY__INIT;
    if (m->digest.len != TPO_SHA256_BYTES || m->data.len != 0 || strcmp(m->part, "start") != 0)
        return tpo_fail(&v->err, TPO_INVALID_ARGUMENT, "import", "a digest of %d bytes of a part \"start\", without data",
                        TPO_SHA256_BYTES);
    int rc = tpo_chunk_unpack(&x, &v->l->arena, m, &v->err);
    if (rc == TPO_OK && v->x->holds != NULL) rc = v->x->holds(v->x->self, &x, m->digest.data, &held, &v->err);
    if (rc != TPO_OK) return rc;
    answer.held = held;
    return reply(v, &answer.base);
}

/* Without a digest Empty is the reply: on the wire the same as an ImportReply that says no. */
static int import_state(struct visit *v, const Tpo__V1__Chunk *m)
{
    struct tpo_chunk x;
    const bool last = m->name[0] == '\0';
    int rc = v->x->check(v->x->self, v->key.run, NULL, &v->err); /* the version is that of what comes */
    if (rc == TPO_OK && m->digest.len > 0) return import_held(v, m);
    if (rc == TPO_OK) rc = tpo_chunk_unpack(&x, &v->l->arena, m, &v->err);
    if (rc == TPO_OK) rc = v->x->import_state(v->x->self, v->key.version, last ? NULL : &x, &v->err);
    if (rc == TPO_OK && last) step_ended(v->l, "another state was imported");
    return rc;
}

static int publish(struct visit *v, const Tpo__V1__PublishRequest *m)
{
    const struct tpo_host_service *s = v->l->host->service;
    if (s->publish == NULL) return tpo_fail(&v->err, TPO_UNIMPLEMENTED, "publish", "%s serves no versions", v->x->service);
    const int rc = run_check(v);
    return rc == TPO_OK ? s->publish(s->self, m->version, &v->err) : rc;
}

/* The lease is renewed as the call leaves. */
static int keep(struct visit *v, const Tpo__V1__StepRequest *m)
{
    (void)v, (void)m;
    return TPO_OK;
}

static int end(struct visit *v, const Tpo__V1__StepRequest *m)
{
    (void)m;
    int rc = run_check(v);
    if (rc == TPO_OK) rc = v->x->end(v->x->self, &v->err);
    if (rc != TPO_OK) return rc;
    step_ended(v->l, "the run has ended");
    tpo_lease_end(v->l->lease);
    return TPO_OK;
}

/* --- the methods ------------------------------------------------------------------------------------------------------------------------------- */

static int on_begin(void *self, struct tpo_job *job)
{
    struct visit v = {.job = job, .l = job->host->learner};
    (void)self;
    tpo_fault_reach(TPO_FAULT_BEGIN);
    return leave(&v, begin(&v, (const Tpo__V1__BeginRequest *)job->message));
}

/* Name on the wire, act, request, the point that is reached first. */
#define METHODS(X)                                                                                                                 \
    X("Forward", forward, forward_request, ForwardRequest, TPO_FAULT_FORWARD_BEFORE)                                               \
    X("Backward", backward, backward_request, BackwardRequest, TPO_FAULT_BACKWARD_BEFORE)                                          \
    X("Gather", gather, gather_request, GatherRequest, TPO_FAULT_GATHER)                                                           \
    X("Scatter", scatter, chunk, Chunk, TPO_FAULT_SCATTER)                                                                         \
    X("Norms", norms, step_request, StepRequest, TPO_FAULT_NORMS)                                                                  \
    X("Prepare", prepare, prepare_request, PrepareRequest, TPO_FAULT_PREPARE_BEFORE)                                               \
    X("Commit", commit, step_request, StepRequest, TPO_FAULT_COMMIT_BEFORE)                                                        \
    X("Abort", abort_step, step_request, StepRequest, TPO_FAULT_ABORT)                                                             \
    X("Export", export_state, export_request, ExportRequest, TPO_FAULT_EXPORT)                                                     \
    X("Import", import_state, chunk, Chunk, TPO_FAULT_IMPORT)                                                                      \
    X("Publish", publish, publish_request, PublishRequest, TPO_FAULT_PUBLISH)                                                      \
    X("Keep", keep, step_request, StepRequest, TPO_FAULTS /* none */)                                                              \
    X("End", end, step_request, StepRequest, TPO_FAULTS /* none */)

#define X(name, act, request, Request, point)                                                                                      \
    static int on_##act(void *self, struct tpo_job *job)                                                                           \
    {                                                                                                                              \
        const Tpo__V1__##Request *m = (const Tpo__V1__##Request *)job->message;                                                    \
        struct visit v;                                                                                                            \
        (void)self;                                                                                                                \
        const int rc = enter(&v, job, m->key);                                                                                     \
        tpo_fault_reach(point);                                                                                                    \
        return leave(&v, rc == TPO_OK ? act(&v, m) : rc);                                                                          \
    }
METHODS(X)
#undef X

const struct tpo_host_method tpo_learner_methods[] = {
    {"/tpo.v1.Learner/Begin", &tpo__v1__begin_request__descriptor, false, on_begin},
#define X(name, act, request, Request, point) {"/tpo.v1.Learner/" name, &tpo__v1__##request##__descriptor, false, on_##act},
    METHODS(X)
#undef X
};
const int tpo_n_learner_methods = sizeof(tpo_learner_methods) / sizeof(tpo_learner_methods[0]);

/* --- open and close ---------------------------------------------------------------------------------------------------------------------------- */

int tpo_learner_rpc_open(struct tpo_learner_rpc **out, struct tpo_host *h, struct tpo_error *err)
{
    const struct tpo_host_service *s = h->service;
    *out = NULL;
    if (s->open_learner == NULL) return TPO_OK;
    struct tpo_learner_rpc *l = calloc(1, sizeof(*l));
    if (l == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the learner");
    l->host = h;
    l->threads = h->settings.threads > 0 ? (int)h->settings.threads : tpo_cores();
    tpo_arena_init(&l->arena, (size_t)1 << 20, 0);
    tpo_config_tokens_hash(l->tokenizer, h->settings.model);
    int rc = tpo_config_hash(l->config, h->settings.model, err);
    if (rc == TPO_OK) rc = s->open_learner(s->self, &l->learner, err);
    if (rc == TPO_OK) rc = tpo_lease_open(&l->lease, h, lease_settle, l, err);
    if (rc == TPO_OK)
        *out = l;
    else
        tpo_learner_rpc_close(l);
    return rc;
}

void tpo_learner_rpc_close(struct tpo_learner_rpc *l)
{
    if (l == NULL) return;
    tpo_lease_close(l->lease);
    gather_abort(l, "this process is shutting down");
    if (l->learner.close != NULL) l->learner.close(l->learner.self);
    tpo_arena_free(&l->arena);
    free(l);
}
