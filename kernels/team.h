/* team.h -- the threads of one CPU stream: they run the numbered parts of a job and sleep in between.
 *
 * A job is n_parts calls of fn(arg, part, member). Who runs which part is chance, so a part may depend on nothing but its number: it is cut by
 * the shape of the problem, never by the size of the team, and no two parts write the same memory. `member` (0..size-1) is for scratch.
 * The thread that calls tpo_team_run is member 0 and works too. Members spin for tens of microseconds after a job, then sleep in a futex.
 * One thread at a time calls tpo_team_run. */
#ifndef TPO_KERNELS_TEAM_H
#define TPO_KERNELS_TEAM_H

#include <stddef.h>

#include "common/status.h"

#define TPO_TEAM_MAX   256
#define TPO_TEAM_PARTS ((1 << 20) - 1) /* of one job */

struct tpo_team;
typedef void tpo_part_fn(void *arg, int part, int member);

/* size 1 starts no thread. TPO_EINVAL unless 1 <= size <= TPO_TEAM_MAX. */
int tpo_team_open(struct tpo_team **out, int size, struct tpo_error *err);
void tpo_team_close(struct tpo_team *t); /* accepts NULL */
int tpo_team_size(const struct tpo_team *t);
void tpo_team_run(struct tpo_team *t, tpo_part_fn *fn, void *arg, int n_parts);

#endif
