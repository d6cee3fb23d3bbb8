/* This file owns what the gateway knows of its peers' versions. */
#include "gateway/versions.h"

#include <stdlib.h>
#include <string.h>

#include "status.pb-c.h"

#define STATUS_MS 1000

struct tpo_version_watch {
    struct tpo_gateway *g;
    uv_timer_t timer, later;
    int n_asked;                             /* answers to come; > 0: a round is under way */
    struct tpo_version_wait *waiting, *next; /* for this round; for one that begins after it */
};

/* A Status call of one peer's. */
struct ask {
    struct tpo_version_watch *w;
    struct tpo_peers *peers;
};

static void ask_all(struct tpo_version_watch *w);

static void tell(struct tpo_version_wait *list)
{
    for (struct tpo_version_wait *x = list, *next; x != NULL; x = next) {
        next = x->next;
        x->on_known(x->owner);
    }
}

static void round_done(struct tpo_version_watch *w)
{
    struct tpo_version_wait *list = w->waiting;
    w->waiting = w->next;
    w->next = NULL;
    if (w->waiting != NULL) ask_all(w);
    tell(list);
}

static void on_status(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct ask *a = owner;
    const Tpo__V1__StatusReply *reply = (Tpo__V1__StatusReply *)message;
    if (reply->ready && reply->n_versions > 0)
        tpo_peers_set_versions(a->peers, tpo_rpc_peer_id(r), reply->versions, (int)reply->n_versions);
    protobuf_c_message_free_unpacked(message, NULL);
    if (payload != NULL) tpo_payload_free(payload);
}

static void on_status_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r, (void)status, (void)err;
    struct ask *a = owner;
    struct tpo_version_watch *w = a->w;
    free(a);
    if (--w->n_asked == 0) round_done(w);
}

static void on_later(uv_timer_t *timer)
{
    struct tpo_version_watch *w = timer->data;
    if (--w->n_asked == 0) round_done(w);
}

static void ask_peer(struct tpo_version_watch *w, struct tpo_peers *p, int i)
{
    const Tpo__V1__StatusRequest q = TPO__V1__STATUS_REQUEST__INIT;
    const struct tpo_rpc_start start = {.path = "/tpo.v1.Status/Get",
                                        .reply = &tpo__v1__status_reply__descriptor,
                                        .timeout_ms = STATUS_MS,
                                        .peer = tpo_peers_id(p, i)};
    struct ask *a = calloc(1, sizeof(*a));
    const struct tpo_rpc_events on = {.owner = a, .on_message = on_status, .on_done = on_status_done};
    if (a == NULL) return;
    a->w = w;
    a->peers = p;
    if (tpo_rpc_open(p, &start, &q.base, NULL, &on, NULL) != NULL)
        w->n_asked++;
    else
        free(a);
}

/* A round. Peers that are not known to serve are asked, too: a process that was started again answers calls before its health has
 * been heard. It counts one answer more, the later timer's, so that it never ends from within. While the peers are being closed
 * nobody is asked. */
static void ask_all(struct tpo_version_watch *w)
{
    struct tpo_peers *p;
    w->n_asked = 1;
    uv_timer_start(&w->later, on_later, 0, 0);
    for (int i = 0; !w->g->closing && (p = tpo_gateway_peers(w->g, i)) != NULL; i++)
        for (int k = 0; k < tpo_peers_count(p); k++) ask_peer(w, p, k);
}

static void on_timer(uv_timer_t *timer)
{
    struct tpo_version_watch *w = timer->data;
    if (w->n_asked == 0) ask_all(w);
}

void tpo_version_ask(struct tpo_version_watch *w, struct tpo_version_wait *wait)
{
    /* The answers of a round under way may be from before what made the caller ask. */
    struct tpo_version_wait **list = w->n_asked > 0 ? &w->next : &w->waiting;
    wait->next = *list;
    *list = wait;
    if (w->n_asked == 0) ask_all(w);
}

int tpo_version_watch_open(struct tpo_version_watch **out, struct tpo_gateway *g, struct tpo_error *err)
{
    struct tpo_version_watch *w = *out = calloc(1, sizeof(*w));
    const uint64_t every = g->s.version_poll_ms > 0 ? (uint64_t)g->s.version_poll_ms : 1000;
    if (w == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    w->g = g;
    uv_timer_init(g->loop, &w->timer);
    uv_timer_init(g->loop, &w->later);
    w->timer.data = w->later.data = w;
    tpo_gateway_hold(g);
    uv_timer_start(&w->timer, on_timer, every < 50 ? every : 50, every);
    return TPO_OK;
}

static void on_later_closed(uv_handle_t *handle)
{
    struct tpo_version_watch *w = handle->data;
    tpo_gateway_release(w->g);
    free(w);
}

static void on_timer_closed(uv_handle_t *handle)
{
    uv_close((uv_handle_t *)&((struct tpo_version_watch *)handle->data)->later, on_later_closed);
}

void tpo_version_watch_close(struct tpo_version_watch *w)
{
    if (w == NULL) return;
    struct tpo_version_wait *waiting = w->waiting, *next = w->next;
    w->waiting = w->next = NULL;
    tell(waiting);
    tell(next);
    uv_timer_stop(&w->later);
    uv_close((uv_handle_t *)&w->timer, on_timer_closed);
}

/* --- the choice -------------------------------------------------------------------------------------------------------------------- */

/* 1: a peer holds it; 0: those that told don't; -1: none has told. */
static int set_holds(const struct tpo_peers *p, uint64_t version)
{
    uint64_t held[TPO_PEER_VERSIONS_MAX];
    int answer = -1;
    for (int i = 0; i < tpo_peers_count(p); i++) {
        int n = tpo_peers_versions(p, i, held);
        if (n >= 0 && answer < 0) answer = 0;
        for (int k = 0; k < n; k++)
            if (held[k] == version) return 1;
    }
    return answer;
}

/* The newest version below `below` that a set's peers told of. */
static bool newest_below(const struct tpo_peers *p, uint64_t below, uint64_t *out)
{
    uint64_t held[TPO_PEER_VERSIONS_MAX];
    bool found = false;
    for (int i = 0; i < tpo_peers_count(p); i++) {
        int n = tpo_peers_versions(p, i, held);
        for (int k = 0; k < n; k++)
            if (held[k] < below && (!found || held[k] > *out)) *out = held[k], found = true;
    }
    return found;
}

/* Whether the request may call head `i`: without media none is called (services/router/task.h). */
static bool may_call(const struct tpo_head *head, const Tpo__V1__PerceiveRequest *q)
{
    if (q->n_media == 0) return false;
    return q->task[0] == '\0' || strcmp(q->task, "auto") == 0 || strcmp(q->task, head->name) == 0;
}

/* Sets in the order of tpo_gateway_peers: encoder, router, heads. Heads count where they are asked for. */
static bool counts(const struct tpo_gateway *g, const Tpo__V1__PerceiveRequest *q, bool heads, int i)
{
    return i == 0 ? q->n_media > 0 : i == 1 ? true : heads && may_call(&g->heads[i - 2], q);
}

static bool all_hold(const struct tpo_gateway *g, const Tpo__V1__PerceiveRequest *q, bool heads, uint64_t version)
{
    struct tpo_peers *p;
    for (int i = 0; (p = tpo_gateway_peers(g, i)) != NULL; i++)
        if (counts(g, q, heads, i) && set_holds(p, version) == 0) return false;
    return true;
}

/* What all hold, the first set that has told holds: its versions, from the newest down. */
static bool newest(const struct tpo_gateway *g, const Tpo__V1__PerceiveRequest *q, bool heads, uint64_t *out)
{
    struct tpo_peers *p, *first = NULL;
    uint64_t version = 0;
    for (int i = 0; first == NULL && (p = tpo_gateway_peers(g, i)) != NULL; i++)
        if (counts(g, q, heads, i) && set_holds(p, 0) >= 0) first = p;
    bool found = first == NULL;
    for (uint64_t below = UINT64_MAX; !found && newest_below(first, below, &version); below = version)
        found = all_hold(g, q, heads, version);
    *out = version;
    return found;
}

bool tpo_version_choose(struct tpo_version_watch *w, const Tpo__V1__PerceiveRequest *q, struct tpo_version_choice *out,
                        struct tpo_error *err)
{
    out->heads = newest(w->g, q, true, &out->number);
    if (!out->heads && !newest(w->g, q, false, &out->number)) {
        tpo_fail(err, TPO_UNAVAILABLE, "version",
                 "the services hold no version of the weights in common: the trainer must publish one");
        if (err != NULL) err->retry_ms = 1000;
        return false;
    }
    tpo_metrics_set(w->g->metrics, "tpo_version", "stage=\"gateway\"", (double)out->number);
    return true;
}

bool tpo_version_refused(struct tpo_peers *peers, int peer, uint64_t version)
{
    tpo_peers_drop_version(peers, peer, version);
    return set_holds(peers, version) == 1;
}
