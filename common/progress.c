/* This file owns the progress bar. */
#include "common/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"

#define QUIET_S 2.0
#define WIDTH   30

/* 12345678 -> 12.3M */
static void print_amount(double x, const char *unit)
{
    static const char letters[] = " kMGT";
    int i = 0;
    while (x >= 1000 && letters[i + 1] != '\0') x /= 1000, i++;
    fprintf(stderr, i > 0 ? "%.1f%c%s" : "%.0f%c%s", x, letters[i], unit);
}

void tpo_progress_show(struct tpo_progress *p, double done, double total)
{
    double now = tpo_now_s();
    if (p->begun_s == 0) p->begun_s = now;
    double seconds = now - p->begun_s;
    if (seconds < QUIET_S || now - p->shown_s < 0.2 || !isatty(STDERR_FILENO)) return;
    p->shown_s = now;
    p->shown = true;
    fprintf(stderr, "\r%s [", p->what);
    int filled = total > 0 ? (int)(done / total * WIDTH) : 0;
    for (int i = 0; i < WIDTH; i++) fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] ");
    print_amount(done / seconds, p->unit);
    fprintf(stderr, "/s");
    if (total > 0 && done > 0) fprintf(stderr, ", %.0f s left", (total - done) * seconds / done);
    fprintf(stderr, "   ");
}

void tpo_progress_end(struct tpo_progress *p)
{
    if (p->shown) fprintf(stderr, "\r\033[K");
    p->shown = false;
}
