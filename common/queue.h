/* queue.h -- a bounded queue of pointers between threads. Full is an answer, not a wait: whoever puts is told at once. */
#ifndef TPO_COMMON_QUEUE_H
#define TPO_COMMON_QUEUE_H

#include <stdbool.h>

#include "common/status.h"

struct tpo_queue; /* any number of threads put and take */

int tpo_queue_open(struct tpo_queue **out, int capacity);
void tpo_queue_close(struct tpo_queue *q); /* accepts NULL; nobody may be inside; what is left is the caller's to have taken */

/* TPO_RESOURCE_EXHAUSTED: full. TPO_UNAVAILABLE: ended. */
int tpo_queue_put(struct tpo_queue *q, void *item);
/* The same, full as soon as `most` wait: the rest of the capacity is others'. */
int tpo_queue_put_below(struct tpo_queue *q, void *item, int most);
/* Back to the front, where it was taken from; never refused for capacity. */
void tpo_queue_put_back(struct tpo_queue *q, void *item);
/* The oldest item; waits up to timeout_ms (0: not at all, -1: for ever). NULL: none came, or the queue has ended and is empty. */
void *tpo_queue_take(struct tpo_queue *q, int timeout_ms);
/* The oldest item of a kind, past all that are not; waits for none. */
void *tpo_queue_take_kind(struct tpo_queue *q, bool (*is)(const void *item));
void tpo_queue_end(struct tpo_queue *q); /* no more puts; takers get what is left, then NULL */
int tpo_queue_length(struct tpo_queue *q);

#endif
