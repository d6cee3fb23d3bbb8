/* This file owns the way back to a state that all services share. */
#include "trainer/steps/recover.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "trainer/steps/remote.h"
#include "trainer/steps/shard.h"
#include "trainer/steps/timing.h"

#define AGAIN_MS 200

bool tpo_recovery_helps(const struct tpo_error *err)
{
    static const char *const lost[] = {
        "wrong_run", "wrong_version", "wrong_step", "no_forward", "no_norms", "not_prepared",
        "no_total",  "open_tapes",    "lease",      "media_gone"}; /* since it was drawn: the next draw passes over it */
    if (err->code == TPO_UNAVAILABLE || err->code == TPO_DEADLINE_EXCEEDED || err->code == TPO_CANCELLED ||
        err->code == TPO_ABORTED || err->code == TPO_UNKNOWN)
        return true;
    for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]) && err->code == TPO_FAILED_PRECONDITION; i++)
        if (strcmp(err->reason, lost[i]) == 0) return true;
    return false;
}

bool tpo_recovery_stuck(struct tpo_recovery *r, int recoveries, struct tpo_error *err)
{
    const bool late = err->code == TPO_DEADLINE_EXCEEDED && strcmp(err->reason, TPO_CALL_LATE) == 0;
    const bool again = late && recoveries > 0 && strcmp(r->late, err->message) == 0;
    snprintf(r->late, sizeof(r->late), "%s", late ? err->message : "");
    if (again)
        tpo_fail(err, TPO_DEADLINE_EXCEEDED, TPO_CALL_LATE,
                 "%s, twice in a row: one of this recipe's needs longer here, give it more", r->late);
    return again;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = AGAIN_MS * 1000000L}, NULL);
}

/* --- begin --------------------------------------------------------------------------------------------------------------------------- */

static bool differ(const char *ours, const char *theirs)
{
    return ours[0] != '\0' && theirs[0] != '\0' && strcmp(ours, theirs) != 0;
}

/* Its second Begin ends the lease that the first one gave: none of the two could go on. */
static int apart_check(const struct tpo_crew *t, int p, int i, struct tpo_error *err)
{
    const char *instance = t->replicas[p][i].begun.instance;
    for (int k = 0; k < i; k++)
        if (instance[0] != '\0' && strcmp(t->replicas[p][k].begun.instance, instance) == 0)
            return tpo_fail(
                err, TPO_FAILED_PRECONDITION, "replicas",
                "replicas %d and %d of %s are one process (%s): --mesh names it twice, by two names or as the same host", k, i,
                tpo_part_names[p], instance);
    return TPO_OK;
}

static int begun_check(const struct tpo_recovery *r, struct tpo_checkpoint *c, struct tpo_error *err)
{
    const struct tpo_crew *t = r->crew;
    for (int p = 0; p < TPO_PARTS; p++) {
        c->threads[p] = r->threads;
        c->trains[p] = t->trainable[p] > 0;
        snprintf(c->devices[p], sizeof(c->devices[p]), "%s", t->replicas[p][0].begun.device);
        for (int i = 0; i < t->options.n_replicas[p]; i++) {
            const struct tpo_begun *b = &t->replicas[p][i].begun;
            const int rc = apart_check(t, p, i, err);
            if (rc != TPO_OK) return rc;
            if (differ(r->config, b->config) || differ(r->tokenizer, b->tokenizer))
                return tpo_fail(
                    err, TPO_FAILED_PRECONDITION, "model",
                    "replica %d of %s serves a model of another %s: start the services on the folder that the run begins with "
                    "(`tpo up --train --model DIR`; `tpo model random` fills one without weights)",
                    i, tpo_part_names[p], differ(r->config, b->config) ? "config.json" : "tokenizer");
            if (strcmp(b->device, c->devices[p]) != 0)
                return tpo_fail(err, TPO_FAILED_PRECONDITION, "device",
                                "replicas of %s compute on %s and %s: the bits would differ", tpo_part_names[p], c->devices[p],
                                b->device);
            if (i > 0 && b->threads != t->replicas[p][0].begun.threads)
                return tpo_fail(err, TPO_FAILED_PRECONDITION, "threads",
                                "replicas of %s have teams of %d and %d threads: all must have as many", tpo_part_names[p],
                                t->replicas[p][0].begun.threads, b->threads);
            if (b->threads > 0) c->threads[p] = b->threads;
        }
    }
    return TPO_OK;
}

static uint32_t hash_add(uint32_t h, const void *data, size_t n)
{
    for (const unsigned char *at = data, *end = at + n; at < end; at++) h = (h ^ *at) * 16777619u;
    return h;
}

/* Names the run to the services. Holder, shares and what the stage is of are in it: another plan or start under the same recipe's name must be
 * another run to them. */
static void run_name(const struct tpo_recovery *r, const struct tpo_identity *x, char out[64])
{
    const struct tpo_plan *plan = &r->recipe->stages[r->stage].plan;
    const char *token = tpo_held_token(r->held);
    const int numbers[] = {x->lanes, x->micro_batches};
    uint32_t h = hash_add(2166136261u, token, strlen(token));
    h = hash_add(h, r->crew->options.n_replicas, sizeof(r->crew->options.n_replicas));
    h = hash_add(hash_add(h, numbers, sizeof(numbers)), &plan->seed, sizeof(plan->seed));
    h = hash_add(hash_add(h, &x->plan, sizeof(x->plan)), x->start, sizeof(x->start));
    h = hash_add(hash_add(h, x->data, sizeof(x->data)), x->config, sizeof(x->config));
    snprintf(out, 64, "%.48s#%08x", x->run, h);
}

static int all_begin(const struct tpo_recovery *r, struct tpo_checkpoint *c, struct tpo_error *err)
{
    const double until_s = tpo_now_s() + r->wait_ms / 1000.0;
    char run[64];
    run_name(r, &c->of, run);
    for (bool said = false;; said = true) {
        struct tpo_error why = {0};
        int rc = tpo_crew_begin(r->crew, r->recipe, r->stage, run, &why);
        if (rc == TPO_OK) rc = begun_check(r, c, &why);
        if (rc == TPO_OK) rc = tpo_held_begun(r->held, r->crew, &why);
        if (rc == TPO_OK || !tpo_recovery_helps(&why) || tpo_now_s() >= until_s) {
            if (rc != TPO_OK && err != NULL) *err = why;
            return rc;
        }
        if (!said)
            tpo_log(TPO_LOG_WARN, "waiting", "for=%s wait_ms=%d reason=%s", why.stage[0] != '\0' ? why.stage : "-", r->wait_ms,
                    why.reason);
        nap();
    }
}

/* --- back to the last manifest -------------------------------------------------------------------------------------------------------- */

struct sending {
    const struct tpo_recovery *recovery;
    const struct tpo_checkpoint *checkpoint;
    bool known[TPO_PARTS][TPO_REPLICAS_MAX]; /* it holds some state of this stage: frozen tensors are right */
};

static int send_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct sending *s = arg;
    const struct tpo_recovery *r = s->recovery;
    struct tpo_learner *l = &t->replicas[part][replica].learner;
    const bool start = !s->known[part][replica] || (s->checkpoint->step == 0 && t->trainable[part] > 0);
    int rc = start && !r->same_memory ? tpo_start_send(r->stream, r->models[part]->params, l, err) : TPO_OK;
    return rc == TPO_OK ? tpo_checkpoint_send(s->checkpoint, part, l, err) : rc;
}

static int all_send(const struct tpo_recovery *r, struct tpo_checkpoint *c, struct tpo_error *err)
{
    struct tpo_crew *t = r->crew;
    struct sending s = {.recovery = r, .checkpoint = c};
    for (int p = 0; p < TPO_PARTS; p++)
        for (int i = 0; i < t->options.n_replicas[p]; i++) s.known[p][i] = tpo_held_knows(r->held, t, p, i, false);
    int rc = tpo_checkpoint_find(r->stage_dir, c, err);
    /* Who is interrupted in here must not be believed later. */
    if (rc == TPO_OK) rc = tpo_held_note(r->held, t, false, err);
    if (rc == TPO_OK) rc = tpo_crew_each(t, send_one, &s, err);
    if (rc != TPO_OK) return rc;
    t->version = c->version;
    t->aborted = c->aborted;
    tpo_log(TPO_LOG_INFO, "restored", "step=%d version=%llu from=%s", c->step, (unsigned long long)c->version,
            c->step > 0 ? "checkpoint" : "start");
    return tpo_held_note(r->held, t, true, err);
}

/* --- on from where all are ------------------------------------------------------------------------------------------------------------ */

static int commit_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    const uint64_t *step = arg;
    struct tpo_replica *x = &t->replicas[part][replica];
    struct tpo_key key = {.step = *step, .version = x->begun.version};
    if (x->begun.committed_step == *step) return TPO_OK;
    memcpy(key.run, t->run, sizeof(key.run));
    int rc = x->learner.commit(x->learner.self, &key, err);
    if (rc != TPO_OK) return rc;
    x->begun.version++;
    x->begun.committed_step = *step;
    x->begun.prepared_step = 0;
    return TPO_OK;
}

/* What all can agree on without a manifest: *step is what is committed anywhere. False: somebody lacks it. */
static bool agree(const struct tpo_crew *t, uint64_t *step)
{
    int64_t version = -1;
    *step = 0;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int i = 0; i < t->options.n_replicas[p]; i++) {
            const struct tpo_begun *b = &t->replicas[p][i].begun;
            if (b->committed_step > *step) *step = b->committed_step;
        }
    for (int p = 0; p < TPO_PARTS; p++)
        for (int i = 0; i < t->options.n_replicas[p]; i++) {
            const struct tpo_begun *b = &t->replicas[p][i].begun;
            const int64_t after = (int64_t)b->version + (b->committed_step != *step);
            if (b->committed_step != *step && b->prepared_step != *step) return false;
            if (version < 0) version = after;
            if (after != version) return false;
        }
    /* A version that no step explains was imported; whether that was finished, nobody knows. */
    return *step > 0 || version <= 0;
}

static bool all_known(const struct tpo_recovery *r, bool of_any_run)
{
    for (int p = 0; p < TPO_PARTS; p++)
        for (int i = 0; i < r->crew->options.n_replicas[p]; i++)
            if (!tpo_held_knows(r->held, r->crew, p, i, of_any_run)) return false;
    return true;
}

static int go_on(const struct tpo_recovery *r, uint64_t step, struct tpo_checkpoint *c, struct tpo_error *err)
{
    struct tpo_crew *t = r->crew;
    int rc = step > 0 ? tpo_crew_each(t, commit_one, &step, err) : TPO_OK;
    if (rc == TPO_OK) rc = tpo_crew_abort(t, err);
    if (rc != TPO_OK) return rc;
    c->step = (int)step;
    c->version = t->version = t->replicas[0][0].begun.version;
    c->aborted = t->aborted = step - t->version;
    tpo_log(TPO_LOG_INFO, "agreed", "step=%d version=%llu", c->step, (unsigned long long)c->version);
    return TPO_OK;
}

/* What was begun and cannot go on keeps nobody out; what it held is not this run's any more. Where that cannot be written down, the next Begin shows
 * that no step is left, and frozen tensors are what they were unless another trainer came, which its lease shows. */
static void release(const struct tpo_recovery *r)
{
    if (r->same_memory) return;
    (void)tpo_held_note(r->held, r->crew, false, NULL);
    tpo_crew_end(r->crew, NULL);
}

/* Before any service is asked: one that begins another run forgets what it holds of this one. */
static int folder_check(const struct tpo_recovery *r, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    const int rc = tpo_identity_kept(r->stage_dir, &c->of, false, err);
    return rc == TPO_OK ? tpo_checkpoint_check(r->stage_dir, c, err) : rc;
}

int tpo_recovery_run(const struct tpo_recovery *r, bool fresh, struct tpo_checkpoint *c, struct tpo_error *err)
{
    const double until_s = tpo_now_s() + r->wait_ms / 1000.0;
    const int ours = folder_check(r, c, err);
    while (ours == TPO_OK) {
        struct tpo_error why = {0};
        uint64_t step = 0;
        int rc = all_begin(r, c, &why);
        if (rc == TPO_OK && fresh && all_known(r, true)) rc = tpo_held_note(r->held, r->crew, true, &why);
        const bool agreed = rc == TPO_OK && all_known(r, false) && agree(r->crew, &step);
        /* Nobody has committed a step: as the stage began, or after a Begin with other shares, which a trainer that died could not write down. */
        if (rc == TPO_OK) rc = agreed && (step > 0 || fresh) ? go_on(r, step, c, &why) : all_send(r, c, &why);
        if (rc == TPO_OK) {
            r->crew->torn = false;
            return TPO_OK;
        }
        if (!tpo_recovery_helps(&why)) release(r);
        if (!tpo_recovery_helps(&why) || tpo_now_s() >= until_s) {
            if (err != NULL) *err = why;
            return rc;
        }
        fresh = false;
        nap(); /* what fails at once must not be asked, and written down, without a pause */
    }
    return ours;
}
