/* This file owns the order in which micro-batches go through the services. */
#include "trainer/steps/lanes.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "services/host/fault.h"
#include "services/host/learner_state.h"
#include "trainer/steps/collective.h"
#include "trainer/steps/pass.h"

struct pipeline {
    struct tpo_crew *crew;
    const struct tpo_recipe_stage *stage;
    struct tpo_key key;
    const struct tpo_world_batch *batches;
    struct tpo_pass *passes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under lock */
    int next[TPO_REPLICAS_MAX], end[TPO_REPLICAS_MAX]; /* of a route: the next micro-batch to begin, and the first past it */
    int next_backward[TPO_PARTS][TPO_LANES_MAX];       /* of a lane: the micro-batch whose Backward a service takes next */
    int backwards_left[TPO_PARTS][TPO_REPLICAS_MAX];   /* that a replica still waits for */
    int skipped[TPO_PARTS][TPO_REPLICAS_MAX];          /* Backwards it is not asked for */
    int in_flight[TPO_PARTS][TPO_REPLICAS_MAX];        /* micro-batches for which it may hold a tape */
    int forwards_left, rc;
    struct tpo_error error;
};

/* What one thread of a route is given. */
struct thread_job {
    struct pipeline *pipeline;
    struct tpo_pipeline_thread *thread;
    int route;
};

static int lane_of(const struct tpo_plan *plan, int micro_batch)
{
    return (int)((int64_t)micro_batch * plan->lanes / plan->micro_batches);
}

/* Which replica of a service a micro-batch meets. */
static int lane_replica(const struct tpo_crew *t, const struct tpo_plan *plan, int part, int micro_batch)
{
    return lane_of(plan, micro_batch) * t->options.n_replicas[part] / plan->lanes;
}

bool tpo_lanes_gathers(const struct tpo_crew *t, int part)
{
    return t->options.n_replicas[part] > 1 && t->trainable[part] > 0;
}

/* --- what a pass asks ---------------------------------------------------------------------------------------------------------------- */

static void fail(struct pipeline *pipe, int rc, const struct tpo_error *err)
{
    pthread_mutex_lock(&pipe->lock);
    if (pipe->rc == TPO_OK) {
        pipe->rc = rc;
        pipe->error = *err;
        if (pipe->crew->stop != NULL) *pipe->crew->stop = true;
    }
    pthread_cond_broadcast(&pipe->changed);
    pthread_mutex_unlock(&pipe->lock);
}

/* One Backward of a replica less to come, under lock. Where that was the last, what is complete may leave while it runs. */
static void backward_count(struct pipeline *pipe, int part, int replica, bool skip)
{
    if (skip) pipe->skipped[part][replica]++;
    if (--pipe->backwards_left[part][replica] > 0 || !tpo_lanes_gathers(pipe->crew, part)) return;
    pipe->crew->collective->start(pipe->crew->collective, pipe->crew, part, replica, &pipe->key,
                                  (uint32_t)pipe->skipped[part][replica]);
}

/* Waits until the Backwards before m in its lane have been done by that service. */
static int backward_wait(void *arg, int part, int m, bool skip)
{
    struct pipeline *pipe = arg;
    const int lane = lane_of(&pipe->stage->plan, m),
              replica = pipe->crew->options.n_replicas[part] > 0 ? lane_replica(pipe->crew, &pipe->stage->plan, part, m) : 0;
    pthread_mutex_lock(&pipe->lock);
    while (pipe->next_backward[part][lane] != m && pipe->rc == TPO_OK) pthread_cond_wait(&pipe->changed, &pipe->lock);
    const int rc = pipe->rc;
    if (rc == TPO_OK) backward_count(pipe, part, replica, skip);
    pthread_mutex_unlock(&pipe->lock);
    return rc == TPO_OK ? TPO_OK : TPO_CANCELLED;
}

static void backward_end(void *arg, int part, int m)
{
    struct pipeline *pipe = arg;
    pthread_mutex_lock(&pipe->lock);
    pipe->next_backward[part][lane_of(&pipe->stage->plan, m)] = m + 1;
    pthread_cond_broadcast(&pipe->changed);
    pthread_mutex_unlock(&pipe->lock);
}

static void forward_end(void *arg)
{
    struct pipeline *pipe = arg;
    pthread_mutex_lock(&pipe->lock);
    const bool last = --pipe->forwards_left == 0;
    pthread_mutex_unlock(&pipe->lock);
    if (last) tpo_fault_reach(TPO_FAULT_AFTER_FORWARD);
}

/* --- the pipeline -------------------------------------------------------------------------------------------------------------------- */

static bool has_next(const struct pipeline *pipe, int route)
{
    return pipe->rc == TPO_OK && pipe->next[route] < pipe->end[route];
}

/* Whether every service that a micro-batch meets keeps one more tape. */
static bool has_room(const struct pipeline *pipe, int m)
{
    const struct tpo_crew *t = pipe->crew;
    for (int p = 0; p < TPO_PARTS; p++) {
        if (!t->runs[p]) continue;
        const int replica = lane_replica(t, &pipe->stage->plan, p, m);
        const int n = pipe->in_flight[p][replica];
        if (n > 0 && n >= t->replicas[p][replica].begun.tapes) return false;
    }
    return true;
}

static void in_flight_add(struct pipeline *pipe, int m, int n)
{
    for (int p = 0; p < TPO_PARTS; p++)
        if (pipe->crew->runs[p]) pipe->in_flight[p][lane_replica(pipe->crew, &pipe->stage->plan, p, m)] += n;
}

/* The next micro-batch of a route, once there is room for it; -1: there is none. Room is taken everywhere at once, and those before it in its lane
 * have theirs already, so that none in flight waits for one that is not. */
static int begin_next(struct pipeline *pipe, int route)
{
    pthread_mutex_lock(&pipe->lock);
    while (has_next(pipe, route) && !has_room(pipe, pipe->next[route])) pthread_cond_wait(&pipe->changed, &pipe->lock);
    const int m = has_next(pipe, route) ? pipe->next[route]++ : -1;
    if (m >= 0) in_flight_add(pipe, m, 1);
    pthread_mutex_unlock(&pipe->lock);
    return m;
}

static void end_one(struct pipeline *pipe, int m)
{
    pthread_mutex_lock(&pipe->lock);
    in_flight_add(pipe, m, -1);
    pthread_cond_broadcast(&pipe->changed);
    pthread_mutex_unlock(&pipe->lock);
}

static int pipeline_thread(void *arg, struct tpo_error *err)
{
    const struct thread_job *j = arg;
    struct pipeline *pipe = j->pipeline;
    const struct tpo_pass_order order = {pipe, backward_wait, backward_end, forward_end};
    (void)err;
    for (int m; (m = begin_next(pipe, j->route)) >= 0;) {
        struct tpo_error why = {0};
        struct tpo_key key = pipe->key;
        key.micro_batch = (uint32_t)m;
        const int rc = tpo_pass_run(pipe->crew, j->thread->learners, &key, &pipe->batches[m], &order, &pipe->passes[m], &why);
        if (rc != TPO_OK) fail(pipe, rc, &why);
        end_one(pipe, m);
    }
    return TPO_OK;
}

/* How many threads of a route work: where routes share a service, its tapes are shared out, one at least. */
static int threads_of_route(const struct tpo_crew *t)
{
    int n = t->threads_per_route;
    for (int p = 0; p < TPO_PARTS; p++) {
        if (!t->runs[p]) continue;
        const int routes = t->n_routes / t->options.n_replicas[p], tapes = t->replicas[p][0].begun.tapes / routes;
        if (tapes < n) n = tapes;
    }
    return n > 0 ? n : 1;
}

static void pipeline_init(struct pipeline *pipe)
{
    const struct tpo_plan *plan = &pipe->stage->plan;
    pthread_mutex_init(&pipe->lock, NULL);
    pthread_cond_init(&pipe->changed, NULL);
    pipe->forwards_left = plan->micro_batches;
    for (int m = plan->micro_batches - 1; m >= 0; m--) {
        const int route = lane_of(plan, m) * pipe->crew->n_routes / plan->lanes;
        pipe->next[route] = m;
        if (pipe->end[route] == 0) pipe->end[route] = m + 1;
        for (int p = 0; p < TPO_PARTS; p++) {
            pipe->next_backward[p][lane_of(plan, m)] = m;
            if (pipe->crew->options.n_replicas[p] > 0) pipe->backwards_left[p][lane_replica(pipe->crew, plan, p, m)]++;
        }
    }
}

int tpo_lanes_run(struct tpo_crew *t, const struct tpo_recipe_stage *s, const struct tpo_key *key,
                  const struct tpo_world_batch *batches, struct tpo_pass *passes, struct tpo_error *err)
{
    struct pipeline pipe = {.crew = t, .stage = s, .key = *key, .batches = batches, .passes = passes};
    const int n = threads_of_route(t);
    struct thread_job *jobs = calloc((size_t)(t->n_routes * n), sizeof(*jobs));
    if (jobs == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a step");
    pipeline_init(&pipe);
    for (int i = 0; i < t->n_routes * n; i++) {
        struct tpo_pipeline_thread *thread = &t->threads[i / n * t->threads_per_route + i % n];
        jobs[i] = (struct thread_job){&pipe, thread, i / n};
        tpo_worker_give(thread->worker, pipeline_thread, &jobs[i]);
    }
    for (int i = 0; i < t->n_routes * n; i++) tpo_worker_wait(jobs[i].thread->worker, NULL);
    for (int p = 0; p < TPO_PARTS && pipe.rc != TPO_OK; p++) t->collective->drop(t->collective, t, p);
    if (t->stop != NULL) *t->stop = false;
    if (pipe.rc != TPO_OK && err != NULL) *err = pipe.error;
    pthread_cond_destroy(&pipe.changed);
    pthread_mutex_destroy(&pipe.lock);
    free(jobs);
    return pipe.rc;
}
