/* This file owns the queue of requests that wait for their turn. */
#include "gateway/admission.h"

#include <stdlib.h>

enum { NONE, WAITING, RUNNING };

struct tpo_admission {
    int running, running_max, waiting, waiting_max;
    struct tpo_ticket *first, *last;
};

int tpo_admission_open(struct tpo_admission **out, int running_max, int waiting_max, struct tpo_error *err)
{
    struct tpo_admission *a = calloc(1, sizeof(*a));
    if (a == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    a->running_max = running_max;
    a->waiting_max = waiting_max;
    *out = a;
    return TPO_OK;
}

void tpo_admission_close(struct tpo_admission *a)
{
    free(a);
}

int tpo_admission_enter(struct tpo_admission *a, struct tpo_ticket *t, struct tpo_error *err)
{
    if (a->running < a->running_max) {
        a->running++;
        t->state = RUNNING;
        return 1;
    }
    if (a->waiting >= a->waiting_max) {
        tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "queue_full", "%d requests run and %d wait", a->running, a->waiting);
        if (err != NULL) err->retry_ms = 1000;
        return -1;
    }
    t->next = NULL;
    t->prev = a->last;
    *(a->last != NULL ? &a->last->next : &a->first) = t;
    a->last = t;
    a->waiting++;
    t->state = WAITING;
    return 0;
}

static void take_out(struct tpo_admission *a, struct tpo_ticket *t)
{
    *(t->prev != NULL ? &t->prev->next : &a->first) = t->next;
    *(t->next != NULL ? &t->next->prev : &a->last) = t->prev;
    a->waiting--;
}

void tpo_admission_leave(struct tpo_admission *a, struct tpo_ticket *t)
{
    int was = t->state;
    t->state = NONE;
    if (was == WAITING) take_out(a, t);
    if (was != RUNNING) return;
    a->running--;
    struct tpo_ticket *next = a->first;
    if (next == NULL || a->running >= a->running_max) return;
    take_out(a, next);
    a->running++;
    next->state = RUNNING;
    next->on_turn(next->owner);
}

int tpo_admission_running(const struct tpo_admission *a)
{
    return a->running;
}

int tpo_admission_waiting(const struct tpo_admission *a)
{
    return a->waiting;
}
