/* gateway.h -- what all requests of one gateway share: its loop, its peers, its media, its limits, its counters.
 *
 * All of it belongs to the loop's thread. */
#ifndef TPO_GATEWAY_GATEWAY_H
#define TPO_GATEWAY_GATEWAY_H

#include <stdint.h>
#include <uv.h>

#include "common/metrics.h"
#include "common/rpc/client.h"
#include "gateway/admission.h"
#include "gateway/media_store.h"

#define TPO_GATEWAY_HEADS_MAX 16

struct tpo_gateway_settings {
    const char *encoder, *router;             /* addresses, as tpo_peers_open takes them */
    const char *heads[TPO_GATEWAY_HEADS_MAX]; /* "NAME=ADDRESS,..." */
    int n_heads;
    struct tpo_media_settings media;
    int running_max, waiting_max;
    int timeout_ms, timeout_max_ms;            /* of a request that names none, and the longest one may name */
    int version_poll_ms;                       /* between two looks at what versions the peers hold */
    uint32_t tokens_max;                       /* of max_new_tokens */
    size_t text_max_bytes;                     /* of one turn */
    uint64_t body_max_bytes, bodies_max_bytes; /* of one request, of all that are in memory at once */
};

struct tpo_head {
    char name[32];
    struct tpo_peers *peers;
};

struct tpo_gateway {
    uv_loop_t *loop;
    uv_async_t wake;
    struct tpo_gateway_settings s;
    struct tpo_loop *rpc;
    struct tpo_peers *encoder, *router;
    struct tpo_head heads[TPO_GATEWAY_HEADS_MAX];
    int n_heads;
    struct tpo_media_store *media;
    struct tpo_metrics *metrics;
    struct tpo_admission *admission;
    struct tpo_version_watch *versions;
    struct tpo_request *requests; /* all that aren't freed yet */
    int refs;                     /* of requests and scrapes: g outlives them */
    bool closing;
    uint64_t body_bytes; /* of requests in memory: bodies until they are read, then messages, inline media included until stored */
};

/* Peers may all be down. INVALID_ARGUMENT "head" for a --head that isn't NAME=ADDRESS. */
int tpo_gateway_open(struct tpo_gateway **out, uv_loop_t *loop, const struct tpo_gateway_settings *s, struct tpo_error *err);
/* Ends every request with CANCELLED first. Freed when the loop has run the close callbacks; accepts NULL. */
void tpo_gateway_close(struct tpo_gateway *g);
void tpo_gateway_hold(struct tpo_gateway *g);
void tpo_gateway_release(struct tpo_gateway *g);
struct tpo_peers *tpo_gateway_peers(const struct tpo_gateway *g, int i); /* encoder, router, heads; NULL past the last */
bool tpo_gateway_ready(const struct tpo_gateway *g);                     /* an encoder and a router serve */
const struct tpo_head *tpo_gateway_head(const struct tpo_gateway *g, const char *task); /* NULL: none */

/* Takes `bytes` into g->body_bytes, the caller's to give back. RESOURCE_EXHAUSTED "bodies_full" where they do not fit. */
int tpo_gateway_take_body(struct tpo_gateway *g, uint64_t bytes, struct tpo_error *err);
/* {"ready":true,"peers":[{"stage":...,"address":...,"serving":...}],"missingHeads":[...]} */
void tpo_gateway_ready_json(const struct tpo_gateway *g, struct tpo_text *out);
/* Asks every peer for its Status (a second at most) and writes all metrics, theirs with the labels stage and instance. on_text
 * comes once, later; cancel by closing the gateway only. */
void tpo_gateway_metrics(struct tpo_gateway *g, void (*on_text)(void *owner, const struct tpo_text *text), void *owner);

#endif
