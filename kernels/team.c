/* This file owns the team: its threads, and how parts are handed to them. */
#include "kernels/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS 1000 /* pauses before a futex: some forty microseconds on a Zen 4 */

/* One word says which job it is, how many parts it has and which comes next, so that a member who wakes late can never take a part
 * of a newer job by an older count: its exchange fails. A taken part keeps its job alive, hence fn and arg may be read after it. */
#define STATE(job, parts, next) ((uint64_t)(job) << 40 | (uint64_t)(parts) << 20 | (uint64_t)(next))
#define STATE_JOB(s)            ((s) >> 40)
#define STATE_PARTS(s)          ((int)((s) >> 20 & 0xfffff))
#define STATE_NEXT(s)           ((int)((s)&0xfffff))

struct member {
    struct tpo_team *team;
    pthread_t thread;
    int index;
};

struct tpo_team {
    _Atomic uint64_t state;
    _Atomic uint32_t posted; /* changes with every job: what sleeping members wait on */
    _Atomic int sleepers;
    _Atomic uint32_t done; /* parts that have ended: what a sleeping caller waits on */
    _Atomic int caller_sleeps;
    _Atomic int closing;
    tpo_part_fn *_Atomic fn;
    void *_Atomic arg;
    int size, n_started;
    struct member members[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Runs parts until none is left. */
static void take_parts(struct tpo_team *t, int member)
{
    uint64_t state = atomic_load_explicit(&t->state, memory_order_acquire);
    while (STATE_NEXT(state) < STATE_PARTS(state)) {
        if (!atomic_compare_exchange_weak_explicit(&t->state, &state, state + 1, memory_order_acq_rel, memory_order_acquire))
            continue;
        tpo_part_fn *fn = atomic_load_explicit(&t->fn, memory_order_relaxed);
        fn(atomic_load_explicit(&t->arg, memory_order_relaxed), STATE_NEXT(state), member);
        uint32_t done = atomic_fetch_add(&t->done, 1) + 1;
        if (done == (uint32_t)STATE_PARTS(state) && atomic_load(&t->caller_sleeps)) futex_wake(&t->done);
        state = atomic_load_explicit(&t->state, memory_order_acquire);
    }
}

static void *run_member(void *arg)
{
    struct member *m = arg;
    struct tpo_team *t = m->team;
    uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; atomic_load_explicit(&t->posted, memory_order_acquire) == seen; spin++) {
            if (spin < SPINS) {
                pause_briefly();
                continue;
            }
            atomic_fetch_add(&t->sleepers, 1);
            futex_wait(&t->posted, seen);
            atomic_fetch_sub(&t->sleepers, 1);
        }
        seen = atomic_load_explicit(&t->posted, memory_order_acquire);
        if (atomic_load(&t->closing)) return NULL;
        take_parts(t, m->index);
    }
}

static void wake_members(struct tpo_team *t)
{
    atomic_fetch_add(&t->posted, 1);
    if (atomic_load(&t->sleepers) > 0) futex_wake(&t->posted);
}

void tpo_team_run(struct tpo_team *t, tpo_part_fn *fn, void *arg, int n_parts)
{
    if (t->size == 1 || n_parts <= 1) {
        for (int part = 0; part < n_parts; part++) fn(arg, part, 0);
        return;
    }
    TPO_ASSERT(n_parts <= TPO_TEAM_PARTS);
    atomic_store_explicit(&t->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&t->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    uint64_t job = STATE_JOB(atomic_load_explicit(&t->state, memory_order_relaxed)) + 1;
    atomic_store_explicit(&t->state, STATE(job, n_parts, 0), memory_order_release);
    wake_members(t);
    take_parts(t, 0);

    uint32_t done;
    for (int spin = 0; (done = atomic_load(&t->done)) != (uint32_t)n_parts; spin++) {
        if (spin < SPINS) {
            pause_briefly();
            continue;
        }
        atomic_store(&t->caller_sleeps, 1);
        done = atomic_load(&t->done);
        if (done != (uint32_t)n_parts) futex_wait(&t->done, done);
        atomic_store(&t->caller_sleeps, 0);
    }
}

int tpo_team_open(struct tpo_team **out, int size, struct tpo_error *err)
{
    if (size < 1 || size > TPO_TEAM_MAX)
        return tpo_fail(err, TPO_EINVAL, "bad_thread_count", "%d threads, 1 to %d allowed", size, TPO_TEAM_MAX);
    struct tpo_team *t = calloc(1, sizeof(*t) + (size_t)size * sizeof(t->members[0]));
    if (t == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a team of threads");
    t->size = size;
    for (t->n_started = 1; t->n_started < size; t->n_started++) {
        struct member *m = &t->members[t->n_started];
        *m = (struct member){.team = t, .index = t->n_started};
        if (pthread_create(&m->thread, NULL, run_member, m) != 0) {
            tpo_team_close(t);
            return tpo_fail(err, TPO_ENOMEM, "no_thread", "the system refuses thread %d of %d", m->index + 1, size);
        }
    }
    *out = t;
    return TPO_OK;
}

void tpo_team_close(struct tpo_team *t)
{
    if (t == NULL) return;
    atomic_store(&t->closing, 1);
    atomic_fetch_add(&t->posted, 1);
    futex_wake(&t->posted);
    for (int i = 1; i < t->n_started; i++) pthread_join(t->members[i].thread, NULL);
    free(t);
}

int tpo_team_size(const struct tpo_team *t)
{
    return t->size;
}
