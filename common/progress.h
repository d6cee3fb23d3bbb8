/* progress.h -- a bar on stderr for what takes longer than two seconds: share, rate, time left. Nothing where stderr is no terminal. */
#ifndef TPO_COMMON_PROGRESS_H
#define TPO_COMMON_PROGRESS_H

#include <stdbool.h>

struct tpo_progress {
    const char *what, *unit;
    double begun_s, shown_s;
    bool shown;
};

void tpo_progress_show(struct tpo_progress *p, double done, double total); /* total 0: unknown */
void tpo_progress_end(struct tpo_progress *p);

#endif
