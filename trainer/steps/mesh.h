/* mesh.h -- where the services are that a trainer drives, and its handles of them.
 *
 * --mesh takes  encoder=ADDR[,ADDR...],router=ADDR,region=ADDR   replicas of a service in the order of their lanes
 *               ADDR,ADDR,...                                    each is asked (Status) which service it is, once it answers
 *               DIR                                              the run directory of `tpo up --train`
 *
 * An address is of one process, and a process is named once: a name of several hosts is refused by the first call to it (INVALID_ARGUMENT "mesh"),
 * two that lead to one process once they have begun (FAILED_PRECONDITION "replicas"). */
#ifndef TPO_TRAINER_STEPS_MESH_H
#define TPO_TRAINER_STEPS_MESH_H

#include <stdatomic.h>

#include "trainer/steps/crew.h"
#include "trainer/steps/feed.h"

#define TPO_ADDRESS_MAX 128

struct tpo_mesh {
    char addresses[TPO_PARTS][TPO_REPLICAS_MAX][TPO_ADDRESS_MAX];
    int n_replicas[TPO_PARTS];
    const char *holder; /* of the lease; set before the first handle is opened */
    int lease_ms, call_ms;
    struct tpo_feed *feed; /* of the stage in progress: decodes what a service cannot take by name */
    _Atomic uint64_t leases[TPO_PARTS][TPO_REPLICAS_MAX];
    _Atomic bool stop;
};

/* INVALID_ARGUMENT "mesh" with what is wrong in the text; NOT_FOUND for a folder without a mesh; what Status answers, UNAVAILABLE or
 * DEADLINE_EXCEEDED only after wait_ms of asking. */
int tpo_mesh_read(struct tpo_mesh *m, const char *text, int wait_ms, struct tpo_error *err);

/* tpo_crew_options.open; owner is the mesh. */
int tpo_mesh_handle(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err);

#endif
