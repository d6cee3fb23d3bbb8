/* This file owns the completion queue's thread and the hand-over of its events. */
#include "common/rpc/loop.h"

#include <errno.h>
#include <grpc/support/time.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/clock.h"

#define TICK_US 100000

struct tpo_loop {
    grpc_completion_queue *queue;
    pthread_t thread;
    bool running, alone;
    bool direct;          /* no thread: the owner takes events from the queue itself */
    int64_t next_tick_us; /* direct only */
    _Atomic unsigned given;
    void (*wake)(void *arg);
    void *arg;
    grpc_channel *wake_channel; /* alone and direct; never connects */
    grpc_call *wake_call;
    struct tpo_tag wake_tag;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct tpo_tag *first, *last; /* under lock: what has come and was not taken */
    bool tick_posted;             /* under lock */

    /* The owning thread's. */
    struct tpo_tag *ready; /* taken, not yet run: a poll within a callback goes on with it */

    pthread_mutex_t tick_lock; /* recursive, held while ticks run: whoever removes one knows that it is not running */
    struct tpo_tag **ticks, tick_tag;
    int n_ticks;
};

void tpo_loop_give(struct tpo_loop *l)
{
    atomic_fetch_add_explicit(&l->given, 1, memory_order_release);
}

grpc_completion_queue *tpo_loop_queue(struct tpo_loop *l)
{
    return l->queue;
}

/* Under lock. True when the list was empty: only then does anybody need waking. */
static bool append(struct tpo_loop *l, struct tpo_tag *tag)
{
    bool was_empty = l->first == NULL;
    tag->next = NULL;
    if (was_empty)
        l->first = tag;
    else
        l->last->next = tag;
    l->last = tag;
    return was_empty;
}

static void push(struct tpo_loop *l, struct tpo_tag *tag, int ok)
{
    pthread_mutex_lock(&l->lock);
    tag->ok = ok;
    bool wake = append(l, tag);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (!wake) return;
    if (l->wake != NULL) {
        l->wake(l->arg);
    } else if (l->direct || !pthread_equal(pthread_self(), l->thread)) {
        /* The owner drains the list after every event, so its own posts need no batch. */
        tpo_loop_give(l);
        grpc_call_start_batch(l->wake_call, NULL, 0, &l->wake_tag, NULL);
    }
}

void tpo_loop_post(struct tpo_loop *l, struct tpo_tag *tag)
{
    push(l, tag, 1);
}

static int run_ready(struct tpo_loop *l)
{
    int n = 0;
    pthread_mutex_lock(&l->lock);
    struct tpo_tag *taken = l->first;
    l->first = l->last = NULL;
    pthread_mutex_unlock(&l->lock);
    struct tpo_tag **end = &l->ready;
    while (*end != NULL) end = &(*end)->next;
    *end = taken;
    for (; l->ready != NULL; n++) {
        struct tpo_tag *tag = l->ready;
        l->ready = tag->next;
        tag->on_event(tag->owner, tag->ok);
    }
    return n;
}

static void run_ticks(struct tpo_loop *l)
{
    int kept = 0;
    pthread_mutex_lock(&l->tick_lock);
    for (int i = 0; i < l->n_ticks; i++)
        if (l->ticks[i] != NULL) l->ticks[i]->on_event(l->ticks[i]->owner, 1);
    for (int i = 0; i < l->n_ticks; i++)
        if (l->ticks[i] != NULL) l->ticks[kept++] = l->ticks[i];
    l->n_ticks = kept;
    pthread_mutex_unlock(&l->tick_lock);
}

static void on_tick(void *owner, int ok)
{
    struct tpo_loop *l = owner;
    (void)ok;
    pthread_mutex_lock(&l->lock);
    l->tick_posted = false;
    pthread_mutex_unlock(&l->lock);
    run_ticks(l);
}

static void on_wake(void *owner, int ok)
{
    (void)owner, (void)ok; /* what it announces is drained after every event */
}

static void tick(struct tpo_loop *l)
{
    if (l->alone) {
        run_ticks(l);
        return;
    }
    pthread_mutex_lock(&l->lock);
    bool post = !l->tick_posted;
    l->tick_posted = true;
    pthread_mutex_unlock(&l->lock);
    if (post) push(l, &l->tick_tag, 1);
}

static void *loop_thread(void *arg)
{
    struct tpo_loop *l = arg;
    int64_t next_tick = tpo_now_us() + TICK_US;
    for (;;) {
        gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_micros(TICK_US, GPR_TIMESPAN));
        grpc_event e = grpc_completion_queue_next(l->queue, until, NULL);
        atomic_load_explicit(&l->given, memory_order_acquire);
        if (e.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        if (e.type == GRPC_OP_COMPLETE) {
            struct tpo_tag *tag = e.tag;
            if (l->alone)
                tag->on_event(tag->owner, e.success);
            else
                push(l, tag, e.success);
        }
        int64_t now = tpo_now_us();
        if (now >= next_tick) {
            next_tick = now + TICK_US;
            tick(l);
        }
        if (l->alone)
            while (run_ready(l) > 0) continue;
    }
}

static int open_wake_call(struct tpo_loop *l)
{
    l->wake_channel = grpc_lame_client_channel_create("wake", GRPC_STATUS_UNAVAILABLE, "never used");
    if (l->wake_channel == NULL) return TPO_ENOMEM;
    l->wake_call = grpc_channel_create_call(l->wake_channel, NULL, 0, l->queue, grpc_slice_from_static_string("/wake"), NULL,
                                            gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    return l->wake_call != NULL ? TPO_OK : TPO_ENOMEM;
}

/* Once it has found no descriptor left, a listener of gRPC 1.51 accepts nothing any more: we take all that the system lets us have. */
static void raise_files(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= files.rlim_max) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static int open_loop(struct tpo_loop **out, bool alone, void (*wake)(void *arg), void *arg, struct tpo_error *err)
{
    struct tpo_loop *l = calloc(1, sizeof(*l));
    if (l == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    /* Messages of megabytes come and go: without this each one costs thousands of page faults. 32 MiB is the most glibc takes. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    raise_files();
    grpc_init();
    l->alone = alone;
    l->wake = wake;
    l->arg = arg;
    l->direct = !alone && wake == NULL;
    l->next_tick_us = tpo_now_us() + TICK_US;
    l->wake_tag = (struct tpo_tag){.on_event = on_wake, .owner = l};
    l->tick_tag = (struct tpo_tag){.on_event = on_tick, .owner = l};
    pthread_mutex_init(&l->lock, NULL);
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&l->tick_lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    tpo_cond_init(&l->changed);
    l->queue = grpc_completion_queue_create_for_next(NULL);
    bool ok = l->queue != NULL && (wake != NULL || open_wake_call(l) == TPO_OK);
    if (ok && !l->direct) l->running = ok = pthread_create(&l->thread, NULL, loop_thread, l) == 0;
    if (!ok) {
        tpo_loop_close(l);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no completion queue or thread");
    }
    *out = l;
    return TPO_OK;
}

int tpo_loop_open(struct tpo_loop **out, void (*wake)(void *arg), void *arg, struct tpo_error *err)
{
    return open_loop(out, false, wake, arg, err);
}

int tpo_loop_open_alone(struct tpo_loop **out, struct tpo_error *err)
{
    return open_loop(out, true, NULL, NULL, err);
}

void tpo_loop_close(struct tpo_loop *l)
{
    if (l == NULL) return;
    if (l->wake_call != NULL) grpc_call_unref(l->wake_call);
    if (l->wake_channel != NULL) grpc_channel_destroy(l->wake_channel);
    if (l->queue != NULL) {
        grpc_completion_queue_shutdown(l->queue);
        if (l->running)
            pthread_join(l->thread, NULL);
        else
            while (grpc_completion_queue_next(l->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type != GRPC_QUEUE_SHUTDOWN)
                continue;
        run_ready(l);
        grpc_completion_queue_destroy(l->queue);
    }
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    pthread_mutex_destroy(&l->tick_lock);
    free(l->ticks);
    free(l);
    grpc_shutdown();
}

/* Waits for the first event only; then runs what has come, up to a bound, so that the caller gets a turn. */
static void wait_direct(struct tpo_loop *l, int timeout_ms)
{
    int64_t now = tpo_now_us(), end = run_ready(l) > 0 ? now : now + (int64_t)timeout_ms * 1000;
    for (int n = 0; n < 256;) {
        const int64_t until = end < l->next_tick_us ? end : l->next_tick_us;
        gpr_timespec at = gpr_inf_past(GPR_CLOCK_MONOTONIC); /* looks and returns, where gRPC sleeps a millisecond for "now" */
        if (until > now) at = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_micros(until - now, GPR_TIMESPAN));
        grpc_event e = grpc_completion_queue_next(l->queue, at, NULL);
        if (e.type == GRPC_OP_COMPLETE) {
            struct tpo_tag *tag = e.tag;
            tag->on_event(tag->owner, e.success);
            run_ready(l);
            end = 0;
            n++;
        }
        now = tpo_now_us();
        if (now >= l->next_tick_us) {
            l->next_tick_us = now + TICK_US;
            run_ticks(l);
        }
        if (e.type != GRPC_OP_COMPLETE && now >= end) return;
    }
}

void tpo_loop_poll(struct tpo_loop *l)
{
    if (l->direct)
        wait_direct(l, 0);
    else
        run_ready(l);
}

void tpo_loop_wait(struct tpo_loop *l, int timeout_ms)
{
    if (l->direct) {
        wait_direct(l, timeout_ms);
        return;
    }
    struct timespec until = tpo_cond_until(tpo_now_us() + (int64_t)timeout_ms * 1000);
    pthread_mutex_lock(&l->lock);
    while (l->first == NULL && l->ready == NULL)
        if (pthread_cond_timedwait(&l->changed, &l->lock, &until) == ETIMEDOUT) break;
    pthread_mutex_unlock(&l->lock);
    run_ready(l);
}

void tpo_loop_notify(struct tpo_loop *l)
{
    pthread_mutex_lock(&l->lock);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

bool tpo_loop_wait_zero(struct tpo_loop *l, _Atomic int *condition, int64_t timeout_ms)
{
    int64_t end = timeout_ms < 0 ? INT64_MAX : tpo_now_us() + timeout_ms * 1000;
    while (*condition != 0 && tpo_now_us() < end) {
        if (!l->alone) {
            tpo_loop_wait(l, 20);
            continue;
        }
        struct timespec until = tpo_cond_until(tpo_now_us() + 20000);
        pthread_mutex_lock(&l->lock);
        if (*condition != 0) pthread_cond_timedwait(&l->changed, &l->lock, &until);
        pthread_mutex_unlock(&l->lock);
    }
    return *condition == 0;
}

void tpo_loop_tick_add(struct tpo_loop *l, struct tpo_tag *tag)
{
    pthread_mutex_lock(&l->tick_lock);
    struct tpo_tag **grown = realloc(l->ticks, (size_t)(l->n_ticks + 1) * sizeof(*grown));
    TPO_ASSERT(grown != NULL);
    l->ticks = grown;
    l->ticks[l->n_ticks++] = tag;
    pthread_mutex_unlock(&l->tick_lock);
}

void tpo_loop_tick_remove(struct tpo_loop *l, struct tpo_tag *tag)
{
    pthread_mutex_lock(&l->tick_lock);
    /* Ticks may be running on this very thread: the slot is emptied now and closed after them. */
    for (int i = 0; i < l->n_ticks; i++)
        if (l->ticks[i] == tag) l->ticks[i] = NULL;
    pthread_mutex_unlock(&l->tick_lock);
}
