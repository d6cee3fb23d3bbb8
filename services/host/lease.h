/* lease.h -- who holds this process's learner, by which number, and until when.
 *
 * learner_rpc.h draws the states. A call is judged by when it came (came_us, tpo_now_us of then): how long it waited behind others is not its
 * trainer's doing, and what came later, the watch's look and another trainer's Begin among it, waits behind it. Everything is called on the compute
 * thread. A watch of the lease's own looks at the clock beside it; when the time is over it has the compute thread call `on_over`. */
#ifndef TPO_SERVICES_HOST_LEASE_H
#define TPO_SERVICES_HOST_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

struct tpo_host;
struct tpo_lease;

/* Free for anybody. ENOMEM "memory", "thread". */
int tpo_lease_open(struct tpo_lease **out, struct tpo_host *h, void (*on_over)(void *owner), void *owner, struct tpo_error *err);
void tpo_lease_close(struct tpo_lease *l); /* accepts NULL */

/* Whether this holder may take it for so long. INVALID_ARGUMENT "lease" for a name or a time that can't be; FAILED_PRECONDITION "leased" while
 * another has it, with err->retry_ms. `stage` is for the message. */
int tpo_lease_allow(const struct tpo_lease *l, const char *holder, uint32_t ms, int64_t came_us, const char *stage,
                    struct tpo_error *err);
/* Answers its number: higher than all before, those of earlier processes too. */
uint64_t tpo_lease_take(struct tpo_lease *l, const char *holder, uint32_t ms);
uint64_t tpo_lease_own_since(const struct tpo_lease *l); /* the number since which its holder alone has taken it */
/* FAILED_PRECONDITION "lease" when it is not this one that ran then. */
int tpo_lease_check(const struct tpo_lease *l, uint64_t number, int64_t came_us, struct tpo_error *err);
void tpo_lease_renew(struct tpo_lease *l); /* the time starts anew; after tpo_lease_end there is none to start */
void tpo_lease_end(struct tpo_lease *l);   /* free for anybody; on_over does not come for what was ended so */

bool tpo_lease_ran(const struct tpo_lease *l, int64_t at_us); /* whether it had not ended at that moment */
const char *tpo_lease_holder(const struct tpo_lease *l);      /* the last one, "" before the first */

#endif
