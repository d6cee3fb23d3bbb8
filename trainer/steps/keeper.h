/* keeper.h -- keeps the leases of a mesh while its trainer lives, whatever that is doing: a step may leave a service idle for longer than a lease
 * lasts, and so may samples that are drawn, files that are written, and services that are waited for.
 *
 * A thread of its own calls Keep at a third of the lease, everywhere that Begin has answered and End has not, and asks nobody else's leave: only
 * the end or the stop of the whole process lets a lease end. What a call answers is not looked at: a service that went away, or was taken by
 * another trainer, is found by the next call of the run. */
#ifndef TPO_TRAINER_STEPS_KEEPER_H
#define TPO_TRAINER_STEPS_KEEPER_H

#include "trainer/steps/mesh.h"

struct tpo_keeper; /* opaque */

/* The mesh is borrowed until close; its leases are those that its handles write. ENOMEM "memory", "thread"; what tpo_peers_open answers. */
int tpo_keeper_open(struct tpo_keeper **out, struct tpo_mesh *m, struct tpo_error *err);
void tpo_keeper_close(struct tpo_keeper *k); /* accepts NULL; calls on their way are cancelled */

#endif
