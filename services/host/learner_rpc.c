/* This file owns the Learner service: messages in, calls of the learner, messages out, one lease. */
#include "services/host/learner_rpc.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/rpc/loop.h"
#include "nn/config.h"
#include "services/host/fault.h"
#include "services/host/host_private.h"
#include "services/host/learner.h"
#include "services/host/learner_wire.h"

#define LEASE_MS_LEAST 100
#define LEASE_MS_MOST  3600000

struct tpo_learner_rpc {
    struct tpo_host *host;
    struct tpo_learner learner;
    struct tpo_arena arena; /* of the job that runs */
    char config[TPO_SHA256_HEX];
    int threads;

    char holder[64];
    uint64_t lease; /* the last one given, or where they start */
    int64_t lease_us, ends_us;
    struct tpo_key open; /* of the last Forward; step 0: no step is open */
    bool prepared;

    struct tpo_job *gather; /* a Gather that waits for the last Backward */

    /* The watch asks the compute thread to look at the lease when its time is over. */
    pthread_t watch;
    bool watched, closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic int64_t watch_us;
    _Atomic bool asked;
    struct tpo_job look;
};

/* --- answers ------------------------------------------------------------------------------------------------------------------------------- */

static int answer(struct tpo_job *job, const ProtobufCMessage *reply, const struct tpo_error *err)
{
    if (err == NULL || err->code == TPO_OK) {
        if (reply != NULL) tpo_call_send(job->call, reply, NULL);
        tpo_job_finish(job, NULL);
    } else {
        tpo_job_finish(job, err);
    }
    return TPO_OK;
}

static int answer_empty(struct tpo_job *job, const struct tpo_error *err)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    return answer(job, &empty.base, err);
}

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

/* --- the lease ------------------------------------------------------------------------------------------------------------------------------ */

static void lease_renew(struct tpo_learner_rpc *l)
{
    l->ends_us = tpo_now_us() + l->lease_us;
    l->watch_us = l->ends_us;
}

static bool lease_runs(const struct tpo_learner_rpc *l)
{
    return tpo_now_us() < l->ends_us;
}

/* What a trainer whose lease is over has left behind. Whichever comes first calls it: the watch, or the next trainer's Begin. */
static void lease_settle(struct tpo_learner_rpc *l)
{
    if (lease_runs(l) || l->open.step == 0) return;
    gather_abort(l, "the lease has ended");
    if (!l->prepared) {
        l->learner.abort(l->learner.self, &l->open, NULL);
        l->open.step = 0;
    }
    tpo_log(TPO_LOG_WARN, "lease_ended", "holder=%.16s prepared=%d", l->holder, l->prepared);
}

/* Compute thread. A call may have renewed the lease between the watch's look at the clock and this. */
static int on_look(void *self, struct tpo_job *job)
{
    struct tpo_learner_rpc *l = job->user;
    (void)self;
    l->asked = false;
    if (lease_runs(l)) l->watch_us = l->ends_us;
    lease_settle(l);
    return TPO_OK;
}

/* The step that calls belong to, for the end of the lease. */
static void step_open(struct tpo_learner_rpc *l, const struct tpo_key *key)
{
    if (l->open.step != key->step) l->prepared = false;
    l->open = *key;
}

static void *watch(void *arg)
{
    struct tpo_learner_rpc *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->closing) {
        const int64_t left_us = l->watch_us - tpo_now_us();
        const int64_t wait_us = left_us > 0 && left_us < 1000000 ? left_us : 1000000;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += wait_us % 1000000 * 1000;
        until.tv_sec += wait_us / 1000000 + until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&l->changed, &l->lock, &until);
        if (l->closing || l->watch_us == 0 || tpo_now_us() < l->watch_us || l->asked) continue;
        l->asked = true;
        l->watch_us = 0;
        l->look = (struct tpo_job){.run = on_look, .user = l};
        if (tpo_host_submit(l->host, &l->look, NULL) != TPO_OK) {
            l->asked = false;
            l->watch_us = tpo_now_us() + 100000; /* the queue was full */
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* The learner and the key of a call that a lease covers, or the error. */
static int enter(struct tpo_job *job, const Tpo__V1__Key *m, struct tpo_learner_rpc **out, struct tpo_key *key,
                 struct tpo_error *err)
{
    struct tpo_learner_rpc *l = *out = job->host->learner;
    if (l == NULL) return tpo_fail(err, TPO_UNIMPLEMENTED, "train", "this process was not started with --train");
    tpo_arena_reset(&l->arena);
    int rc = tpo_key_unpack(key, m, err);
    if (rc != TPO_OK) return rc;
    if (m->lease != l->lease || !lease_runs(l))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "lease", "lease %llu has ended: Begin again", (unsigned long long)m->lease);
    lease_renew(l);
    return TPO_OK;
}

static int on_begin(void *self, struct tpo_job *job)
{
    const Tpo__V1__BeginRequest *m = (const Tpo__V1__BeginRequest *)job->message;
    struct tpo_learner_rpc *l = job->host->learner;
    struct tpo_error err = {0};
    struct tpo_plan plan;
    struct tpo_begun begun;
    Tpo__V1__BeginReply reply = TPO__V1__BEGIN_REPLY__INIT;
    (void)self;
    tpo_fault_reach(TPO_FAULT_BEGIN);
    if (l == NULL)
        tpo_fail(&err, TPO_UNIMPLEMENTED, "train", "this process was not started with --train");
    else if (m->holder[0] == '\0' || strlen(m->holder) >= sizeof(l->holder) || m->lease_ms < LEASE_MS_LEAST ||
             m->lease_ms > LEASE_MS_MOST)
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "lease", "a holder of 1..%zu letters and a lease of %d..%d ms are needed",
                 sizeof(l->holder) - 1, LEASE_MS_LEAST, LEASE_MS_MOST);
    else if (lease_runs(l) && strcmp(l->holder, m->holder) != 0) {
        tpo_fail(&err, TPO_FAILED_PRECONDITION, "leased", "another trainer holds %s", l->learner.stage);
        err.retry_ms = (int)((l->ends_us - tpo_now_us()) / 1000) + 1;
    }
    if (err.code != TPO_OK) return answer(job, NULL, &err);
    lease_settle(l);
    tpo_arena_reset(&l->arena);
    int rc = tpo_plan_unpack(&plan, &l->arena, m->plan, &err);
    if (rc == TPO_OK) rc = l->learner.begin(l->learner.self, m->run, &plan, &begun, &err);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    gather_abort(l, "its trainer has begun again");
    snprintf(l->holder, sizeof(l->holder), "%s", m->holder);
    l->lease++;
    l->lease_us = (int64_t)m->lease_ms * 1000;
    lease_renew(l);
    l->prepared = begun.prepared_step != 0;
    reply.instance = begun.instance;
    reply.version = begun.version;
    reply.prepared_step = begun.prepared_step;
    reply.committed_step = begun.committed_step;
    reply.tapes = (uint32_t)begun.tapes;
    reply.trainable = (uint32_t)begun.trainable;
    reply.lease = l->lease;
    reply.stage = (char *)l->learner.stage;
    reply.config = l->config;
    reply.threads = (uint32_t)l->threads;
    tpo_log(TPO_LOG_INFO, "begin", "run=%.63s version=%llu lease=%llu trainable=%d", m->run, (unsigned long long)begun.version,
            (unsigned long long)l->lease, begun.trainable);
    return answer(job, &reply.base, NULL);
}

/* --- forward and backward -------------------------------------------------------------------------------------------------------------------- */

static int forward_reply(struct tpo_job *job, struct tpo_learner_rpc *l, const struct tpo_forwarded *f)
{
    Tpo__V1__ForwardReply reply = TPO__V1__FORWARD_REPLY__INIT;
    Tpo__V1__LossWeight losses[TPO_PORTS_MAX], *list[TPO_PORTS_MAX];
    struct tpo_error err = {0};
    for (int i = 0; i < f->n_losses; i++) {
        tpo__v1__loss_weight__init(&losses[i]);
        losses[i].name = (char *)f->losses[i].name;
        losses[i].weight = f->losses[i].value;
        list[i] = &losses[i];
    }
    reply.losses = list;
    reply.n_losses = (size_t)f->n_losses;
    reply.n_tensors = (size_t)f->n_outputs;
    reply.tensors = tpo_tensors_pack(&l->arena, f->outputs, f->n_outputs);
    reply.n_rows = (size_t)f->n_rows;
    reply.rows = tpo_rows_pack(&l->arena, f->rows, f->n_rows);
    reply.run_ms = tpo_job_run_ms(job);
    if (reply.tensors == NULL || reply.rows == NULL) tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a reply");
    return answer(job, &reply.base, &err);
}

static int on_forward(void *self, struct tpo_job *job)
{
    const Tpo__V1__ForwardRequest *m = (const Tpo__V1__ForwardRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    const struct tpo_sample *samples = NULL;
    struct tpo_named_tensor inputs[TPO_PORTS_MAX];
    struct tpo_forwarded f = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK) rc = tpo_samples_unpack(&samples, &l->arena, m->samples, m->n_samples, &err);
    if (rc == TPO_OK) rc = tpo_tensors_unpack(inputs, &l->arena, m->tensors, m->n_tensors, &err);
    if (rc == TPO_OK && m->n_wants > TPO_PORTS_MAX) rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "wants", "%zu wants", m->n_wants);
    tpo_fault_reach(TPO_FAULT_FORWARD_BEFORE);
    if (rc == TPO_OK)
        rc = l->learner.forward(l->learner.self, &key, samples, (int)m->n_samples, inputs, (int)m->n_tensors,
                                (const char *const *)m->wants, (int)m->n_wants, &f, &err);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    step_open(l, &key);
    lease_renew(l);
    tpo_fault_reach(TPO_FAULT_FORWARD_AFTER);
    return forward_reply(job, l, &f);
}

static int on_backward(void *self, struct tpo_job *job)
{
    const Tpo__V1__BackwardRequest *m = (const Tpo__V1__BackwardRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    struct tpo_named_tensor given[TPO_PORTS_MAX], wanted[TPO_PORTS_MAX];
    Tpo__V1__BackwardReply reply = TPO__V1__BACKWARD_REPLY__INIT;
    int n_wanted = 0;
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK) rc = tpo_tensors_unpack(given, &l->arena, m->gradients, m->n_gradients, &err);
    tpo_fault_reach(TPO_FAULT_BACKWARD_BEFORE);
    if (rc == TPO_OK) rc = l->learner.backward(l->learner.self, &key, given, (int)m->n_gradients, wanted, &n_wanted, &err);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    lease_renew(l);
    tpo_fault_reach(TPO_FAULT_BACKWARD_AFTER);
    reply.n_gradients = (size_t)n_wanted;
    reply.gradients = tpo_tensors_pack(&l->arena, wanted, n_wanted);
    reply.run_ms = tpo_job_run_ms(job);
    if (reply.gradients == NULL) tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a reply");
    return answer(job, &reply.base, &err);
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

static int on_gather(void *self, struct tpo_job *job)
{
    const Tpo__V1__StepRequest *m = (const Tpo__V1__StepRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_GATHER);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    gather_abort(l, "another Gather has come");
    l->gather = job;
    rc = l->learner.gather(l->learner.self, &key, on_sum, l, &err);
    if (rc == TPO_OK)
        step_open(l, &key);
    else
        gather_end(l, &err);
    return TPO_OK;
}

static int on_scatter(void *self, struct tpo_job *job)
{
    const Tpo__V1__Chunk *m = (const Tpo__V1__Chunk *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    struct tpo_chunk x;
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK) rc = tpo_chunk_unpack(&x, &l->arena, m, &err);
    tpo_fault_reach(TPO_FAULT_SCATTER);
    if (rc == TPO_OK) rc = l->learner.scatter(l->learner.self, &key, m->name[0] != '\0' ? &x : NULL, &err);
    return answer_empty(job, &err);
}

/* --- the step ------------------------------------------------------------------------------------------------------------------------------- */

/* No step is open any more; a Gather that still waits is told why. */
static void step_ended(struct tpo_learner_rpc *l, const char *why)
{
    gather_abort(l, why);
    l->open.step = 0;
    l->prepared = false;
}

static int on_norms(void *self, struct tpo_job *job)
{
    const Tpo__V1__StepRequest *m = (const Tpo__V1__StepRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    const struct tpo_norm *norms = NULL;
    Tpo__V1__NormsReply reply = TPO__V1__NORMS_REPLY__INIT;
    int n = 0;
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_NORMS);
    if (rc == TPO_OK) rc = l->learner.norms(l->learner.self, &key, &norms, &n, &err);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    step_open(l, &key);
    lease_renew(l);
    Tpo__V1__Norm *items = tpo_arena_alloc(&l->arena, sizeof(*items) * (size_t)(n + 1));
    reply.norms = tpo_arena_alloc(&l->arena, sizeof(*reply.norms) * (size_t)(n + 1));
    if (items == NULL || reply.norms == NULL) tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a reply");
    for (int i = 0; i < n && err.code == TPO_OK; i++) {
        tpo__v1__norm__init(&items[i]);
        items[i].name = (char *)norms[i].name;
        items[i].squared = norms[i].squared;
        items[i].group = (uint32_t)norms[i].group;
        reply.norms[reply.n_norms++] = &items[i];
    }
    return answer(job, &reply.base, &err);
}

static int on_prepare(void *self, struct tpo_job *job)
{
    const Tpo__V1__PrepareRequest *m = (const Tpo__V1__PrepareRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_PREPARE_BEFORE);
    if (rc == TPO_OK) rc = l->learner.prepare(l->learner.self, &key, m->clip, m->rates, (int)m->n_rates, &err);
    if (rc == TPO_OK) {
        l->open = key;
        l->prepared = true;
        lease_renew(l);
        tpo_fault_reach(TPO_FAULT_PREPARE_AFTER);
    }
    return answer_empty(job, &err);
}

static int on_commit(void *self, struct tpo_job *job)
{
    const Tpo__V1__StepRequest *m = (const Tpo__V1__StepRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_COMMIT_BEFORE);
    if (rc == TPO_OK) rc = l->learner.commit(l->learner.self, &key, &err);
    if (rc == TPO_OK) {
        tpo_fault_reach(TPO_FAULT_COMMIT_AFTER);
        step_ended(l, "the step is committed");
        tpo_metrics_add(tpo_host_metrics(l->host), "tpo_training_steps_total", "result=\"committed\"", 1);
    }
    return answer_empty(job, &err);
}

static int on_abort(void *self, struct tpo_job *job)
{
    const Tpo__V1__StepRequest *m = (const Tpo__V1__StepRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_ABORT);
    if (rc == TPO_OK) rc = l->learner.abort(l->learner.self, &key, &err);
    if (rc == TPO_OK) {
        step_ended(l, "the step is aborted");
        tpo_metrics_add(tpo_host_metrics(l->host), "tpo_training_steps_total", "result=\"aborted\"", 1);
    }
    return answer_empty(job, &err);
}

/* --- state ------------------------------------------------------------------------------------------------------------------------------------ */

static int on_export(void *self, struct tpo_job *job)
{
    const Tpo__V1__ExportRequest *m = (const Tpo__V1__ExportRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    struct tpo_chunk x;
    Tpo__V1__Chunk reply;
    int64_t shape[TPO_DIMS_MAX];
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK && (m->at > INT32_MAX || m->offset > INT64_MAX || m->most > TPO_CHUNK_ELEMENTS))
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "export", "at most %lld elements of one tensor", (long long)TPO_CHUNK_ELEMENTS);
    tpo_fault_reach(TPO_FAULT_EXPORT);
    if (rc == TPO_OK) rc = l->learner.export_state(l->learner.self, (int)m->at, (int64_t)m->offset, (int64_t)m->most, &x, &err);
    if (rc != TPO_OK) return answer(job, NULL, &err);
    tpo_chunk_pack(&reply, &x, shape);
    return answer(job, &reply.base, NULL);
}

static int on_import(void *self, struct tpo_job *job)
{
    const Tpo__V1__Chunk *m = (const Tpo__V1__Chunk *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    struct tpo_chunk x;
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK) rc = tpo_chunk_unpack(&x, &l->arena, m, &err);
    tpo_fault_reach(TPO_FAULT_IMPORT);
    if (rc == TPO_OK) rc = l->learner.import_state(l->learner.self, key.version, m->name[0] != '\0' ? &x : NULL, &err);
    if (rc == TPO_OK && m->name[0] == '\0') step_ended(l, "another state was imported");
    return answer_empty(job, &err);
}

static int on_publish(void *self, struct tpo_job *job)
{
    const Tpo__V1__PublishRequest *m = (const Tpo__V1__PublishRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    int rc = enter(job, m->key, &l, &key, &err);
    tpo_fault_reach(TPO_FAULT_PUBLISH);
    if (rc == TPO_OK && job->host->service->publish == NULL)
        rc = tpo_fail(&err, TPO_UNIMPLEMENTED, "publish", "%s serves no versions", l->learner.stage);
    if (rc == TPO_OK) rc = job->host->service->publish(self, m->version, &err);
    return answer_empty(job, &err);
}

static int on_end(void *self, struct tpo_job *job)
{
    const Tpo__V1__StepRequest *m = (const Tpo__V1__StepRequest *)job->message;
    struct tpo_learner_rpc *l;
    struct tpo_key key;
    struct tpo_error err = {0};
    (void)self;
    int rc = enter(job, m->key, &l, &key, &err);
    if (rc == TPO_OK) rc = l->learner.end(l->learner.self, &err);
    if (rc == TPO_OK) {
        step_ended(l, "the run has ended");
        l->ends_us = 0; /* free for anybody */
        l->watch_us = 0;
    }
    return answer_empty(job, &err);
}

#define METHOD(name, type, run)                                                                                                    \
    {                                                                                                                              \
        "/tpo.v1.Learner/" name, &tpo__v1__##type##__descriptor, false, run                                                        \
    }
const struct tpo_host_method tpo_learner_methods[] = {
    METHOD("Begin", begin_request, on_begin),
    METHOD("Forward", forward_request, on_forward),
    METHOD("Backward", backward_request, on_backward),
    METHOD("Gather", step_request, on_gather),
    METHOD("Scatter", chunk, on_scatter),
    METHOD("Norms", step_request, on_norms),
    METHOD("Prepare", prepare_request, on_prepare),
    METHOD("Commit", step_request, on_commit),
    METHOD("Abort", step_request, on_abort),
    METHOD("Export", export_request, on_export),
    METHOD("Import", chunk, on_import),
    METHOD("Publish", publish_request, on_publish),
    METHOD("End", step_request, on_end),
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
    struct timespec now; /* microseconds: no number of an earlier process is given again */
    clock_gettime(CLOCK_REALTIME, &now);
    l->lease = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    l->threads = h->settings.threads > 0 ? (int)h->settings.threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    tpo_arena_init(&l->arena, (size_t)1 << 20, 0);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    int rc = tpo_config_hash(l->config, h->settings.model, err);
    if (rc == TPO_OK) rc = s->open_learner(s->self, &l->learner, err);
    if (rc == TPO_OK && pthread_create(&l->watch, NULL, watch, l) != 0)
        rc = tpo_fail(err, TPO_ENOMEM, "thread", "no thread for the lease");
    l->watched = rc == TPO_OK;
    if (rc == TPO_OK)
        *out = l;
    else
        tpo_learner_rpc_close(l);
    return rc;
}

void tpo_learner_rpc_close(struct tpo_learner_rpc *l)
{
    if (l == NULL) return;
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (l->watched) pthread_join(l->watch, NULL);
    gather_abort(l, "this process is shutting down");
    if (l->learner.close != NULL) l->learner.close(l->learner.self);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    tpo_arena_free(&l->arena);
    free(l);
}
