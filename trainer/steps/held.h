/* held.h -- OUT belongs to one trainer at a time: a lock, the token by which services know its holder, and which processes hold the run's state.
 *
 *   OUT/lock       flock; a second trainer is refused (FAILED_PRECONDITION "out_locked")
 *   OUT/run.json   {"holder": random token, "folder": whose, "run": "...", "instances": {"encoder": ["..."], ...}, "leases": {...}}, written whole and
 *                  exchanged with run.json.part, which keeps its room on a disk that fills up
 *
 * The token counts in the folder that it was made for (inode and birth of OUT/lock): who works on a copy gets one of its own, is refused while
 * the first one's lease lasts, and goes on from the last checkpoint.
 *
 * An instance is listed once its process holds the state that the run has; a trainer that comes back finds another one and knows that
 * state was lost. The same holds for a lease that is not the next one: another trainer has been there. */
#ifndef TPO_TRAINER_STEPS_HELD_H
#define TPO_TRAINER_STEPS_HELD_H

#include "trainer/steps/crew.h"

struct tpo_held; /* opaque */

int tpo_held_open(struct tpo_held **out, const char *dir, struct tpo_error *err);
void tpo_held_close(struct tpo_held *h); /* unlocks; accepts NULL */
const char *tpo_held_token(const struct tpo_held *h);
void tpo_held_leases(const struct tpo_held *h, struct tpo_crew *t); /* those that the trainer before saw last, into the replicas */

/* Whether this replica's process (begun.instance) is known to hold the state of t->run, or of the run before. */
bool tpo_held_knows(const struct tpo_held *h, const struct tpo_crew *t, int part, int replica, bool of_any_run);
/* All of the crew's are, from now on (false: none is). On disk when it returns. */
int tpo_held_note(struct tpo_held *h, struct tpo_crew *t, bool known, struct tpo_error *err);
/* Writes down the leases, and forgets the instances that another trainer has taken: with these leases, the next one could not see that. */
int tpo_held_begun(struct tpo_held *h, const struct tpo_crew *t, struct tpo_error *err);
/* Whether somebody holds the lock of `dir`: for --status. */
bool tpo_held_is(const char *dir);

/* Writes a small file under another name, syncs and renames it. */
int tpo_small_file(const char *path, const char *text, struct tpo_error *err);
/* The same without a sync, for what a machine that goes down may lose. */
int tpo_passing_file(const char *path, const char *text, struct tpo_error *err);

#endif
