/* This file owns the progress bar. */
#include "common/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"

#define QUIET_S 2.0
#define EVERY_S 0.2
#define WIDTH   30

/* 12345678 -> 12.3M; as it is below 10,000, with a digit more where it is a fraction below 10. */
static void print_amount(double x)
{
    static const char letters[] = " kMGT";
    int i = 0;
    while (x >= (i == 0 ? 10000 : 1000) && letters[i + 1] != '\0') x /= 1000, i++;
    if (i > 0)
        fprintf(stderr, "%.1f%c", x, letters[i]);
    else
        fprintf(stderr, "%.*f", x < 10 && x != (int)x ? 1 : 0, x);
}

static void print_left(double seconds)
{
    const long s = seconds < 360000 ? (long)seconds : 360000;
    if (s < 60)
        fprintf(stderr, ", %ld s left", s);
    else if (s < 3600)
        fprintf(stderr, ", %ld:%02ld left", s / 60, s % 60);
    else
        fprintf(stderr, ", %ld:%02ld:%02ld left", s / 3600, s / 60 % 60, s % 60);
}

static void print_bar(const struct tpo_progress *p, double done, double total, double seconds)
{
    const double rate = (done - p->begun_at) / seconds;
    const int filled = total > 0 ? (int)(done / total * WIDTH) : 0;
    fprintf(stderr, "\r%s [", p->what);
    for (int i = 0; i < WIDTH; i++) fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] ");
    print_amount(done);
    if (total > 0) fputc('/', stderr), print_amount(total);
    fprintf(stderr, "%s, ", p->unit);
    print_amount(rate);
    fprintf(stderr, "%s/s", p->unit);
    if (total > 0 && rate > 0) print_left((total - done) / rate);
    fprintf(stderr, "\033[K");
}

void tpo_progress_show(struct tpo_progress *p, double done, double total)
{
    const double now = tpo_now_s();
    if (p->begun_s == 0) p->begun_s = now, p->begun_at = done;
    if (now - p->begun_s < QUIET_S || now - p->shown_s < EVERY_S || !isatty(STDERR_FILENO)) return;
    p->shown_s = now;
    p->shown = true;
    print_bar(p, done, total, now - p->begun_s);
}

void tpo_progress_end(struct tpo_progress *p)
{
    if (p->shown) fprintf(stderr, "\r\033[K");
    p->shown = false;
}
