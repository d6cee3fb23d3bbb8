/* events.h -- a stage's numbers as TensorBoard reads them: OUT/k-STAGE/events.out.tfevents.SECONDS.HOST.PID.N
 *
 * A file is TFRecords: length (u64), masked CRC32C of it, an Event (proto/tfevents.proto), masked CRC32C of that; all little-endian. The mask is
 * ((crc >> 15) | (crc << 17)) + 0xa282ead8. A run that goes on begins a file of its own in the same folder, and TensorBoard joins them in order of
 * their names. Before the first step of a file, and before one that is done again after a recovery, stands SessionLog START with that step: what a
 * reader has of it and of later steps is void.
 *
 *   loss/NAME          mean over the micro-batches that had it     rate/GROUP   learning rate, after warm-up and cosine
 *   norm/all     gradient norm of the clipped groups               norm/SERVICE of all groups of a service
 *   clip         factor that was used                              aborted      steps given up so far
 *   time/PHASE         seconds, by the names of timing.h           time/bubble  seconds in which no service computed
 *   data/skipped rows of files passed over so far, where a stage reads any                            speed/samples_per_s
 *
 * Nothing here can stop a training run: a file that cannot be written costs records, which are counted and logged once. */
#ifndef TPO_TRAINER_STEPS_EVENTS_H
#define TPO_TRAINER_STEPS_EVENTS_H

#include "trainer/steps/step.h"

struct tpo_events; /* opaque; one thread */

/* NULL only without memory; every function accepts NULL. */
struct tpo_events *tpo_events_open(const char *dir);
void tpo_events_close(struct tpo_events *e);

/* One Event with every scalar of the step. `aborted` counts the run's steps that were given up. */
void tpo_events_step(struct tpo_events *e, const struct tpo_recipe_stage *s, int step, const struct tpo_step_report *r,
                     uint64_t aborted);

uint32_t tpo_crc32c(const void *data, size_t n); /* Castagnoli, as in RFC 3720, B.4 */

#endif
