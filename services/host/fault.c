/* This file owns the fault setting of a process. */
#include "services/host/fault.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[TPO_FAULTS] = {
#define X(id, name) name,
    TPO_FAULT_MAP(X)
#undef X
};

static int chosen = -1;
static _Atomic long left;

int tpo_fault_set(const char *text, struct tpo_error *err)
{
    if (text == NULL || text[0] == '\0') return TPO_OK;
    const size_t length = strcspn(text, ":");
    char *end = NULL;
    const long n = text[length] == ':' ? strtol(text + length + 1, &end, 10) : 1;
    for (int i = 0; i < TPO_FAULTS; i++)
        if (strlen(names[i]) == length && memcmp(names[i], text, length) == 0) chosen = i;
    if (chosen < 0 || n < 1 || (end != NULL && *end != '\0'))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "fault",
                        "--fault %.64s: a point of services/host/fault.h, then :N where not the first time", text);
    left = n;
    return TPO_OK;
}

void tpo_fault_reach(enum tpo_fault point)
{
    if ((int)point == chosen && atomic_fetch_sub(&left, 1) == 1) kill(getpid(), SIGKILL);
}
