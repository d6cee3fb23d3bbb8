/* live.h -- a real tpo-encoder with random weights of models/small's dimensions, a real redis-server, and a client of both; for tests and a bench. */
#ifndef TPO_TESTS_SERVICES_ENCODER_LIVE_H
#define TPO_TESTS_SERVICES_ENCODER_LIVE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rpc/client.h"
#include "common/sha256.h"
#include "encoder.pb-c.h"
#include "media.pb-c.h"
#include "status.pb-c.h"

extern char **environ;

struct live {
    const char *build;
    pid_t redis, encoder;
    int redis_port;
    bool train;
    const char *threads; /* of the encoder's team; NULL: one */
    struct tpo_loop *loop;
    struct tpo_peers *peers;
};

static inline _Noreturn void live_die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static inline pid_t live_spawn(const char *program, char **argv)
{
    pid_t pid;
    argv[0] = (char *)program;
    if (posix_spawnp(&pid, program, NULL, NULL, argv, environ) != 0) live_die(program);
    return pid;
}

static inline int live_stop(pid_t pid, int with)
{
    int status = -1;
    kill(pid, with);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static inline int live_free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0) live_die("bind");
    getsockname(fd, (struct sockaddr *)&a, &n);
    close(fd);
    return ntohs(a.sin_port);
}

static inline void live_redis(struct live *l)
{
    char port[16];
    snprintf(port, sizeof(port), "%d", l->redis_port);
    char *argv[] = {NULL, "--port",       port, "--bind",    "127.0.0.1", "--save",
                    "",   "--appendonly", "no", "--logfile", "redis.log", NULL};
    l->redis = live_spawn("redis-server", argv);
    for (int i = 0; i < 1000; i++) {
        struct sockaddr_in a = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)l->redis_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = connect(fd, (struct sockaddr *)&a, sizeof(a));
        close(fd);
        if (rc == 0) return;
        usleep(10000);
    }
    live_die("redis-server does not come up");
}

static inline void live_model(struct live *l, const char *source)
{
    char trainer[4200], from[4200];
    int status = -1;
    snprintf(trainer, sizeof(trainer), "%s/tpo-trainer", l->build);
    snprintf(from, sizeof(from), "%s/models/small", source);
    char *argv[] = {NULL, "model", "random", from, "model", "--seed", "7", NULL};
    pid_t pid = live_spawn(trainer, argv);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) live_die("tpo-trainer model random failed");
}

static inline void live_encoder(struct live *l)
{
    char program[4200], cache[64];
    snprintf(program, sizeof(program), "%s/tpo-encoder", l->build);
    snprintf(cache, sizeof(cache), "127.0.0.1:%d", l->redis_port);
    unlink("port");
    char *threads = (char *)(l->threads != NULL ? l->threads : "1");
    char *argv[] = {NULL,    "--listen", "127.0.0.1:0", "--port-file", "port",  "--model",
                    "model", "--cache",  cache,         "--media-dir", "media", "--threads",
                    threads, "--queue",  "16",          "--log-level", "warn",  l->train ? "--train" : NULL,
                    NULL};
    l->encoder = live_spawn(program, argv);
}

static inline int live_status(struct live *l, Tpo__V1__StatusReply **reply, struct tpo_error *err)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Status/Get", .reply = &tpo__v1__status_reply__descriptor, .timeout_ms = 5000};
    Tpo__V1__StatusRequest q = TPO__V1__STATUS_REQUEST__INIT;
    return tpo_rpc_call(l->peers, &start, &q.base, NULL, (ProtobufCMessage **)reply, NULL, err);
}

/* Connects to the encoder of live_encoder and waits until it is ready. */
static inline void live_connect(struct live *l)
{
    char address[64];
    int port = 0;
    struct tpo_error err;
    for (int i = 0; i < 2000 && port == 0; i++) {
        FILE *f = fopen("port", "r");
        if (f != NULL && fscanf(f, "%d", &port) != 1) port = 0;
        if (f != NULL) fclose(f);
        if (port == 0) usleep(10000);
    }
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    if (l->loop == NULL && tpo_loop_open(&l->loop, NULL, NULL, &err) != TPO_OK) live_die(err.message);
    if (tpo_peers_open(&l->peers, l->loop, "encoder", address, TPO_PICK_HASH, &err) != TPO_OK) live_die(err.message);
    for (int i = 0; i < 2000; i++) {
        Tpo__V1__StatusReply *reply = NULL;
        bool ready = live_status(l, &reply, NULL) == TPO_OK && reply->ready;
        if (reply != NULL) protobuf_c_message_free_unpacked(&reply->base, NULL);
        if (ready) return;
        usleep(10000);
    }
    live_die("the encoder does not become ready");
}

static inline double live_counter(struct live *l, const char *name, const char *label)
{
    Tpo__V1__StatusReply *reply = NULL;
    struct tpo_error err;
    double value = 0;
    if (live_status(l, &reply, &err) != TPO_OK) live_die(err.message);
    for (size_t i = 0; i < reply->n_counters; i++) {
        const Tpo__V1__Counter *c = reply->counters[i];
        bool wanted = label == NULL;
        for (size_t k = 0; k < c->n_labels; k++) wanted = wanted || strcmp(c->labels[k], label) == 0;
        if (wanted && strcmp(c->name, name) == 0) value += c->value;
    }
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return value;
}

static inline int live_encode(struct live *l, const char *id, Tpo__V1__EncodeReply **reply, struct tpo_payload *visual,
                              struct tpo_error *err)
{
    const struct tpo_rpc_start start = {.path = "/tpo.v1.Encoder/Encode",
                                        .reply = &tpo__v1__encode_reply__descriptor,
                                        .reply_payload = true,
                                        .timeout_ms = 240000,
                                        .key = id};
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    q.media_id = (char *)id;
    *reply = NULL;
    return tpo_rpc_call(l->peers, &start, &q.base, NULL, (ProtobufCMessage **)reply, visual, err);
}

struct live_put {
    int done, status;
    struct tpo_error err;
    char id[TPO_SHA256_HEX];
};

static inline void live_on_put_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct live_put *p = owner;
    (void)r, (void)payload;
    snprintf(p->id, sizeof(p->id), "%s", ((Tpo__V1__MediaPutReply *)message)->id);
    protobuf_c_message_free_unpacked(message, NULL);
}

static inline void live_on_put_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct live_put *p = owner;
    (void)r;
    p->done = 1;
    p->status = status;
    if (err != NULL) p->err = *err;
}

/* Sends bytes as chunks of `step`. expected may be NULL. */
static inline int live_put(struct live *l, const char *expected, const uint8_t *data, size_t n, size_t step, struct live_put *p)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 240000};
    const struct tpo_rpc_events on = {.owner = p, .on_message = live_on_put_message, .on_done = live_on_put_done};
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    struct tpo_error err;
    memset(p, 0, sizeof(*p));
    if (expected != NULL) chunk.id = (char *)expected;
    chunk.data.data = (uint8_t *)data;
    chunk.data.len = n < step ? n : step;
    struct tpo_rpc *r = tpo_rpc_open(l->peers, &start, &chunk.base, NULL, &on, &err);
    if (r == NULL) live_die(err.message);
    for (size_t at = chunk.data.len; at < n && !p->done; at += chunk.data.len) {
        chunk.id = (char *)"";
        chunk.data.data = (uint8_t *)data + at;
        chunk.data.len = n - at < step ? n - at : step;
        tpo_rpc_send(r, &chunk.base);
    }
    if (!p->done) tpo_rpc_send_end(r);
    while (!p->done) tpo_loop_wait(l->loop, 1000);
    return p->status;
}

static inline void live_close(struct live *l)
{
    if (l->peers != NULL) tpo_peers_close(l->peers);
    if (l->loop != NULL) tpo_loop_close(l->loop);
    l->peers = NULL;
    l->loop = NULL;
}

#endif
