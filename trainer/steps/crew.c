/* This file owns the set of learners of a run, and the threads that speak to them. */
#include "trainer/steps/crew.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/host/learner_state.h"
#include "trainer/steps/collective.h"

#define THREADS_MAX 4 /* per route: three services, and one micro-batch on its way */

const char *const tpo_part_names[TPO_PARTS] = {"encoder", "router", "region"};

/* --- opening ------------------------------------------------------------------------------------------------------------------------- */

static int replicas_check(const struct tpo_crew_options *o, struct tpo_error *err)
{
    for (int p = 0; p < TPO_PARTS; p++) {
        const int n = o->n_replicas[p];
        if (n < 0 || n > TPO_REPLICAS_MAX || (n & (n - 1)) != 0)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "replicas", "%d replicas of %s: a power of two up to %d is needed", n,
                            tpo_part_names[p], TPO_REPLICAS_MAX);
    }
    return TPO_OK;
}

static int replicas_open(struct tpo_crew *t, struct tpo_error *err)
{
    const struct tpo_crew_options *o = &t->options;
    int rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < o->n_replicas[p] && rc == TPO_OK; r++) {
            rc = o->open(o->owner, p, r, &t->replicas[p][r].learner, err);
            if (rc == TPO_OK) rc = tpo_worker_open(&t->replicas[p][r].worker, o->threaded, err);
            if (t->n_routes < r + 1) t->n_routes = r + 1;
        }
    return rc;
}

static int thread_open(struct tpo_crew *t, struct tpo_pipeline_thread *x, int route, struct tpo_error *err)
{
    const struct tpo_crew_options *o = &t->options;
    int rc = tpo_worker_open(&x->worker, o->threaded, err);
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) {
        if (o->n_replicas[p] == 0) continue;
        const int r = route * o->n_replicas[p] / t->n_routes;
        if (o->threaded)
            rc = o->open(o->owner, p, r, &x->learners[p], err);
        else
            x->learners[p] = t->replicas[p][r].learner;
    }
    return rc;
}

int tpo_crew_open(struct tpo_crew *t, const struct tpo_crew_options *o, struct tpo_error *err)
{
    *t = (struct tpo_crew){.options = *o, .config = o->config};
    int rc = replicas_check(o, err);
    if (rc == TPO_OK) rc = replicas_open(t, err);
    if (rc == TPO_OK && t->n_routes == 0) rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "replicas", "there is no service to train");
    if (rc == TPO_OK) {
        t->threads_per_route = o->threaded ? THREADS_MAX : 1;
        t->threads = calloc((size_t)(t->n_routes * t->threads_per_route), sizeof(*t->threads));
        if (t->threads == NULL) rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the crew");
    }
    for (int i = 0; rc == TPO_OK && i < t->n_routes * t->threads_per_route; i++)
        rc = thread_open(t, &t->threads[i], i / t->threads_per_route, err);
    if (rc == TPO_OK) rc = tpo_collective_open_trainer(&t->collective, err);
    if (rc != TPO_OK) tpo_crew_close(t);
    return rc;
}

void tpo_crew_close(struct tpo_crew *t)
{
    for (int i = 0; t->threads != NULL && i < t->n_routes * t->threads_per_route; i++) {
        tpo_worker_close(t->threads[i].worker);
        for (int p = 0; p < TPO_PARTS && t->options.threaded; p++)
            if (t->threads[i].learners[p].close != NULL) t->threads[i].learners[p].close(t->threads[i].learners[p].self);
    }
    free(t->threads);
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < TPO_REPLICAS_MAX; r++) {
            struct tpo_replica *x = &t->replicas[p][r];
            tpo_worker_close(x->worker);
            if (x->learner.close != NULL) x->learner.close(x->learner.self);
        }
    if (t->collective != NULL) t->collective->close(t->collective);
    *t = (struct tpo_crew){0};
}

/* --- everywhere ---------------------------------------------------------------------------------------------------------------------- */

struct call {
    struct tpo_crew *crew;
    int part, replica;
    tpo_replica_job job;
    void *arg;
};

static int call_run(void *arg, struct tpo_error *err)
{
    const struct call *c = arg;
    return c->job(c->crew, c->part, c->replica, c->arg, err);
}

int tpo_crew_each(struct tpo_crew *t, tpo_replica_job job, void *arg, struct tpo_error *err)
{
    struct call calls[TPO_PARTS][TPO_REPLICAS_MAX];
    int rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) {
            calls[p][r] = (struct call){t, p, r, job, arg};
            tpo_worker_give(t->replicas[p][r].worker, call_run, &calls[p][r]);
        }
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) {
            const int one = tpo_worker_wait(t->replicas[p][r].worker, rc == TPO_OK ? err : NULL);
            if (rc == TPO_OK) rc = one;
        }
    return rc;
}

struct beginning {
    const struct tpo_plan *plan;
    const char *run;
};

static int begin_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    const struct beginning *b = arg;
    struct tpo_replica *x = &t->replicas[part][replica];
    struct tpo_plan plan = *b->plan;
    plan.own_lanes = plan.lanes / t->options.n_replicas[part];
    plan.first_lane = replica * plan.own_lanes;
    memset(&x->begun, 0, sizeof(x->begun));
    int rc = x->learner.begin(x->learner.self, b->run, &plan, &x->begun, err);
    /* Not by counting: a Begin whose answer was lost has been made again. */
    if (rc == TPO_OK && x->lease != 0 && x->begun.own_since > x->lease) x->taken = true;
    if (rc == TPO_OK) x->lease = x->begun.lease;
    if (rc == TPO_OK && x->begun.service[0] != '\0' && strcmp(x->begun.service, tpo_part_names[part]) != 0)
        rc =
            tpo_fail(err, TPO_FAILED_PRECONDITION, "stage", "what was named as %s is a %s", tpo_part_names[part], x->begun.service);
    return rc;
}

/* --- a stage ------------------------------------------------------------------------------------------------------------------------- */

/* Whether the stage's losses need a part. */
static void runs_of(const struct tpo_recipe_stage *s, bool runs[TPO_PARTS])
{
    const bool region = tpo_recipe_loss(s, "region") > 0;
    runs[TPO_PART_ENCODER] = true;
    runs[TPO_PART_REGION] = region;
    runs[TPO_PART_ROUTER] =
        region || tpo_recipe_loss(s, "language") > 0 || tpo_recipe_loss(s, "slot") > 0 || tpo_recipe_loss(s, "attention") > 0;
}

static int trains_check(const struct tpo_recipe_stage *s, const int trainable[TPO_PARTS], struct tpo_error *err)
{
    bool runs[TPO_PARTS];
    int owned = 0;
    runs_of(s, runs);
    for (int p = 0; p < TPO_PARTS; p++) owned += runs[p] ? trainable[p] : 0;
    if (owned > 0) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "recipe", "stage %s trains nothing: no group matches a tensor its losses reach",
                    s->name);
}

static int needs_check(const struct tpo_crew *t, const struct tpo_recipe_stage *s, struct tpo_error *err)
{
    bool runs[TPO_PARTS];
    runs_of(s, runs);
    for (int p = 0; p < TPO_PARTS; p++) {
        const int n = t->options.n_replicas[p];
        if (n == 0 && runs[p])
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "mesh", "stage %s needs a %s, and none was named", s->name,
                            tpo_part_names[p]);
        if (n > s->plan.lanes)
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "lanes", "stage %s has %d lanes, fewer than the %d replicas of %s",
                            s->name, s->plan.lanes, n, tpo_part_names[p]);
    }
    if (t->n_routes > s->plan.micro_batches)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "lanes", "stage %s has %d micro-batches, fewer than %d replicas", s->name,
                        s->plan.micro_batches, t->n_routes);
    return TPO_OK;
}

/* Tensors of a model that the stage's groups own. */
static int owned_by(const struct tpo_plan *plan, const struct tpo_params *params)
{
    int n = 0;
    for (int i = 0; i < params->n; i++) n += !params->items[i]->ignored && tpo_plan_group(plan, params->items[i]->name) >= 0;
    return n;
}

int tpo_crew_check(const struct tpo_crew *t, const struct tpo_recipe *r, int first, int end,
                   struct tpo_model *const models[TPO_PARTS], struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = first; i < end && rc == TPO_OK; i++) {
        const struct tpo_recipe_stage *s = &r->stages[i];
        int trainable[TPO_PARTS];
        struct tpo_error why = {0};
        for (int p = 0; p < TPO_PARTS; p++) trainable[p] = owned_by(&s->plan, models[p]->params);
        rc = needs_check(t, s, err);
        if (rc == TPO_OK) rc = trains_check(s, trainable, err);
        for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++)
            if ((rc = tpo_learner_state_check(models[p]->params, &s->plan, &why)) != TPO_OK)
                tpo_fail(err, rc, why.reason, "stage %s: %.300s", s->name, why.message);
    }
    return rc;
}

int tpo_crew_begin(struct tpo_crew *t, const struct tpo_recipe *r, int stage, const char *run, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &r->stages[stage];
    struct beginning b = {&s->plan, run};
    runs_of(s, t->runs);
    snprintf(t->run, sizeof(t->run), "%s", run);
    int rc = needs_check(t, s, err);
    if (rc == TPO_OK) rc = tpo_crew_each(t, begin_one, &b, err);
    if (rc != TPO_OK) return rc;
    for (int p = 0; p < TPO_PARTS; p++) {
        t->trainable[p] = t->replicas[p][0].begun.trainable;
        for (int i = 1; i < t->options.n_replicas[p]; i++)
            if (t->replicas[p][i].begun.trainable != t->trainable[p])
                return tpo_fail(err, TPO_FAILED_PRECONDITION, "replicas", "the replicas of %s are not of one model",
                                tpo_part_names[p]);
    }
    return trains_check(s, t->trainable, err);
}

static int abort_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct tpo_replica *x = &t->replicas[part][replica];
    struct tpo_key key = {.version = x->begun.version};
    (void)arg;
    memcpy(key.run, t->run, sizeof(key.run));
    return x->learner.abort(x->learner.self, &key, err);
}

int tpo_crew_abort(struct tpo_crew *t, struct tpo_error *err)
{
    return tpo_crew_each(t, abort_one, NULL, err);
}

static int end_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct tpo_learner *l = &t->replicas[part][replica].learner;
    (void)arg;
    return l->end(l->self, err);
}

int tpo_crew_end(struct tpo_crew *t, struct tpo_error *err)
{
    return tpo_crew_each(t, end_one, NULL, err);
}
