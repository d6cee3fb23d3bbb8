/* This file owns the gateway's process: settings, doors, signals, and leaving in order. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/settings.h"
#include "gateway/door_grpc.h"
#include "gateway/door_http.h"
#include "gateway/request.h"
#include "gateway/routes.h"

static struct {
    const char *http, *grpc, *encoder, *router, *media_dir, *port_file, *log_level;
    struct tpo_setting_list heads;
    int64_t media_bytes, media_files, media_file_bytes, media_ttl, running, waiting, timeout, timeout_max, version_poll, tokens,
        text_bytes, body_bytes, bodies_bytes, drain;
} set;

static const struct tpo_setting rows[] = {
    {"http", TPO_SET_TEXT, &set.http, "127.0.0.1:8420", .what = "ADDRESS",
     .help = "where REST is offered; port 0 takes a free one"},
    {"grpc", TPO_SET_TEXT, &set.grpc, "127.0.0.1:8421", .what = "ADDRESS",
     .help = "where gRPC is offered; port 0 takes a free one"},
    {"port-file", TPO_SET_TEXT, &set.port_file, "", .what = "FILE",
     .help = "write the two ports there, HTTP's and gRPC's, once both listen"},
    {"encoder", TPO_SET_TEXT, &set.encoder, "127.0.0.1:8430", .what = "ADDRESS,...",
     .help = "the encoders; equal media goes to the same one"},
    {"router", TPO_SET_TEXT, &set.router, "127.0.0.1:8440", .what = "ADDRESS,...",
     .help = "the routers; a request goes to the one with the fewest in flight"},
    {"head", TPO_SET_LIST, &set.heads, "region=127.0.0.1:8450", .what = "NAME=ADDRESS,...",
     .help = "the heads that serve the task NAME; may be repeated"},
    {"media-dir", TPO_SET_TEXT, &set.media_dir, "build/run/media", .what = "DIR",
     .help = "where uploads are kept; gateways may share one"},
    {"media-bytes", TPO_SET_BYTES, &set.media_bytes, "4G", .min = 1048576, .max = 1e15,
     .help = "of all files there; the least recently used go first"},
    {"media-files", TPO_SET_INT, &set.media_files, "65536", .min = 1, .max = 1e7,
     .help = "how many there may be; the least recently used go first"},
    {"media-file-bytes", TPO_SET_BYTES, &set.media_file_bytes, "1G", .min = 1024, .max = 1e12, .help = "of one file"},
    {"media-ttl", TPO_SET_MS, &set.media_ttl, "24h", .min = 1000, .max = 1e12, .help = "a file not used for this long is removed"},
    {"running", TPO_SET_INT, &set.running, "64", .min = 1, .max = 65536, .help = "requests worked on at once"},
    {"waiting", TPO_SET_INT, &set.waiting, "256", .min = 0, .max = 65536,
     .help = "requests that may wait; one more is refused with 429"},
    {"timeout", TPO_SET_MS, &set.timeout, "60s", .min = 1, .max = 86400000, .help = "of a request that names none"},
    {"timeout-max", TPO_SET_MS, &set.timeout_max, "10m", .min = 1, .max = 86400000, .help = "the longest a request may name"},
    {"version-poll", TPO_SET_MS, &set.version_poll, "1s", .min = 10, .max = 60000,
     .help = "how often the peers are asked which versions of the weights they hold"},
    {"tokens-max", TPO_SET_INT, &set.tokens, "4096", .min = 1, .max = 1000000, .help = "the most new tokens a request may ask for"},
    {"text-bytes", TPO_SET_BYTES, &set.text_bytes, "32K", .min = 1, .max = 16777216, .help = "of one turn"},
    {"body-bytes", TPO_SET_BYTES, &set.body_bytes, "32M", .min = 1024, .max = 1073741824,
     .help = "of one request, JSON or gRPC, media within it included"},
    {"bodies-bytes", TPO_SET_BYTES, &set.bodies_bytes, "256M", .min = 1024, .max = 1e12,
     .help = "of all requests in memory at once, inline media until they are stored"},
    {"drain", TPO_SET_MS, &set.drain, "10s", .min = 0, .max = 600000, .help = "how long requests under way have after SIGTERM"},
    {"log-level", TPO_SET_TEXT, &set.log_level, "info", .choices = "debug|info|warn|error", .help = "what is logged, on stdout"},
};

static const struct tpo_settings settings = {
    .program = "tpo-gateway",
    .about =
        "The one door of the mesh: REST and gRPC in, calls to encoder, router and heads out, one answer back. It starts with every "
        "peer down and finds them when they come.",
    .examples = "tpo-gateway --encoder 127.0.0.1:8430,127.0.0.1:8431 --router 127.0.0.1:8440 --head region=127.0.0.1:8450\n"
                "curl -s 127.0.0.1:8420/readyz",
    .rows = rows,
    .n_rows = sizeof(rows) / sizeof(rows[0]),
};

static struct {
    uv_loop_t loop;
    uv_signal_t terminate, interrupt, tell;
    uv_timer_t drain;
    struct tpo_gateway *g;
    struct tpo_http_door *http;
    struct tpo_grpc_door *grpc;
    struct tpo_http_route routes[TPO_ROUTES];
    bool stopping, grpc_drained;
    uint64_t stop_at;
} own;

/* --- leaving: no new requests, what is under way ends or is ended, then every handle closes and the loop runs out --------------------------- */

static void close_all(void)
{
    tpo_grpc_door_close(own.grpc);
    tpo_http_door_close(own.http);
    tpo_gateway_close(own.g);
    uv_close((uv_handle_t *)&own.terminate, NULL);
    uv_close((uv_handle_t *)&own.interrupt, NULL);
    uv_close((uv_handle_t *)&own.tell, NULL);
    uv_close((uv_handle_t *)&own.drain, NULL);
}

static void on_drain_tick(uv_timer_t *timer)
{
    bool late = uv_now(&own.loop) >= own.stop_at;
    if (!own.grpc_drained || (!late && tpo_http_door_connections(own.http) > 0)) return;
    uv_timer_stop(timer);
    close_all();
}

static void on_grpc_drained(void *owner)
{
    (void)owner;
    own.grpc_drained = true;
}

static void on_stop(uv_signal_t *handle, int number)
{
    (void)handle;
    if (own.stopping) return;
    own.stopping = true;
    tpo_log(TPO_LOG_INFO, "stop", "signal=%d connections=%d", number, tpo_http_door_connections(own.http));
    own.stop_at = uv_now(&own.loop) + (uint64_t)set.drain;
    tpo_http_door_drain(own.http);
    tpo_grpc_door_drain(own.grpc, (int)set.drain, on_grpc_drained, NULL);
    uv_timer_start(&own.drain, on_drain_tick, 10, 20);
}

static void on_tell(uv_signal_t *handle, int number)
{
    (void)handle, (void)number;
    tpo_log(TPO_LOG_INFO, "state", "connections=%d running=%d waiting=%d media_files=%d media_bytes=%llu ready=%d",
            tpo_http_door_connections(own.http), tpo_admission_running(own.g->admission), tpo_admission_waiting(own.g->admission),
            tpo_media_store_files(own.g->media), (unsigned long long)tpo_media_store_bytes(own.g->media), tpo_gateway_ready(own.g));
}

/* --- starting ------------------------------------------------------------------------------------------------------------------------- */

static int open_http(struct tpo_error *err)
{
    char host[64];
    const char *colon = strrchr(set.http, ':');
    if (colon == NULL || (size_t)(colon - set.http) >= sizeof(host))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "http", "--http %s: HOST:PORT expected", set.http);
    snprintf(host, sizeof(host), "%.*s", (int)(colon - set.http), set.http);
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (*end != '\0' || end == colon + 1 || port < 0 || port > 65535)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "http", "--http %s: HOST:PORT expected", set.http);
    struct tpo_http_settings s = {
        .host = host, .port = (int)port, .routes = own.routes, .owner = own.g, .on_answer = tpo_routes_on_answer};
    return tpo_http_door_open(&own.http, &own.loop, &s, err);
}

static int write_ports(struct tpo_error *err)
{
    int http = tpo_http_door_port(own.http), grpc = tpo_grpc_door_port(own.grpc);
    tpo_log(TPO_LOG_INFO, "listening", "http=%d grpc=%d", http, grpc);
    if (set.port_file[0] == '\0') return TPO_OK;
    /* Whole or not there at all: whoever waits for the file reads it at once. */
    char part[4096];
    snprintf(part, sizeof(part), "%s.part", set.port_file);
    FILE *f = fopen(part, "w");
    if (f == NULL || fprintf(f, "%d %d\n", http, grpc) < 0 || fclose(f) != 0 || rename(part, set.port_file) != 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "port_file", "--port-file %s can't be written", set.port_file);
    return TPO_OK;
}

static int open_all(struct tpo_error *err)
{
    struct tpo_gateway_settings s = {
        .encoder = set.encoder,
        .router = set.router,
        .n_heads = set.heads.n < TPO_GATEWAY_HEADS_MAX ? set.heads.n : TPO_GATEWAY_HEADS_MAX,
        .media = {.dir = set.media_dir,
                  .budget_bytes = (uint64_t)set.media_bytes,
                  .files_max = (int)set.media_files,
                  .file_max_bytes = (uint64_t)set.media_file_bytes,
                  .ttl_s = (int)(set.media_ttl / 1000)},
        .running_max = (int)set.running,
        .waiting_max = (int)set.waiting,
        .timeout_ms = (int)set.timeout,
        .timeout_max_ms = (int)set.timeout_max,
        .version_poll_ms = (int)set.version_poll,
        .tokens_max = (uint32_t)set.tokens,
        .text_max_bytes = (size_t)set.text_bytes,
        .body_max_bytes = (uint64_t)set.body_bytes,
        .bodies_max_bytes = (uint64_t)set.bodies_bytes,
    };
    for (int i = 0; i < s.n_heads; i++) s.heads[i] = set.heads.items[i];
    int rc = tpo_gateway_open(&own.g, &own.loop, &s, err);
    if (rc != TPO_OK) return rc;
    tpo_routes_fill(own.routes, &own.g->s);
    rc = open_http(err);
    if (rc == TPO_OK) rc = tpo_grpc_door_open(&own.grpc, own.g, set.grpc, err);
    if (rc == TPO_OK) rc = write_ports(err);
    return rc;
}

int main(int argc, char **argv)
{
    struct tpo_error err = {0};
    int rc = tpo_settings_read(&settings, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc != TPO_OK) {
        fprintf(stderr, "tpo-gateway: %s\n", err.message);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    tpo_log_open("gateway", (enum tpo_log_level)tpo_log_level_parse(set.log_level));
    tpo_settings_log(&settings);
    uv_loop_init(&own.loop);
    rc = open_all(&err);
    if (rc != TPO_OK) {
        fprintf(stderr, "tpo-gateway: %s\n", err.message);
        return 1;
    }
    uv_timer_init(&own.loop, &own.drain);
    uv_signal_init(&own.loop, &own.terminate);
    uv_signal_init(&own.loop, &own.interrupt);
    uv_signal_init(&own.loop, &own.tell);
    uv_signal_start(&own.terminate, on_stop, SIGTERM);
    uv_signal_start(&own.interrupt, on_stop, SIGINT);
    uv_signal_start(&own.tell, on_tell, SIGUSR1);
    uv_run(&own.loop, UV_RUN_DEFAULT);
    uv_loop_close(&own.loop);
    tpo_log(TPO_LOG_INFO, "stopped", "%s", "");
    return 0;
}
