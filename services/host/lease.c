/* This file owns the lease of a learner. */
#include "services/host/lease.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "services/host/host_private.h"

#define LEASE_MS_LEAST 100
#define LEASE_MS_MOST  3600000

struct tpo_lease {
    struct tpo_host *host;
    void (*on_over)(void *owner);
    void *owner;

    char holder[64];
    uint64_t number;    /* the last one given, or where they start */
    uint64_t own_since; /* the first one of those that its holder had in a row */
    int64_t lease_us, ends_us;

    /* The watch asks the compute thread to look at the lease when its time is over. */
    pthread_t watch;
    bool watched, closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    _Atomic int64_t watch_us;
    _Atomic bool asked;
    struct tpo_job look;
};

bool tpo_lease_ran(const struct tpo_lease *l, int64_t at_us)
{
    return at_us < l->ends_us;
}

const char *tpo_lease_holder(const struct tpo_lease *l)
{
    return l->holder;
}

static void lease_start(struct tpo_lease *l)
{
    l->ends_us = tpo_now_us() + l->lease_us;
    l->watch_us = l->ends_us;
}

void tpo_lease_renew(struct tpo_lease *l)
{
    if (l->ends_us == 0) return;
    lease_start(l);
}

int tpo_lease_allow(const struct tpo_lease *l, const char *holder, uint32_t ms, int64_t came_us, const char *stage,
                    struct tpo_error *err)
{
    if (holder[0] == '\0' || strlen(holder) >= sizeof(l->holder) || ms < LEASE_MS_LEAST || ms > LEASE_MS_MOST)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "lease", "a holder of 1..%zu letters and a lease of %d..%d ms are needed",
                        sizeof(l->holder) - 1, LEASE_MS_LEAST, LEASE_MS_MOST);
    if (tpo_lease_ran(l, came_us) && strcmp(l->holder, holder) != 0) {
        const int64_t left_us = l->ends_us - tpo_now_us();
        tpo_fail(err, TPO_FAILED_PRECONDITION, "leased", "another trainer holds %s", stage);
        err->retry_ms = left_us > 0 ? (int)(left_us / 1000) + 1 : 1;
        return TPO_FAILED_PRECONDITION;
    }
    return TPO_OK;
}

uint64_t tpo_lease_take(struct tpo_lease *l, const char *holder, uint32_t ms)
{
    l->number++;
    if (strcmp(l->holder, holder) != 0) l->own_since = l->number;
    snprintf(l->holder, sizeof(l->holder), "%s", holder);
    l->lease_us = (int64_t)ms * 1000;
    lease_start(l);
    return l->number;
}

uint64_t tpo_lease_own_since(const struct tpo_lease *l)
{
    return l->own_since;
}

int tpo_lease_check(const struct tpo_lease *l, uint64_t number, int64_t came_us, struct tpo_error *err)
{
    if (number == l->number && tpo_lease_ran(l, came_us)) return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "lease", "lease %llu has ended: Begin again", (unsigned long long)number);
}

void tpo_lease_end(struct tpo_lease *l)
{
    l->ends_us = 0;
    l->watch_us = 0;
}

/* --- the watch ------------------------------------------------------------------------------------------------------------------------------ */

/* Compute thread. A call may have renewed the lease between the watch's look at the clock and this. A lease that is found over is over for all
 * that come after: a call may have been stamped before this and queued behind it. */
static int on_look(void *self, struct tpo_job *job)
{
    struct tpo_lease *l = job->user;
    (void)self;
    l->asked = false;
    if (tpo_lease_ran(l, tpo_now_us())) {
        l->watch_us = l->ends_us;
    } else if (l->ends_us != 0) {
        tpo_lease_end(l);
        l->on_over(l->owner);
    }
    return TPO_OK;
}

static void *watch(void *arg)
{
    struct tpo_lease *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->closing) {
        const int64_t left_us = l->watch_us - tpo_now_us();
        const int64_t wait_us = left_us > 0 && left_us < 1000000 ? left_us : 1000000;
        const struct timespec until = tpo_cond_until(tpo_now_us() + wait_us);
        pthread_cond_timedwait(&l->changed, &l->lock, &until);
        if (l->closing || l->watch_us == 0 || tpo_now_us() < l->watch_us || l->asked) continue;
        l->asked = true;
        l->watch_us = 0;
        l->look = (struct tpo_job){.run = on_look, .user = l, .reserved = true};
        if (tpo_host_submit(l->host, &l->look, NULL) != TPO_OK) {
            l->asked = false;
            l->watch_us = tpo_now_us() + 100000; /* the queue was full */
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* --- open and close ------------------------------------------------------------------------------------------------------------------------- */

int tpo_lease_open(struct tpo_lease **out, struct tpo_host *h, void (*on_over)(void *owner), void *owner, struct tpo_error *err)
{
    struct tpo_lease *l = calloc(1, sizeof(*l));
    *out = NULL;
    if (l == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the lease");
    l->host = h;
    l->on_over = on_over;
    l->owner = owner;
    struct timespec now; /* microseconds: no number of an earlier process is given again */
    clock_gettime(CLOCK_REALTIME, &now);
    l->number = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    pthread_mutex_init(&l->lock, NULL);
    tpo_cond_init(&l->changed);
    l->watched = pthread_create(&l->watch, NULL, watch, l) == 0;
    if (l->watched) {
        *out = l;
        return TPO_OK;
    }
    tpo_lease_close(l);
    return tpo_fail(err, TPO_ENOMEM, "thread", "no thread for the lease");
}

void tpo_lease_close(struct tpo_lease *l)
{
    if (l == NULL) return;
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (l->watched) pthread_join(l->watch, NULL);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    free(l);
}
