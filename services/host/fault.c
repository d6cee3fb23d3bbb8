/* This file owns the fault setting of a process. */
#include "services/host/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[TPO_FAULTS] = {
#define X(id, name) name,
    TPO_FAULT_MAP(X)
#undef X
};

static int chosen = -1;
static bool stops;
static _Atomic long left;

static int point_of(const char *text, size_t length)
{
    for (int i = 0; i < TPO_FAULTS; i++)
        if (strlen(names[i]) == length && memcmp(names[i], text, length) == 0) return i;
    return -1;
}

int tpo_fault_set(const char *text, struct tpo_error *err)
{
    if (text == NULL || text[0] == '\0') return TPO_OK;
    const size_t length = strcspn(text, ":");
    char *end = (char *)text + length;
    const long n = *end == ':' ? strtol(end + 1, &end, 10) : 1;
    const int point = point_of(text, length);
    const bool stop = strcmp(end, ":stop") == 0;
    if (point < 0 || n < 1 || (*end != '\0' && !stop))
        return tpo_fail(
            err, TPO_INVALID_ARGUMENT, "fault",
            "--fault %.64s: a point of services/host/fault.h, then :N where not the first time, then :stop to stand still", text);
    chosen = point;
    stops = stop;
    left = n;
    return TPO_OK;
}

/* raise() and not kill(): the thread that came here goes no further, whichever thread a signal to the process would find. */
void tpo_fault_reach(enum tpo_fault point)
{
    if ((int)point == chosen && atomic_fetch_sub(&left, 1) == 1) raise(stops ? SIGSTOP : SIGKILL);
}
