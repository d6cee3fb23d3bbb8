/* This file owns the way from names to addresses, once at the start and then again and again on a thread of its own. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rpc/client_private.h"

#define AGAIN_S 10

/* "host:port" or "[v6]:port" in two; false for what has no port. */
static bool split(const char *name, size_t n, char host[112], char port[8])
{
    const char *colon = memrchr(name, ':', n);
    if (colon == NULL || colon == name) return false;
    size_t n_host = (size_t)(colon - name), n_port = n - n_host - 1;
    if (n_host > 2 && name[0] == '[' && name[n_host - 1] == ']') name++, n_host -= 2;
    if (n_host >= 112 || n_port == 0 || n_port >= 8) return false;
    snprintf(host, 112, "%.*s", (int)n_host, name);
    snprintf(port, 8, "%.*s", (int)n_port, colon + 1);
    return true;
}

static bool is_address(const char *host)
{
    struct in6_addr any;
    return inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
}

static void add(struct peer_addresses *out, const char *text)
{
    for (int i = 0; i < out->n; i++)
        if (strcmp(out->address[i], text) == 0) return;
    if (out->n < (int)(sizeof(out->address) / sizeof(out->address[0])))
        snprintf(out->address[out->n++], sizeof(out->address[0]), "%s", text);
}

static void look_up(struct peer_addresses *out, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list, *a;
    if (getaddrinfo(host, port, &hints, &list) != 0) return;
    for (a = list; a != NULL; a = a->ai_next) {
        char ip[INET6_ADDRSTRLEN + 1], text[128];
        if (getnameinfo(a->ai_addr, a->ai_addrlen, ip, sizeof(ip), NULL, 0, NI_NUMERICHOST) != 0) continue;
        snprintf(text, sizeof(text), a->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s", ip, port);
        add(out, text);
        /* A name of one machine often has an address of each family (localhost): one of them is one peer. */
        if (strcmp(host, "localhost") == 0) break;
    }
    freeaddrinfo(list);
}

void tpo_resolve(const char *names, struct peer_addresses *out)
{
    out->n = 0;
    for (const char *at = names; *at != '\0';) {
        char host[112], port[8], text[128];
        size_t n = strcspn(at, ",");
        if (n > 5 && n < sizeof(text) && strncmp(at, "unix:", 5) == 0) {
            snprintf(text, sizeof(text), "%.*s", (int)n, at);
            add(out, text);
        } else if (split(at, n, host, port)) {
            if (is_address(host)) {
                snprintf(text, sizeof(text), "%.*s", (int)n, at);
                add(out, text);
            } else {
                look_up(out, host, port);
            }
        }
        at += n + (at[n] == ',');
    }
}

static bool needs_resolver(const char *names)
{
    for (const char *at = names; *at != '\0';) {
        char host[112], port[8];
        size_t n = strcspn(at, ",");
        if (strncmp(at, "unix:", 5) != 0 && split(at, n, host, port) && !is_address(host)) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

static void *resolver_thread(void *arg)
{
    struct tpo_peers *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        const struct timespec until = tpo_cond_until(tpo_now_us() + AGAIN_S * 1000000LL);
        while (!p->stop && pthread_cond_timedwait(&p->stop_changed, &p->lock, &until) != ETIMEDOUT) continue;
        if (p->stop) break;
        pthread_mutex_unlock(&p->lock);
        struct peer_addresses found;
        tpo_resolve(p->names, &found);
        pthread_mutex_lock(&p->lock);
        /* A name server that fails for a moment takes no peer away. */
        if (found.n > 0) p->found = found, p->fresh = true;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int tpo_resolver_start(struct tpo_peers *p)
{
    if (!needs_resolver(p->names)) return TPO_OK;
    if (pthread_create(&p->resolver, NULL, resolver_thread, p) != 0) return TPO_ENOMEM;
    p->resolving = true;
    return TPO_OK;
}

void tpo_resolver_stop(struct tpo_peers *p)
{
    if (!p->resolving) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->stop_changed);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->resolver, NULL);
    p->resolving = false;
}

bool tpo_resolver_take(struct tpo_peers *p, struct peer_addresses *out)
{
    pthread_mutex_lock(&p->lock);
    bool fresh = p->fresh;
    if (fresh) *out = p->found;
    p->fresh = false;
    pthread_mutex_unlock(&p->lock);
    return fresh;
}
