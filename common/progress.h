/* progress.h -- a bar on stderr for what takes longer than two seconds: share, rate, time left. Nothing where stderr is no terminal.
 *
 *   struct tpo_progress bar = {.what = "drawing", .unit = " scenes"};
 *   for (...) tpo_progress_show(&bar, ++done, total);     drawing [#######.......................] 250/1000 scenes, 83 scenes/s, 9 s left
 *   tpo_progress_end(&bar);
 *
 * Rate and time left are those of what was done since the first call, so what goes on where it was stopped does not boast. */
#ifndef TPO_COMMON_PROGRESS_H
#define TPO_COMMON_PROGRESS_H

#include <stdbool.h>

struct tpo_progress {
    const char *what, *unit;
    double begun_s, begun_at, shown_s;
    bool shown;
};

void tpo_progress_show(struct tpo_progress *p, double done, double total); /* total 0: unknown */
/* Takes the bar off the terminal; the next tpo_progress_show puts it there again. */
void tpo_progress_end(struct tpo_progress *p);

#endif
