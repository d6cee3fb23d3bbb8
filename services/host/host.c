/* This file owns a service process: its settings, its server, its signals, its end. */
#include "services/host/host.h"

#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/host/fault.h"
#include "services/host/host_private.h"
#include "services/host/learner_rpc.h"
#include "services/host/versions.h"
#include "status.pb-c.h"

/* What gRPC may hold over all calls. It looks at a message's length once the whole of it has come: without this bound one that is refused may still
 * take all memory there is. */
#define MESSAGES_ON_THE_WAY 8
#define MEMORY_SPARE        ((size_t)64 << 20) /* its own, and small messages */

const struct tpo_host_settings *tpo_host_settings(const struct tpo_host *h)
{
    return &h->settings;
}

struct tpo_metrics *tpo_host_metrics(struct tpo_host *h)
{
    return h->metrics;
}

void tpo_host_set_digest(struct tpo_host *h, const char *digest)
{
    snprintf(h->digest, sizeof(h->digest), "%s", digest);
}

const char *tpo_host_digest(const struct tpo_host *h)
{
    return h->digest;
}

struct tpo_versions *tpo_host_versions(struct tpo_host *h)
{
    return h->versions;
}

bool tpo_host_ready(const struct tpo_host *h)
{
    return h->state == TPO_HOST_READY;
}

/* --- Status -------------------------------------------------------------------------------------------------------------------------------- */

#define COUNTERS_MAX 512
#define LABELS_MAX   4

struct counters {
    Tpo__V1__Counter items[COUNTERS_MAX], *list[COUNTERS_MAX];
    char *labels[COUNTERS_MAX][LABELS_MAX], texts[COUNTERS_MAX][160];
    char names[COUNTERS_MAX][128]; /* a histogram's are made on the way and gone after the callback */
    size_t n;
};

/* `cache="encoder",result="hit"` becomes "cache=encoder" and "result=hit" in `text`, which is the wire's form; how many they are. */
static size_t split_labels(char **items, char *text, size_t size, const char *labels)
{
    size_t n = 0, at = 0;
    while (*labels != '\0' && n < LABELS_MAX) {
        size_t key = strcspn(labels, "=");
        if (labels[key] == '\0' || at + key + 2 >= size) break;
        items[n++] = text + at;
        memcpy(text + at, labels, key + 1);
        at += key + 1;
        for (labels += key + 2; *labels != '"' && *labels != '\0' && at + 1 < size; labels++) {
            bool escaped = *labels == '\\' && labels[1] != '\0';
            labels += escaped;
            text[at++] = escaped && *labels == 'n' ? '\n' : *labels;
        }
        text[at++] = '\0';
        labels += strcspn(labels, ",");
        labels += *labels == ',';
    }
    return n;
}

static void add_counter(void *owner, const char *name, const char *labels, double value, bool gauge)
{
    struct counters *c = owner;
    if (c->n == COUNTERS_MAX) return;
    Tpo__V1__Counter *item = &c->items[c->n];
    tpo__v1__counter__init(item);
    item->name = memcpy(c->names[c->n], name, strnlen(name, sizeof(c->names[0]) - 1));
    item->labels = c->labels[c->n];
    item->n_labels = split_labels(c->labels[c->n], c->texts[c->n], sizeof(c->texts[0]), labels);
    item->value = value;
    item->gauge = gauge;
    c->list[c->n++] = item;
}

void tpo_host_on_status(void *host, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct tpo_host *h = host;
    Tpo__V1__StatusReply reply = TPO__V1__STATUS_REPLY__INIT;
    struct counters *c = calloc(1, sizeof(*c));
    uint64_t versions[TPO_VERSIONS_HELD];
    tpo_payload_free(payload);
    protobuf_c_message_free_unpacked(message, NULL);
    if (c != NULL) {
        tpo_metrics_set(h->metrics, "tpo_requests_waiting", "", tpo_queue_length(h->queue));
        tpo_metrics_set(h->metrics, "tpo_requests_running", "", h->in_flight);
        tpo_metrics_each(h->metrics, add_counter, c);
        reply.counters = c->list;
        reply.n_counters = c->n;
    }
    reply.stage = (char *)h->service->stage;
    reply.ready = tpo_host_ready(h);
    reply.digest = reply.ready ? h->digest : "";
    reply.versions = versions;
    reply.n_versions = reply.ready ? (size_t)tpo_versions_list(h->versions, versions) : 0;
    reply.uptime_ms = (uint64_t)(tpo_now_us() - h->started_us) / 1000;
    reply.device = (char *)h->settings.device;
    tpo_call_send(call, &reply.base, NULL);
    tpo_call_finish(call, TPO_OK, NULL);
    free(c);
}

/* --- start ----------------------------------------------------------------------------------------------------------------------------------- */

static int build_methods(struct tpo_host *h)
{
    const struct tpo_host_service *s = h->service;
    h->methods = calloc((size_t)(s->n_methods + tpo_n_learner_methods + s->n_raw_methods + 1), sizeof(*h->methods));
    h->bindings = calloc((size_t)(s->n_methods + tpo_n_learner_methods) + 1, sizeof(*h->bindings));
    if (h->methods == NULL || h->bindings == NULL) return TPO_ENOMEM;
    for (int i = 0; i < s->n_methods + tpo_n_learner_methods; i++) {
        const struct tpo_host_method *m = i < s->n_methods ? &s->methods[i] : &tpo_learner_methods[i - s->n_methods];
        h->bindings[i] = (struct tpo_host_binding){h, m, i >= s->n_methods};
        h->methods[h->n_methods++] = (struct tpo_method){.path = m->path,
                                                         .request = m->request,
                                                         .payload = m->payload,
                                                         .on_message = tpo_host_on_message,
                                                         .owner = &h->bindings[i]};
    }
    for (int i = 0; i < s->n_raw_methods; i++) {
        h->methods[h->n_methods] = s->raw_methods[i];
        h->methods[h->n_methods++].owner = s->self;
    }
    h->methods[h->n_methods++] = (struct tpo_method){.path = "/tpo.v1.Status/Get",
                                                     .request = &tpo__v1__status_request__descriptor,
                                                     .on_message = tpo_host_on_status,
                                                     .owner = h};
    return TPO_OK;
}

/* Whoever waits for the file must never read half a number. */
static void write_port_file(const struct tpo_host *h, int port)
{
    char part[4096];
    if (h->settings.port_file[0] == '\0') return;
    snprintf(part, sizeof(part), "%s.part", h->settings.port_file);
    FILE *out = fopen(part, "w");
    bool ok = out != NULL && fprintf(out, "%d\n", port) > 0;
    if (out != NULL && fclose(out) != 0) ok = false;
    if (!ok || rename(part, h->settings.port_file) != 0) tpo_log(TPO_LOG_ERROR, "port_file", "errno=%m");
}

static int start(struct tpo_host *h, struct tpo_error *err)
{
    const struct tpo_host_service *s = h->service;
    h->started_us = tpo_now_us();
    int rc = tpo_metrics_open(&h->metrics, err);
    if (rc == TPO_OK) rc = tpo_versions_open(&h->versions, h->settings.version_hold_ms, h->metrics, err);
    if (rc == TPO_OK) rc = tpo_queue_open(&h->queue, (int)h->settings.queue + TPO_HOST_RESERVE);
    if (rc == TPO_OK) rc = build_methods(h);
    if (rc == TPO_OK && s->prepare != NULL) rc = s->prepare(s->self, h, err);
    struct tpo_server_options o = {.listen = h->settings.listen,
                                   .stage = s->stage,
                                   .message_bytes_max = (size_t)h->settings.max_message_bytes,
                                   .memory_bytes_max = MESSAGES_ON_THE_WAY * (size_t)h->settings.max_message_bytes + MEMORY_SPARE,
                                   .methods = h->methods,
                                   .n_methods = h->n_methods};
    if (rc == TPO_OK) rc = tpo_server_open(&h->server, &o, err);
    if (rc != TPO_OK) return rc;
    tpo_log(TPO_LOG_INFO, "listening", "port=%d", tpo_server_port(h->server));
    write_port_file(h, tpo_server_port(h->server));
    return pthread_create(&h->compute, NULL, tpo_host_compute, h) == 0 ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "thread", "no thread");
}

/* --- the end ---------------------------------------------------------------------------------------------------------------------------------- */

static void wait_for_signal(struct tpo_host *h, const sigset_t *signals)
{
    int number;
    while (sigwait(signals, &number) == 0 && number == SIGUSR1) {
        tpo_log(TPO_LOG_INFO, "state", "ready=%d calls=%d waiting=%d running=%d", tpo_host_ready(h), tpo_server_calls(h->server),
                tpo_queue_length(h->queue), h->in_flight);
        if (h->service->print_state != NULL) h->service->print_state(h->service->self);
    }
}

static int stop(struct tpo_host *h)
{
    bool failed = h->state == TPO_HOST_FAILED;
    if (!failed) {
        tpo_log(TPO_LOG_INFO, "draining", "calls=%d", tpo_server_calls(h->server));
        tpo_server_drain(h->server, (int)h->settings.drain_ms);
        h->state = TPO_HOST_DRAINING;
    }
    tpo_queue_end(h->queue);
    pthread_join(h->compute, NULL);
    tpo_server_close(h->server);
    tpo_log(TPO_LOG_INFO, "stopped", "status=%d", failed);
    return failed ? 1 : 0;
}

static void free_host(struct tpo_host *h)
{
    tpo_queue_close(h->queue);
    tpo_versions_close(h->versions);
    tpo_metrics_close(h->metrics);
    free(h->methods);
    free(h->bindings);
}

static int serve(struct tpo_host *h)
{
    struct tpo_error err = {0};
    char quoted[300];
    sigset_t signals;
    /* Blocked before the first thread, so that only sigwait sees them. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM), sigaddset(&signals, SIGINT), sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* Tensors of some MB would otherwise be mapped and unmapped at every call: 3 to 5 times the cost of a hop. */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 2000000000);
    int rc = start(h, &err), status = 1;
    if (rc == TPO_OK) {
        wait_for_signal(h, &signals);
        status = stop(h);
    } else {
        tpo_log(TPO_LOG_ERROR, "start_failed", "code=%s reason=%s text=%s", tpo_status_name(rc), err.reason,
                tpo_log_quote(quoted, sizeof(quoted), err.message));
        tpo_server_close(h->server);
    }
    free_host(h);
    return status;
}

int tpo_host_main(const struct tpo_host_service *service, int argc, char **argv)
{
    struct tpo_host h = {.service = service};
    struct tpo_host_settings *set = &h.settings;
    char listen[64], program[48];
    struct tpo_error err;
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", service->default_port);
    snprintf(program, sizeof(program), "tpo-%s", service->stage);
    const struct tpo_setting rows[] = {
        {"listen", TPO_SET_TEXT, &set->listen, listen, .what = "ADDRESS",
         .help = "where to listen; port 0 takes a free one and logs it"},
        {"port-file", TPO_SET_TEXT, &set->port_file, "", .what = "FILE", .help = "write the port that was taken to FILE"},
        {"model", TPO_SET_TEXT, &set->model, "models/small", .what = "DIR",
         .help = "the model folder; only what this service owns is mapped"},
        {"check", TPO_SET_TEXT, &set->check, "", .what = "DIR",
         .help = "check that folder against this service's needs, print every fault, exit"},
        {"device", TPO_SET_TEXT, &set->device, "auto", .choices = "cpu|cuda|auto", .help = "where to compute"},
        {"threads", TPO_SET_INT, &set->threads, "0", .min = 0, .max = 256,
         .help =
             "threads of the compute team; 0 is one per core of the process's affinity, and no more than its cgroup's CPU quota"},
        {"queue", TPO_SET_INT, &set->queue, "64", .min = 1, .max = 65536,
         .help = "requests that may wait; one more is refused at once"},
        {"drain", TPO_SET_MS, &set->drain_ms, "45s", .min = 0, .max = 3600000,
         .help = "how long calls in flight may go on after SIGTERM"},
        {"max-message-bytes", TPO_SET_BYTES, &set->max_message_bytes, "64M", .min = 65536, .max = 2147483647,
         .help = "largest message, each way; those on their way may have eight times that together"},
        {"dtype", TPO_SET_TEXT, &set->dtype, "f32", .choices = "f32|bf16",
         .help =
             "bf16: weights that are BF16 in the folder stay as they are mapped, half the memory and its traffic; sums stay f32"},
        {"train", TPO_SET_BOOL, &set->train, "no", .help = "offer the Learner service, so that a trainer can drive this process"},
        {"version-hold", TPO_SET_MS, &set->version_hold_ms, "10m", .min = 0, .max = 86400000,
         .help = "with --train: how long the version before the published one is kept for, at least; the longest time a request "
                 "may have"},
        {"fault", TPO_SET_TEXT, &set->fault, "", .what = "POINT[:N[:stop]]",
         .help = "for tests: kill or stop this process when it reaches a named point of a training step"},
        {"log-level", TPO_SET_TEXT, &set->log_level, "info", .choices = "debug|info|warn|error", .help = "what is worth a line"},
    };
    const struct tpo_settings table = {.program = program,
                                       .about = service->about,
                                       .examples = service->examples,
                                       .rows = rows,
                                       .n_rows = sizeof(rows) / sizeof(rows[0]),
                                       .more = service->settings,
                                       .n_more = service->n_settings};
    int rc = tpo_settings_read(&table, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc == TPO_OK) rc = tpo_fault_set(set->fault, &err);
    if (rc != TPO_OK) {
        fprintf(stderr, "%s: %s\n", program, err.message);
        return 2;
    }
    tpo_log_open(service->stage, (enum tpo_log_level)tpo_log_level_parse(set->log_level));
    if (set->check[0] != '\0') return service->check(service->self, set->check);
    tpo_settings_log(&table);
    return serve(&h);
}
