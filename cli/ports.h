/* ports.h -- which TCP ports of 127.0.0.1 the processes of a mesh are given. */
#ifndef TPO_CLI_PORTS_H
#define TPO_CLI_PORTS_H

#include <stdbool.h>

#include "common/status.h"

#define TPO_PORTS_MAX 32

/* Those given so far, and to whom: none is bound before its process runs, so that none may be given twice. */
struct tpo_ports {
    int n;
    struct {
        char name[32];
        int port;
    } given[TPO_PORTS_MAX];
};

/* Exactly this one. INVALID_ARGUMENT "port" where it was given already, FAILED_PRECONDITION "port" where it cannot be bound; `flag` is for the
 * message. */
int tpo_ports_take(struct tpo_ports *p, const char *name, const char *flag, int port, struct tpo_error *err);
/* The usual one, or another where somebody has it (or `any`). RESOURCE_EXHAUSTED "port" when there is none. */
int tpo_ports_find(struct tpo_ports *p, const char *name, int usual, bool any, int *port, struct tpo_error *err);
/* Whether a port given to this name cannot be bound: of a process that has ended it tells that somebody else has it. */
bool tpo_ports_lost(const struct tpo_ports *p, const char *name);

#endif
