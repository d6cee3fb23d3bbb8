/* publish.h -- puts what a crew has learned into the mesh that serves (contracts.md 7, Publish; docs/versions.md).
 *
 * A number names one state of the weights for ever, and is held by every replica of every service before the next is given to any. */
#ifndef TPO_TRAINER_STEPS_PUBLISH_H
#define TPO_TRAINER_STEPS_PUBLISH_H

#include "trainer/steps/crew.h"

/* The committed weights of step `step`, everywhere. *version: the number they have, 0 when the services still need both versions they hold ("later", no
 * error; `patient` waits first, for at most wait_ms). Once one has taken it the others are asked until they do, for at most wait_ms. Numbers are the wall clock's milliseconds, so that they grow
 * from run to run (seconds would not, where a run of short steps publishes several in one and the next begins at once), but always above the number
 * used last and what Begin told that any service serves: a clock that was set back asks nobody to go back. */
int tpo_crew_publish(struct tpo_crew *t, int step, int wait_ms, bool patient, uint64_t *version, struct tpo_error *err);

#endif
