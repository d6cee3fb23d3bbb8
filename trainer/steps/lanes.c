/* This file owns the order in which micro-batches walk through the services. */
#include "trainer/steps/lanes.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "services/host/fault.h"
#include "services/host/learner_state.h"
#include "trainer/steps/collective.h"
#include "trainer/steps/pass.h"

struct walk {
    struct tpo_crew *crew;
    const struct tpo_recipe_stage *stage;
    struct tpo_key key;
    const struct tpo_world_batch *batches;
    struct tpo_pass *passes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under lock */
    int next[TPO_REPLICAS_MAX], end[TPO_REPLICAS_MAX]; /* of a line: the next micro-batch to begin, and the first past it */
    int turn[TPO_PARTS][TPO_LANES_MAX];                /* of a lane: the micro-batch whose Backward a service takes next */
    int left[TPO_PARTS][TPO_REPLICAS_MAX];             /* Backwards that a replica still waits for */
    int left_out[TPO_PARTS][TPO_REPLICAS_MAX];         /* and those it is not asked for */
    int on_way[TPO_PARTS][TPO_REPLICAS_MAX];           /* micro-batches for which it may hold a tape */
    int forwards_left, rc;
    struct tpo_error error;
};

struct stroll {
    struct walk *walk;
    struct tpo_walker *walker;
    int line;
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

static void fail(struct walk *w, int rc, const struct tpo_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (w->rc == TPO_OK) {
        w->rc = rc;
        w->error = *err;
        if (w->crew->stop != NULL) *w->crew->stop = true;
    }
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* Waits until the Backwards before m in its lane have been done by that service. */
static int turn_wait(void *arg, int part, int m, bool skip)
{
    struct walk *w = arg;
    const int lane = lane_of(&w->stage->plan, m),
              replica = w->crew->options.n_replicas[part] > 0 ? lane_replica(w->crew, &w->stage->plan, part, m) : 0;
    pthread_mutex_lock(&w->lock);
    while (w->turn[part][lane] != m && w->rc == TPO_OK) pthread_cond_wait(&w->changed, &w->lock);
    const int rc = w->rc;
    if (rc == TPO_OK && skip) w->left_out[part][replica]++;
    /* The last one is on its way: what is complete may leave. */
    if (rc == TPO_OK && --w->left[part][replica] == 0 && tpo_lanes_gathers(w->crew, part))
        w->crew->collective->start(w->crew->collective, w->crew, part, replica, &w->key, (uint32_t)w->left_out[part][replica]);
    pthread_mutex_unlock(&w->lock);
    return rc == TPO_OK ? TPO_OK : TPO_CANCELLED;
}

static void turn_end(void *arg, int part, int m)
{
    struct walk *w = arg;
    pthread_mutex_lock(&w->lock);
    w->turn[part][lane_of(&w->stage->plan, m)] = m + 1;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void forward_end(void *arg)
{
    struct walk *w = arg;
    pthread_mutex_lock(&w->lock);
    const bool last = --w->forwards_left == 0;
    pthread_mutex_unlock(&w->lock);
    if (last) tpo_fault_reach(TPO_FAULT_AFTER_FORWARD);
}

/* --- walking ------------------------------------------------------------------------------------------------------------------------- */

static bool is_left(const struct walk *w, int line)
{
    return w->rc == TPO_OK && w->next[line] < w->end[line];
}

/* Whether every service that a micro-batch meets keeps one more tape. */
static bool has_room(const struct walk *w, int m)
{
    const struct tpo_crew *t = w->crew;
    for (int p = 0; p < TPO_PARTS; p++) {
        if (!t->runs[p]) continue;
        const int replica = lane_replica(t, &w->stage->plan, p, m);
        const int n = w->on_way[p][replica];
        if (n > 0 && n >= t->replicas[p][replica].begun.tapes) return false;
    }
    return true;
}

static void way_add(struct walk *w, int m, int n)
{
    for (int p = 0; p < TPO_PARTS; p++)
        if (w->crew->runs[p]) w->on_way[p][lane_replica(w->crew, &w->stage->plan, p, m)] += n;
}

/* The next micro-batch of a line, once there is room for it; -1: there is none. Room is taken everywhere at once, and those before it in its lane
 * have theirs already, so that none on its way waits for one that is not. */
static int begin_next(struct walk *w, int line)
{
    pthread_mutex_lock(&w->lock);
    while (is_left(w, line) && !has_room(w, w->next[line])) pthread_cond_wait(&w->changed, &w->lock);
    const int m = is_left(w, line) ? w->next[line]++ : -1;
    if (m >= 0) way_add(w, m, 1);
    pthread_mutex_unlock(&w->lock);
    return m;
}

static void end_one(struct walk *w, int m)
{
    pthread_mutex_lock(&w->lock);
    way_add(w, m, -1);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static int stroll(void *arg, struct tpo_error *err)
{
    struct stroll *s = arg;
    struct walk *w = s->walk;
    const struct tpo_pass_order order = {w, turn_wait, turn_end, forward_end};
    (void)err;
    for (int m; (m = begin_next(w, s->line)) >= 0;) {
        struct tpo_error why = {0};
        struct tpo_key key = w->key;
        key.micro_batch = (uint32_t)m;
        const int rc = tpo_pass_run(w->crew, s->walker->learners, &key, &w->batches[m], &order, &w->passes[m], &why);
        if (rc != TPO_OK) fail(w, rc, &why);
        end_one(w, m);
    }
    return TPO_OK;
}

/* How many walkers a line has: where lines share a service, its tapes are shared out, one at least. */
static int abreast(const struct tpo_crew *t)
{
    int n = t->walkers_per_line;
    for (int p = 0; p < TPO_PARTS; p++) {
        if (!t->runs[p]) continue;
        const int lines = t->n_lines / t->options.n_replicas[p], tapes = t->replicas[p][0].begun.tapes / lines;
        if (tapes < n) n = tapes;
    }
    return n > 0 ? n : 1;
}

static void walk_init(struct walk *w)
{
    const struct tpo_plan *plan = &w->stage->plan;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->forwards_left = plan->micro_batches;
    for (int m = plan->micro_batches - 1; m >= 0; m--) {
        const int line = lane_of(plan, m) * w->crew->n_lines / plan->lanes;
        w->next[line] = m;
        if (w->end[line] == 0) w->end[line] = m + 1;
        for (int p = 0; p < TPO_PARTS; p++) {
            w->turn[p][lane_of(plan, m)] = m;
            if (w->crew->options.n_replicas[p] > 0) w->left[p][lane_replica(w->crew, plan, p, m)]++;
        }
    }
}

int tpo_lanes_walk(struct tpo_crew *t, const struct tpo_recipe_stage *s, const struct tpo_key *key,
                   const struct tpo_world_batch *batches, struct tpo_pass *passes, struct tpo_error *err)
{
    struct walk w = {.crew = t, .stage = s, .key = *key, .batches = batches, .passes = passes};
    const int n = abreast(t);
    struct stroll *strolls = calloc((size_t)(t->n_lines * n), sizeof(*strolls));
    if (strolls == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a step");
    walk_init(&w);
    for (int i = 0; i < t->n_lines * n; i++) {
        struct tpo_walker *walker = &t->walkers[i / n * t->walkers_per_line + i % n];
        strolls[i] = (struct stroll){&w, walker, i / n};
        tpo_worker_give(walker->worker, stroll, &strolls[i]);
    }
    for (int i = 0; i < t->n_lines * n; i++) tpo_worker_wait(strolls[i].walker->worker, NULL);
    for (int p = 0; p < TPO_PARTS && w.rc != TPO_OK; p++) t->collective->drop(t->collective, t, p);
    if (t->stop != NULL) *t->stop = false;
    if (w.rc != TPO_OK && err != NULL) *err = w.error;
    pthread_cond_destroy(&w.changed);
    pthread_mutex_destroy(&w.lock);
    free(strolls);
    return w.rc;
}
