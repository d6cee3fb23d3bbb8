/* This file owns what all requests share. */
#include "gateway/gateway.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "gateway/request.h"
#include "gateway/versions.h"
#include "status.pb-c.h"

static void on_wake(uv_async_t *async)
{
    struct tpo_gateway *g = async->data;
    if (g->rpc != NULL) tpo_loop_poll(g->rpc);
}

/* Any thread. */
static void wake(void *arg)
{
    uv_async_send(&((struct tpo_gateway *)arg)->wake);
}

static int open_head(struct tpo_gateway *g, const char *text, struct tpo_error *err)
{
    const char *equals = strchr(text, '=');
    struct tpo_head *h = &g->heads[g->n_heads];
    if (equals == NULL || equals == text || equals[1] == '\0' || (size_t)(equals - text) >= sizeof(h->name))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "head", "--head %s: NAME=ADDRESS,... expected", text);
    snprintf(h->name, sizeof(h->name), "%.*s", (int)(equals - text), text);
    if (tpo_gateway_head(g, h->name) != NULL)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "head", "--head %s is given twice; list all its addresses in one", h->name);
    int rc = tpo_peers_open(&h->peers, g->rpc, h->name, equals + 1, TPO_PICK_HASH, err);
    if (rc == TPO_OK) g->n_heads++;
    return rc;
}

static void describe_metrics(struct tpo_metrics *m)
{
    static const char *const rows[][2] = {
        {"tpo_requests_accepted_total", "Requests that were admitted; each ends as one of tpo_requests_total."},
        {"tpo_requests_total", "Requests that ended, by gRPC code."},
        {"tpo_admission_rejected_total", "Requests that were turned away before they were accepted."},
        {"tpo_requests_running", "Requests being worked on."},
        {"tpo_requests_waiting", "Requests that wait for their turn."},
        {"tpo_request_bytes", "Bytes of requests in memory, inline media until they are stored."},
        {"tpo_request_duration_seconds", "From acceptance to the end."},
        {"tpo_queue_duration_seconds", "From acceptance to the start of work."},
        {"tpo_time_to_first_token_seconds", "From acceptance to the first text."},
        {"tpo_http_answers_total", "HTTP answers by path and status."},
        {"tpo_media_bytes", "Bytes of media stored."},
        {"tpo_media_put_total", "Files sent to a service that lacked them."},
        {"tpo_version", "The newest version of the weights: that a service holds; that requests get, where stage is gateway."},
        {"tpo_peer_up", "1 when the peer says it is SERVING."},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) tpo_metrics_help(m, rows[i][0], rows[i][1]);
}

int tpo_gateway_open(struct tpo_gateway **out, uv_loop_t *loop, const struct tpo_gateway_settings *s, struct tpo_error *err)
{
    struct tpo_gateway *g = calloc(1, sizeof(*g));
    if (g == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    g->loop = loop;
    g->s = *s;
    g->wake.data = g;
    uv_async_init(loop, &g->wake, on_wake);
    int rc = tpo_metrics_open(&g->metrics, err);
    if (rc == TPO_OK) rc = tpo_admission_open(&g->admission, s->running_max, s->waiting_max, err);
    if (rc == TPO_OK) rc = tpo_media_store_open(&g->media, loop, &s->media, err);
    if (rc == TPO_OK) rc = tpo_loop_open(&g->rpc, wake, g, err);
    if (rc == TPO_OK) rc = tpo_peers_open(&g->encoder, g->rpc, "encoder", s->encoder, TPO_PICK_HASH, err);
    if (rc == TPO_OK) rc = tpo_peers_open(&g->router, g->rpc, "router", s->router, TPO_PICK_LEAST, err);
    for (int i = 0; rc == TPO_OK && i < s->n_heads; i++) rc = open_head(g, s->heads[i], err);
    if (rc == TPO_OK) rc = tpo_version_watch_open(&g->versions, g, err);
    if (rc != TPO_OK) {
        tpo_gateway_close(g);
        return rc;
    }
    describe_metrics(g->metrics);
    *out = g;
    return TPO_OK;
}

static void on_closed(uv_handle_t *handle)
{
    struct tpo_gateway *g = handle->data;
    tpo_admission_close(g->admission);
    tpo_metrics_close(g->metrics);
    free(g);
}

void tpo_gateway_close(struct tpo_gateway *g)
{
    if (g == NULL) return;
    g->closing = true;
    tpo_gateway_hold(g);
    for (struct tpo_request *r = g->requests, *next; r != NULL; r = next) {
        next = tpo_request_next(r);
        tpo_request_cancel(r);
    }
    for (int i = 0; i < g->n_heads; i++) tpo_peers_close(g->heads[i].peers);
    if (g->router != NULL) tpo_peers_close(g->router);
    if (g->encoder != NULL) tpo_peers_close(g->encoder);
    if (g->rpc != NULL) tpo_loop_close(g->rpc);
    g->rpc = NULL;
    tpo_version_watch_close(g->versions);
    tpo_media_store_close(g->media);
    g->media = NULL;
    tpo_gateway_release(g);
}

void tpo_gateway_hold(struct tpo_gateway *g)
{
    g->refs++;
}

void tpo_gateway_release(struct tpo_gateway *g)
{
    if (--g->refs == 0 && g->closing) uv_close((uv_handle_t *)&g->wake, on_closed);
}

bool tpo_gateway_ready(const struct tpo_gateway *g)
{
    return tpo_peers_ready(g->encoder) > 0 && tpo_peers_ready(g->router) > 0;
}

const struct tpo_head *tpo_gateway_head(const struct tpo_gateway *g, const char *task)
{
    for (int i = 0; i < g->n_heads; i++)
        if (strcmp(g->heads[i].name, task) == 0) return &g->heads[i];
    return NULL;
}

struct tpo_peers *tpo_gateway_peers(const struct tpo_gateway *g, int i)
{
    if (i == 0) return g->encoder;
    if (i == 1) return g->router;
    return i - 2 < g->n_heads ? g->heads[i - 2].peers : NULL;
}

int tpo_gateway_take_body(struct tpo_gateway *g, uint64_t bytes, struct tpo_error *err)
{
    if (g->body_bytes + bytes <= g->s.bodies_max_bytes) {
        g->body_bytes += bytes;
        return TPO_OK;
    }
    tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "bodies_full", "too much of requests in memory just now; send media by POST /v1/media");
    err->retry_ms = 1000;
    return err->code;
}

void tpo_gateway_ready_json(const struct tpo_gateway *g, struct tpo_text *out)
{
    const char *comma = "";
    tpo_text_printf(out, "{\"ready\":%s,\"peers\":[", tpo_gateway_ready(g) ? "true" : "false");
    struct tpo_peers *p;
    for (int i = 0; (p = tpo_gateway_peers(g, i)) != NULL; i++) {
        for (int k = 0; k < tpo_peers_count(p); k++) {
            bool serving;
            const char *address = tpo_peers_address(p, k, &serving);
            tpo_text_printf(out, "%s{\"stage\":\"%s\",\"address\":\"%s\",\"serving\":%s}", comma, tpo_peers_stage(p), address,
                            serving ? "true" : "false");
            comma = ",";
        }
    }
    tpo_text_puts(out, "],\"missingHeads\":[");
    comma = "";
    for (int i = 0; i < g->n_heads; i++) {
        if (tpo_peers_ready(g->heads[i].peers) > 0) continue;
        tpo_text_printf(out, "%s\"%s\"", comma, g->heads[i].name);
        comma = ",";
    }
    tpo_text_puts(out, "]}");
}

/* --- /metrics: one Status call per peer, then the text ----------------------------------------------------------------------------- */

struct scrape {
    struct tpo_gateway *g;
    struct tpo_metrics *peers; /* a table of this scrape alone, so that what a peer no longer tells is gone */
    int waiting;
    void (*on_text)(void *owner, const struct tpo_text *text);
    void *owner;
    uv_timer_t later;
};

static void add_labels(struct tpo_text *out, const Tpo__V1__Counter *c, const char *stage, const char *instance)
{
    char part[320];
    tpo_text_puts(out, tpo_metrics_labels(part, sizeof(part), "stage", stage, "instance", instance, NULL));
    for (size_t i = 0; i < c->n_labels; i++) {
        char key[64];
        const char *equals = strchr(c->labels[i], '=');
        if (equals == NULL || (size_t)(equals - c->labels[i]) >= sizeof(key)) continue;
        snprintf(key, sizeof(key), "%.*s", (int)(equals - c->labels[i]), c->labels[i]);
        if (key[0] == '\0' || key[strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789_")] != '\0') continue;
        tpo_metrics_labels(part, sizeof(part), key, equals + 1, NULL);
        if (part[0] != '\0') tpo_text_printf(out, ",%s", part);
    }
}

static size_t base_length(const char *name, const char *suffix)
{
    const size_t n = strlen(name), n_suffix = strlen(suffix);
    return n > n_suffix && strcmp(name + n - n_suffix, suffix) == 0 ? n - n_suffix : 0;
}

/* A service tells a histogram as its sum and then its count (tpo_metrics_each). Both are samples of one family, which our own histogram has too:
 * as counters they would be families beside it with names of its samples, and a strict parser refuses that. Half of a pair tells nothing and is
 * dropped. */
static void take_counter(struct scrape *s, const Tpo__V1__Counter *c, const Tpo__V1__Counter *next, const char *labels)
{
    char name[64];
    const size_t length = base_length(c->name, "_sum");
    if (c->gauge || (length == 0 && base_length(c->name, "_count") == 0)) {
        (c->gauge ? tpo_metrics_set : tpo_metrics_total)(s->peers, c->name, labels, c->value);
    } else if (length > 0 && length < sizeof(name) && next != NULL && base_length(next->name, "_count") == length &&
               memcmp(next->name, c->name, length) == 0 && next->value >= 0 && next->value < 0x1p63) {
        snprintf(name, sizeof(name), "%.*s", (int)length, c->name);
        tpo_metrics_summed(s->peers, name, labels, c->value, (uint64_t)next->value);
    }
}

static void on_status(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct scrape *s = owner;
    const Tpo__V1__StatusReply *reply = (Tpo__V1__StatusReply *)message;
    struct tpo_text labels = {0};
    for (size_t i = 0; i < reply->n_counters; i++) {
        const Tpo__V1__Counter *c = reply->counters[i];
        if (strncmp(c->name, "tpo_", 4) != 0 || c->name[strspn(c->name, "abcdefghijklmnopqrstuvwxyz0123456789_")] != '\0') continue;
        tpo_text_reset(&labels);
        add_labels(&labels, c, reply->stage, tpo_rpc_peer(r));
        if (!labels.failed) take_counter(s, c, i + 1 < reply->n_counters ? reply->counters[i + 1] : NULL, labels.data);
    }
    tpo_text_free(&labels);
    protobuf_c_message_free_unpacked(message, NULL);
    if (payload != NULL) tpo_payload_free(payload);
}

static void on_scrape_freed(uv_handle_t *handle)
{
    struct scrape *s = handle->data;
    tpo_metrics_close(s->peers);
    tpo_gateway_release(s->g);
    free(s);
}

static void finish_scrape(struct scrape *s)
{
    struct tpo_gateway *g = s->g;
    struct tpo_text text = {0};
    char labels[320];
    if (!g->closing) tpo_metrics_set(g->metrics, "tpo_media_bytes", "", (double)tpo_media_store_bytes(g->media));
    tpo_metrics_set(g->metrics, "tpo_request_bytes", "", (double)g->body_bytes);
    tpo_metrics_set(g->metrics, "tpo_requests_running", "stage=\"gateway\"", tpo_admission_running(g->admission));
    tpo_metrics_set(g->metrics, "tpo_requests_waiting", "stage=\"gateway\"", tpo_admission_waiting(g->admission));
    struct tpo_peers *p;
    for (int i = 0; !g->closing && (p = tpo_gateway_peers(g, i)) != NULL; i++) {
        for (int k = 0; k < tpo_peers_count(p); k++) {
            bool serving;
            const char *address = tpo_peers_address(p, k, &serving);
            tpo_metrics_labels(labels, sizeof(labels), "stage", tpo_peers_stage(p), "instance", address, NULL);
            tpo_metrics_set(g->metrics, "tpo_peer_up", labels, serving);
        }
    }
    /* One name may stand in one block of the text alone, so ours go into the same table. */
    tpo_metrics_merge(s->peers, g->metrics);
    tpo_metrics_render(s->peers, &text);
    s->on_text(s->owner, &text);
    tpo_text_free(&text);
    uv_close((uv_handle_t *)&s->later, on_scrape_freed);
}

static void on_later(uv_timer_t *timer)
{
    finish_scrape(timer->data);
}

static void scrape_done(struct scrape *s)
{
    if (--s->waiting == 0) uv_timer_start(&s->later, on_later, 0, 0);
}

static void on_status_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r, (void)status, (void)err; /* tpo_peer_up tells */
    scrape_done(owner);
}

void tpo_gateway_metrics(struct tpo_gateway *g, void (*on_text)(void *owner, const struct tpo_text *text), void *owner)
{
    struct scrape *s = calloc(1, sizeof(*s));
    TPO_ASSERT(s != NULL && tpo_metrics_open(&s->peers, NULL) == TPO_OK);
    s->g = g;
    s->on_text = on_text;
    s->owner = owner;
    s->later.data = s;
    s->waiting = 1;
    tpo_gateway_hold(g);
    uv_timer_init(g->loop, &s->later);
    const Tpo__V1__StatusRequest ask = TPO__V1__STATUS_REQUEST__INIT;
    const struct tpo_rpc_events events = {.owner = s, .on_message = on_status, .on_done = on_status_done};
    struct tpo_peers *p;
    for (int i = 0; (p = tpo_gateway_peers(g, i)) != NULL; i++) {
        for (int k = 0; k < tpo_peers_count(p); k++) {
            bool serving;
            tpo_peers_address(p, k, &serving);
            if (!serving) continue;
            struct tpo_rpc_start start = {.path = "/tpo.v1.Status/Get",
                                          .reply = &tpo__v1__status_reply__descriptor,
                                          .timeout_ms = 1000,
                                          .peer = tpo_peers_id(p, k)};
            s->waiting++;
            if (tpo_rpc_open(p, &start, &ask.base, NULL, &events, NULL) == NULL) s->waiting--;
        }
    }
    scrape_done(s);
}
