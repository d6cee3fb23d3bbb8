/* publish.h -- puts what a crew has learned into the mesh that serves (docs/versions.md).
 *
 * A number names one state of the weights for ever, and is held by every replica of every service before the next is given to any. */
#ifndef TPO_TRAINER_STEPS_PUBLISH_H
#define TPO_TRAINER_STEPS_PUBLISH_H

#include "trainer/steps/crew.h"

/* The committed weights of step `step`, everywhere. *version in: the number that these very weights were published under before, which is given
 * again where nothing newer is served, so that only who lost it has work and room to find; 0: a new one. Out: the number they have; 0 when none
 * took it, as the services still need both versions they hold ("later", no error; `patient` waits first, for at most wait_ms); after an error the
 * number that some may have by now, which is to come in again for these weights. Once one has taken it the others are asked until they do, for at
 * most wait_ms. New numbers are the wall clock's milliseconds, so that they grow from run to run (seconds would not, where a run of short steps
 * publishes several in one and the next begins at once), but always above what Begin told that any service serves: a clock may be set back. */
int tpo_crew_publish(struct tpo_crew *t, int step, int wait_ms, bool patient, uint64_t *version, struct tpo_error *err);

/* Whether they told at Begin that they serve different versions: one of them has lost what the others serve, or never got it. */
bool tpo_crew_serves_apart(struct tpo_crew *t);

#endif
