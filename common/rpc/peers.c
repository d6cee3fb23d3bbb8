/* This file owns a set of peers: their channels, their health, and who gets the next call. */
#include <grpc/grpc_security.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rpc/client_private.h"
#include "grpc/health/v1/health.pb-c.h"

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 2000
#define WATCH_MS       (3600 * 1000)
#define NEVER_US       INT64_MAX

static grpc_channel *create_channel(const char *address)
{
    grpc_arg args[] = {
        tpo_grpc_number(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, TPO_RPC_MESSAGE_BYTES),
        tpo_grpc_number(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, TPO_RPC_MESSAGE_BYTES),
        tpo_grpc_number(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        /* We retry ourselves, on another peer. */
        tpo_grpc_number(GRPC_ARG_ENABLE_RETRIES, 0),
        /* A proxy from the environment has no business between our services. */
        tpo_grpc_number(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        tpo_grpc_number(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        tpo_grpc_number(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        tpo_grpc_number(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000),
        tpo_grpc_number(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000),
        /* A peer that hangs with its connection open is found within half a minute. */
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_TIME_MS, 20000),
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000),
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        tpo_grpc_number(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args all = {.num_args = sizeof(args) / sizeof(args[0]), .args = args};
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(address, plain, &all);
    grpc_channel_credentials_release(plain);
    return channel;
}

/* FNV-1a with a final mix: near keys must not order the peers alike. */
static uint64_t hash_text(uint64_t h, const char *text)
{
    for (; *text != '\0'; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdu;
    return h ^ h >> 33;
}

static int add_peer(struct tpo_peers *p, const char *address)
{
    struct peer **grown = realloc(p->peers, (size_t)(p->n_peers + 1) * sizeof(*grown));
    if (grown == NULL) return TPO_ENOMEM;
    p->peers = grown;
    struct peer *x = calloc(1, sizeof(*x));
    if (x == NULL) return TPO_ENOMEM;
    strcpy(x->address, address); /* both are 128 bytes */
    x->hash = hash_text(0xcbf29ce484222325u, address);
    x->channel = create_channel(address);
    x->id = ++p->last_id;
    x->backoff_ms = BACKOFF_MIN_MS;
    x->refs = 1;
    x->n_versions = -1;
    x->peers = p;
    p->peers[p->n_peers++] = x;
    return x->channel != NULL ? TPO_OK : TPO_ENOMEM;
}

void tpo_peer_release(struct peer *x)
{
    if (--x->refs > 0) return;
    if (x->channel != NULL) grpc_channel_destroy(x->channel);
    free(x);
}

/* Calls in flight keep a peer that was taken out of the set. */
static void drop_peer(struct tpo_peers *p, int i)
{
    struct peer *x = p->peers[i];
    p->peers[i] = p->peers[--p->n_peers];
    x->gone = true;
    if (x->watch != NULL) tpo_rpc_cancel(x->watch);
    tpo_peer_release(x);
}

int tpo_peers_update(struct tpo_peers *p, const struct peer_addresses *found)
{
    for (int i = p->n_peers - 1; i >= 0; i--) {
        int k = 0;
        while (k < found->n && strcmp(found->address[k], p->peers[i]->address) != 0) k++;
        if (k == found->n) drop_peer(p, i);
    }
    for (int k = 0; k < found->n; k++) {
        int i = 0;
        while (i < p->n_peers && strcmp(found->address[k], p->peers[i]->address) != 0) i++;
        if (i == p->n_peers && add_peer(p, found->address[k]) != TPO_OK) return TPO_ENOMEM;
    }
    return TPO_OK;
}

/* --- health ------------------------------------------------------------------------------------------------------------------------ */

static void on_health(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct peer *x = owner;
    (void)r, (void)payload;
    Grpc__Health__V1__HealthCheckResponse *reply = (Grpc__Health__V1__HealthCheckResponse *)message;
    x->health = reply->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING ? PEER_SERVING : PEER_NOT_SERVING;
    if (x->health == PEER_NOT_SERVING) x->n_versions = -1;
    x->backoff_ms = BACKOFF_MIN_MS;
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_watch_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct peer *x = owner;
    (void)r, (void)err;
    x->watch = NULL;
    /* Its own deadline says nothing of the peer: what is known stands, and the next tick opens another. */
    if (status == TPO_DEADLINE_EXCEEDED) return;
    /* A peer without the health service, or with no room for one more watch, answers: it counts as serving, and a call will tell. */
    const bool answers = status == TPO_UNIMPLEMENTED || status == TPO_RESOURCE_EXHAUSTED;
    if (!answers) x->n_versions = -1;
    x->health = answers ? PEER_SERVING : PEER_NOT_SERVING;
    x->watch_after_us = status == TPO_UNIMPLEMENTED ? NEVER_US : tpo_now_us() + x->backoff_ms * 1000;
    x->backoff_ms = x->backoff_ms * 2 < BACKOFF_MAX_MS ? x->backoff_ms * 2 : BACKOFF_MAX_MS;
}

static void watch(struct peer *x)
{
    struct tpo_rpc_events on = {.owner = x, .on_message = on_health, .on_done = on_watch_done};
    /* One that serves is there: if it is not, this must be heard at once and not waited out. */
    x->watch = tpo_rpc_open_watch(x, x->health != PEER_SERVING, &on);
}

static void on_tick(void *owner, int ok)
{
    struct tpo_peers *p = owner;
    struct peer_addresses found;
    (void)ok;
    if (p->closing) return;
    if (p->resolving && tpo_resolver_take(p, &found)) tpo_peers_update(p, &found);
    int64_t now = tpo_now_us();
    for (int i = 0; i < p->n_peers; i++)
        if (p->peers[i]->watch == NULL && p->peers[i]->watch_after_us <= now) watch(p->peers[i]);
}

/* --- the set ------------------------------------------------------------------------------------------------------------------------ */

int tpo_peers_open(struct tpo_peers **out, struct tpo_loop *l, const char *stage, const char *addresses, enum tpo_pick pick,
                   struct tpo_error *err)
{
    const struct peer_addresses none = {0};
    struct tpo_peers *p = calloc(1, sizeof(*p));
    int rc = TPO_ENOMEM;
    if (p == NULL) return tpo_fail(err, rc, "memory", "out of memory");
    p->loop = l;
    p->stage = stage;
    p->pick = pick;
    p->watch_ms = WATCH_MS;
    p->tick_tag = (struct tpo_tag){.on_event = on_tick, .owner = p};
    pthread_mutex_init(&p->lock, NULL);
    tpo_cond_init(&p->stop_changed);
    p->names = strdup(addresses);
    if (p->names == NULL) goto fail;
    tpo_resolve(p->names, &none, &p->found);
    rc = tpo_peers_update(p, &p->found);
    if (rc == TPO_OK) rc = tpo_resolver_start(p);
    if (rc != TPO_OK) goto fail;
    tpo_loop_tick_add(l, &p->tick_tag);
    on_tick(p, 1);
    *out = p;
    return TPO_OK;
fail:
    tpo_peers_close(p);
    return tpo_fail(err, rc, "memory", "no memory or thread for the peers of %s", stage);
}

void tpo_peers_close(struct tpo_peers *p)
{
    if (p == NULL) return;
    p->closing = true;
    tpo_loop_tick_remove(p->loop, &p->tick_tag);
    tpo_resolver_stop(p);
    tpo_rpc_cancel_all(p);
    tpo_loop_wait_zero(p->loop, &p->n_rpcs, -1);
    while (p->n_peers > 0) drop_peer(p, p->n_peers - 1);
    free(p->peers);
    free(p->names);
    pthread_cond_destroy(&p->stop_changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int tpo_peers_ready(const struct tpo_peers *p)
{
    int n = 0;
    for (int i = 0; i < p->n_peers; i++) n += p->peers[i]->health == PEER_SERVING;
    return n;
}

int tpo_peers_count(const struct tpo_peers *p)
{
    return p->n_peers;
}

const char *tpo_peers_stage(const struct tpo_peers *p)
{
    return p->stage;
}

int tpo_peers_id(const struct tpo_peers *p, int i)
{
    return p->peers[i]->id;
}

struct peer *tpo_peer_of(const struct tpo_peers *p, int id)
{
    for (int i = 0; i < p->n_peers; i++)
        if (p->peers[i]->id == id) return p->peers[i];
    return NULL;
}

const char *tpo_peers_address(const struct tpo_peers *p, int i, bool *serving)
{
    if (serving != NULL) *serving = p->peers[i]->health == PEER_SERVING;
    return p->peers[i]->address;
}

/* --- versions ------------------------------------------------------------------------------------------------------------------------ */

void tpo_peers_set_versions(struct tpo_peers *p, int id, const uint64_t *versions, int n)
{
    struct peer *x = tpo_peer_of(p, id);
    if (x == NULL) return;
    x->n_versions = n < TPO_PEER_VERSIONS_MAX ? n : TPO_PEER_VERSIONS_MAX;
    for (int k = 0; k < x->n_versions; k++) x->versions[k] = versions[k];
}

void tpo_peers_drop_version(struct tpo_peers *p, int id, uint64_t version)
{
    struct peer *x = tpo_peer_of(p, id);
    int n = 0;
    if (x == NULL) return;
    for (int k = 0; k < x->n_versions; k++)
        if (x->versions[k] != version) x->versions[n++] = x->versions[k];
    x->n_versions = n; /* one that had not told is known to hold nothing of use, until it tells */
}

int tpo_peers_versions(const struct tpo_peers *p, int i, uint64_t out[TPO_PEER_VERSIONS_MAX])
{
    const struct peer *x = p->peers[i];
    for (int k = 0; k < x->n_versions; k++) out[k] = x->versions[k];
    return x->n_versions;
}

/* 2: it holds the version; 1: it may; 0: it does not. */
static int holds(const struct peer *x, const char *version)
{
    const uint64_t number = version != NULL ? strtoull(version, NULL, 10) : 0;
    if (version == NULL || x->n_versions < 0) return 1;
    for (int k = 0; k < x->n_versions; k++)
        if (x->versions[k] == number) return 2;
    return 0;
}

/* Serving before unknown before the rest; then who holds the version before who may; among equals, by the set's rule. */
struct peer *tpo_peer_pick(struct tpo_peers *p, const char *key, const char *version, const struct peer *except)
{
    static const int health_rank[] = {[PEER_SERVING] = 6, [PEER_UNKNOWN] = 3, [PEER_NOT_SERVING] = 0};
    struct peer *best = NULL;
    uint64_t best_score = 0;
    int best_rank = 0;
    p->turn++;
    for (int i = 0; i < p->n_peers; i++) {
        struct peer *x = p->peers[(p->turn + (uint64_t)i) % (uint64_t)p->n_peers];
        uint64_t score = p->pick == TPO_PICK_HASH && key != NULL ? hash_text(x->hash, key) : UINT64_MAX - (uint64_t)x->in_flight;
        const int held = holds(x, version), rank = health_rank[x->health] + held;
        if (x == except || held == 0) continue;
        bool better = best == NULL || rank > best_rank || (rank == best_rank && score > best_score);
        if (better) best = x, best_score = score, best_rank = rank;
    }
    return best;
}
