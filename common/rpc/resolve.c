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

/* This name is 127.0.0.1, where services listen unless told otherwise; most systems list ::1 for it, too, and first. */
static bool is_here(const char *host)
{
    return strcmp(host, "localhost") == 0;
}

/* What needs no look-up. */
static bool is_address(const char *host)
{
    struct in6_addr any;
    return is_here(host) || inet_pton(AF_INET, host, &any) == 1 || inet_pton(AF_INET6, host, &any) == 1;
}

static void add(struct peer_addresses *out, int name, const char *text)
{
    for (int i = 0; i < out->n; i++)
        if (out->name[i] == name && strcmp(out->address[i], text) == 0) return;
    if (out->n == (int)(sizeof(out->address) / sizeof(out->address[0]))) return;
    out->name[out->n] = name;
    snprintf(out->address[out->n++], sizeof(out->address[0]), "%s", text);
}

static void add_all(struct peer_addresses *out, int name, const char *port, const struct addrinfo *list)
{
    for (const struct addrinfo *a = list; a != NULL; a = a->ai_next) {
        char ip[INET6_ADDRSTRLEN + 1], text[128];
        if (getnameinfo(a->ai_addr, a->ai_addrlen, ip, sizeof(ip), NULL, 0, NI_NUMERICHOST) != 0) continue;
        snprintf(text, sizeof(text), a->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s", ip, port);
        add(out, name, text);
    }
}

static bool look_up(struct peer_addresses *out, int name, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list;
    if (getaddrinfo(host, port, &hints, &list) != 0) return false;
    add_all(out, name, port, list);
    freeaddrinfo(list);
    return true;
}

/* The name `name` of the list, n bytes at `at`. False where it has to be looked up and cannot. */
static bool resolve_name(struct peer_addresses *out, int name, const char *at, size_t n)
{
    char host[112], port[8], text[128];
    if (n >= sizeof(text)) return true;
    snprintf(text, sizeof(text), "%.*s", (int)n, at);
    const bool unix_socket = n > 5 && strncmp(at, "unix:", 5) == 0;
    if (!unix_socket && !split(at, n, host, port)) return true;
    if (!unix_socket && !is_address(host)) return look_up(out, name, host, port);
    if (!unix_socket && is_here(host)) snprintf(text, sizeof(text), "127.0.0.1:%s", port);
    add(out, name, text);
    return true;
}

void tpo_resolve(const char *names, const struct peer_addresses *last, struct peer_addresses *out)
{
    int name = 0;
    out->n = 0;
    for (const char *at = names; *at != '\0'; name++) {
        const size_t n = strcspn(at, ",");
        /* A name server that fails for a moment takes no peer away. */
        if (!resolve_name(out, name, at, n))
            for (int i = 0; i < last->n; i++)
                if (last->name[i] == name) add(out, name, last->address[i]);
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
        tpo_resolve(p->names, &p->found, &found);
        pthread_mutex_lock(&p->lock);
        p->found = found;
        p->fresh = true;
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
