/* This file owns the ports of a mesh. */
#include "cli/ports.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* `wanted` if it can be bound, 0 if not (errno tells why); 0 asks for any. */
static int try_port(int wanted)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)wanted), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0, one = 1;
    if (fd < 0) return 0;
    /* As servers do: a port whose last connections are winding down is free. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0 && getsockname(fd, (struct sockaddr *)&a, &n) == 0)
        port = ntohs(a.sin_port);
    const int why = errno;
    close(fd);
    errno = why;
    return port;
}

static bool is_given(const struct tpo_ports *p, int port)
{
    for (int i = 0; i < p->n; i++)
        if (p->given[i].port == port) return true;
    return false;
}

/* A free port below those that the system lends to connections: one of the latter could be taken by anybody's call before our process listens on
 * it. */
static int free_port(const struct tpo_ports *p)
{
    uint16_t drawn;
    for (int i = 0; i < 64 && getrandom(&drawn, sizeof(drawn), 0) == sizeof(drawn); i++) {
        const int port = 10000 + drawn % 22000;
        if (!is_given(p, port) && try_port(port) != 0) return port;
    }
    const int port = try_port(0);
    return is_given(p, port) ? 0 : port;
}

static int give(struct tpo_ports *p, const char *name, int port, struct tpo_error *err)
{
    if (port == 0 || p->n == TPO_PORTS_MAX) return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "port", "there is no port for %s", name);
    snprintf(p->given[p->n].name, sizeof(p->given[0].name), "%s", name);
    p->given[p->n++].port = port;
    return TPO_OK;
}

int tpo_ports_take(struct tpo_ports *p, const char *name, const char *flag, int port, struct tpo_error *err)
{
    if (is_given(p, port)) return tpo_fail(err, TPO_INVALID_ARGUMENT, "port", "--%s %d: another flag names this port", flag, port);
    if (try_port(port) == 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "port", "--%s %d: %s", flag, port, strerror(errno));
    return give(p, name, port, err);
}

int tpo_ports_find(struct tpo_ports *p, const char *name, int usual, bool any, int *port, struct tpo_error *err)
{
    *port = any || is_given(p, usual) ? 0 : try_port(usual);
    if (*port == 0) *port = free_port(p);
    return give(p, name, *port, err);
}

bool tpo_ports_lost(const struct tpo_ports *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (strcmp(p->given[i].name, name) == 0 && try_port(p->given[i].port) == 0) return true;
    return false;
}
