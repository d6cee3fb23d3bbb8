/* admission.h -- who may start now: at most so many run, at most so many wait, one more is refused at once.
 *
 * Waiting is first come, first served. One thread. */
#ifndef TPO_GATEWAY_ADMISSION_H
#define TPO_GATEWAY_ADMISSION_H

#include "common/status.h"

struct tpo_admission;

/* Lives inside whoever asks. */
struct tpo_ticket {
    struct tpo_ticket *next, *prev;
    void (*on_turn)(void *owner); /* when a place came free */
    void *owner;
    int state; /* 0: none, 1: waiting, 2: running */
};

int tpo_admission_open(struct tpo_admission **out, int running_max, int waiting_max, struct tpo_error *err);
void tpo_admission_close(struct tpo_admission *a);
/* 1: go ahead now (on_turn isn't called); 0: on_turn will come; -1: RESOURCE_EXHAUSTED "queue_full" in *err, with retry_ms. */
int tpo_admission_enter(struct tpo_admission *a, struct tpo_ticket *t, struct tpo_error *err);
/* Gives the place back, or stops waiting; the next one's on_turn is called from within. Harmless when repeated. */
void tpo_admission_leave(struct tpo_admission *a, struct tpo_ticket *t);
int tpo_admission_running(const struct tpo_admission *a);
int tpo_admission_waiting(const struct tpo_admission *a);

#endif
