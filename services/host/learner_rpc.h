/* learner_rpc.h -- the Learner service of learner.proto over the learner of this process, and the lease that keeps a second trainer out.
 *
 * Everything runs as jobs on the compute thread, beside serving, so nothing here is locked. Without --train every method answers UNIMPLEMENTED
 * "train".
 *
 *   free --Begin--> leased (holder H, number L) --any call with L--> leased, the time starts anew when it has been answered
 *   leased --Begin by H--> leased, L + 1 (calls of before are refused)      leased --Begin by another--> FAILED_PRECONDITION "leased"
 *   leased --time over--> free: tapes of the open step go, a prepared step stays; calls with L: FAILED_PRECONDITION "lease"
 *
 * Keep is a call that does nothing else: a trainer renews by it while it has nothing to ask here (trainer/steps/keeper.h).
 * Calls, Begin among them, are judged by when they came: neither the work of one nor the wait behind others takes the lease from its holder. */
#ifndef TPO_SERVICES_HOST_LEARNER_RPC_H
#define TPO_SERVICES_HOST_LEARNER_RPC_H

#include "services/host/host.h"

struct tpo_learner_rpc;

/* The methods, for the host's table. Their jobs find what they need through job->host. */
extern const struct tpo_host_method tpo_learner_methods[];
extern const int tpo_n_learner_methods;

/* Compute thread, after the service's open. TPO_OK and *out NULL where the service has nothing to train. */
int tpo_learner_rpc_open(struct tpo_learner_rpc **out, struct tpo_host *h, struct tpo_error *err);
void tpo_learner_rpc_close(struct tpo_learner_rpc *l); /* compute thread, before the service's close; accepts NULL */

#endif
