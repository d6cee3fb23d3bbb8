/* clock.h -- the one clock that durations and deadlines are measured by: monotonic, from a moment that means nothing.
 *
 * Any thread. What a person reads as a date (a log line, the name of a file) is CLOCK_REALTIME's; a libuv loop's timers go by uv_now. */
#ifndef TPO_COMMON_CLOCK_H
#define TPO_COMMON_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline int64_t tpo_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static inline double tpo_now_ms(void)
{
    return (double)tpo_now_us() * 1e-3;
}

static inline double tpo_now_s(void)
{
    return (double)tpo_now_us() * 1e-6;
}

/* A condition whose timed waits go by this clock; one of pthread_cond_init goes by the date, which may be set back. */
static inline void tpo_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(c, &clock);
    pthread_condattr_destroy(&clock);
}

/* The moment when tpo_now_us() is `at_us`, as pthread_cond_timedwait takes it for such a condition. */
static inline struct timespec tpo_cond_until(int64_t at_us)
{
    return (struct timespec){.tv_sec = at_us / 1000000, .tv_nsec = at_us % 1000000 * 1000};
}

#endif
