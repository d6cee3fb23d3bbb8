/* This file owns the compute thread: it opens the model, runs jobs, steps what is in flight, closes the model. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/host/host_private.h"
#include "services/host/learner_rpc.h"

static int open_model(struct tpo_host *h)
{
    const struct tpo_host_service *s = h->service;
    struct tpo_error err = {0};
    char quoted[300];
    int64_t begun_us = tpo_now_us();
    int rc = s->open(s->self, h, &err);
    const int64_t opened_us = tpo_now_us();
    if (rc == TPO_OK && h->settings.train) rc = tpo_learner_rpc_open(&h->learner, h, &err);
    if (rc == TPO_OK && s->warm_up != NULL) rc = s->warm_up(s->self, &err);
    if (rc != TPO_OK) {
        tpo_log(TPO_LOG_ERROR, "open_failed", "code=%s reason=%s text=%s", tpo_status_name(rc), err.reason,
                tpo_log_quote(quoted, sizeof(quoted), err.message));
        return rc;
    }
    tpo_log(TPO_LOG_INFO, "ready", "ms=%lld open_ms=%lld digest=%.19s", (long long)(tpo_now_us() - begun_us) / 1000,
            (long long)(opened_us - begun_us) / 1000, h->digest);
    return TPO_OK;
}

/* The job's own answer: TPO_UNAVAILABLE leaves it with us. */
static int run_job(struct tpo_host *h, struct tpo_job *job)
{
    struct tpo_error err;
    if (job->call != NULL && tpo_call_cancelled(job->call)) {
        tpo_fail(&err, TPO_CANCELLED, "cancelled", "the caller went away before its turn came");
        tpo_job_finish(job, &err);
        return TPO_OK;
    }
    job->run_us = tpo_now_us();
    job->queue_ms = (double)(job->run_us - job->queued_us) * 1e-3;
    return job->run(h->service->self, job);
}

/* --- what comes next ------------------------------------------------------------------------------------------------------------------------ */

static bool is_of_learner(const void *job)
{
    return ((const struct tpo_job *)job)->reserved;
}

static bool is_of_serving(const void *job)
{
    return !is_of_learner(job);
}

/* What is in flight is owed time that a learner's job took. */
static bool owes(const struct tpo_host *h)
{
    return h->in_flight > 0 && tpo_now_us() < h->owed_until_us;
}

/* A trainer always has a next job here, until the last of a step, and each may take seconds: after one, what is in flight moves on for as long as
 * that took. So each has half of a process that trains and serves, and neither stands still. */
static void run_learner(struct tpo_host *h, struct tpo_job *job)
{
    const int64_t begun_us = tpo_now_us();
    run_job(h, job);
    const int64_t ended_us = tpo_now_us();
    h->owed_until_us = ended_us + (ended_us - begun_us);
}

/* A job that must wait goes back to the front; those of a learner need none of the room that it waits for. */
static void wait_with(struct tpo_host *h, struct tpo_job *job)
{
    tpo_queue_put_back(h->queue, job);
    struct tpo_job *other = owes(h) ? NULL : tpo_queue_take_kind(h->queue, is_of_learner);
    if (other != NULL) run_learner(h, other);
}

static struct tpo_job *take(struct tpo_host *h, int timeout_ms)
{
    return owes(h) ? tpo_queue_take_kind(h->queue, is_of_serving) : tpo_queue_take(h->queue, timeout_ms);
}

/* Takes what can be taken, up to one of a learner. With nothing in flight waiting would last for ever: a job that must is refused. */
static void run_jobs(struct tpo_host *h, int timeout_ms)
{
    struct tpo_error err;
    for (struct tpo_job *job = take(h, timeout_ms); job != NULL; job = take(h, 0)) {
        if (is_of_learner(job)) {
            run_learner(h, job);
            return;
        }
        if (run_job(h, job) == TPO_OK) {
            if (h->service->step == NULL) return; /* one at a time, so that the loop sees a drain soon */
            h->in_flight++;
            continue;
        }
        if (h->in_flight > 0) {
            wait_with(h, job);
            return;
        }
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "pool_full", "the request does not fit even when it is alone");
        tpo_job_finish(job, &err);
    }
}

void *tpo_host_compute(void *host)
{
    struct tpo_host *h = host;
    const struct tpo_host_service *s = h->service;
    if (open_model(h) == TPO_OK) {
        int loading = TPO_HOST_LOADING;
        if (atomic_compare_exchange_strong(&h->state, &loading, TPO_HOST_READY)) tpo_server_serving(h->server, true);
        while (h->state == TPO_HOST_READY || tpo_queue_length(h->queue) > 0 || h->in_flight > 0) {
            run_jobs(h, h->in_flight > 0 ? 0 : -1);
            if (s->step != NULL) h->in_flight = s->step(s->self);
        }
    } else {
        h->state = TPO_HOST_FAILED;
        kill(getpid(), SIGTERM); /* main waits for signals only */
    }
    tpo_learner_rpc_close(h->learner);
    s->close(s->self);
    return NULL;
}
