/* client_private.h -- what peers.c, resolve.c and rpc.c share. Everything is the loop owner's, but what resolve.c says. */
#ifndef TPO_COMMON_RPC_CLIENT_PRIVATE_H
#define TPO_COMMON_RPC_CLIENT_PRIVATE_H

#include <pthread.h>

#include "common/rpc/client.h"
#include "common/rpc/loop.h"

enum peer_health { PEER_UNKNOWN, PEER_SERVING, PEER_NOT_SERVING };

struct peer {
    int id;            /* never 0, never another's */
    char address[128]; /* as dialled */
    uint64_t hash;
    grpc_channel *channel;
    enum peer_health health;
    struct tpo_rpc *watch;
    int64_t watch_after_us; /* not before, when there is none */
    int backoff_ms, in_flight, refs;
    bool gone;
    uint64_t versions[TPO_PEER_VERSIONS_MAX];
    int n_versions; /* -1: it has not told */
    struct tpo_peers *peers;
};

struct peer_addresses {
    int n;
    char address[64][128]; /* twice where two names have it */
    int name[64];          /* whose, by its place in the list of names */
};

struct tpo_peers {
    struct tpo_loop *loop;
    const char *stage;
    char *names;
    enum tpo_pick pick;
    struct peer **peers;
    int n_peers, last_id;
    int watch_ms;         /* how long a watch of health lasts; the next takes its place */
    uint64_t turn;        /* breaks ties */
    struct tpo_rpc *rpcs; /* all in flight, watches too */
    _Atomic int n_rpcs;
    bool closing;
    struct tpo_tag tick_tag;
    /* resolve.c's: a thread that looks names up again, there only when one is no address. */
    pthread_t resolver;
    bool resolving;
    pthread_mutex_t lock;
    pthread_cond_t stop_changed;
    bool stop, fresh;            /* under lock */
    struct peer_addresses found; /* written by the resolver under lock, once there is one */
};

/* resolve.c */
/* Blocks. A name that cannot be resolved keeps the addresses it has in `last`. */
void tpo_resolve(const char *names, const struct peer_addresses *last, struct peer_addresses *out);
int tpo_resolver_start(struct tpo_peers *p); /* TPO_OK also when no name needs it */
void tpo_resolver_stop(struct tpo_peers *p);
bool tpo_resolver_take(struct tpo_peers *p, struct peer_addresses *out); /* whether there is news */

/* peers.c */
int tpo_peers_update(struct tpo_peers *p, const struct peer_addresses *found); /* what was found is the set; ENOMEM */
struct peer *tpo_peer_of(const struct tpo_peers *p, int id);                   /* NULL: none, or no longer */
/* version: only those that may hold it; NULL: any. */
struct peer *tpo_peer_pick(struct tpo_peers *p, const char *key, const char *version, const struct peer *except);
void tpo_peer_release(struct peer *x);

/* rpc.c: on one peer, for watch_ms; wait: until it can be reached, else UNAVAILABLE where it cannot. */
struct tpo_rpc *tpo_rpc_open_watch(struct peer *x, bool wait, const struct tpo_rpc_events *on);
void tpo_rpc_cancel_all(struct tpo_peers *p);

#endif
