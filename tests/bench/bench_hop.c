/* bench_hop -- what a hop costs: an echo of 100 B and of 295 KB (visual tokens) through common/rpc, and the same echo through grpc++
 * (hop_peer.cc), in one run on one machine. Each server is a process of its own. One call at a time gives microseconds; several at once give
 * calls per second. The rounds of the two alternate, and the best of each counts, since neighbours make single rounds slower and never faster. */
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/server.h"
#include "encoder.pb-c.h"
#include "media.pb-c.h"
#include "tests/bench/after.h"

#define ROUNDS  5
#define QUERIES 96
#define WIDTH   768

extern char **environ;

static void die(const char *what, const struct tpo_error *err)
{
    fprintf(stderr, "bench_hop: %s%s%s\n", what, err != NULL ? ": " : "", err != NULL ? err->message : "");
    exit(1);
}

/* --- the server ---------------------------------------------------------------------------------------------------------------------------- */

static void echo(void *owner, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner;
    tpo_call_send(call, message, payload);
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_call_finish(call, TPO_OK, NULL);
}

static int serve(void)
{
    static const struct tpo_method methods[] = {
        {.path = "/tpo.bench.Echo/Small", .request = &tpo__v1__media_chunk__descriptor, .on_message = echo},
        {.path = "/tpo.bench.Echo/Large", .request = &tpo__v1__encode_reply__descriptor, .payload = true, .on_message = echo},
    };
    struct tpo_server_options o = {.listen = "127.0.0.1:0", .methods = methods, .n_methods = 2};
    struct tpo_server *server;
    struct tpo_error err;
    if (tpo_server_open(&server, &o, &err) != TPO_OK) die("server", &err);
    tpo_server_serving(server, true);
    printf("%d\n", tpo_server_port(server));
    fflush(stdout);
    pause();
    return 0;
}

/* --- the client: a closed loop of `outstanding` calls --------------------------------------------------------------------------------------- */

struct loop {
    struct tpo_peers *peers;
    struct tpo_rpc_start start;
    const ProtobufCMessage *message;
    bool large;
    int left, in_flight, failed;
    size_t bytes; /* that came back */
};

static void start_one(struct loop *l);

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct loop *l = owner;
    (void)r;
    l->bytes += l->large ? payload->size_bytes : ((Tpo__V1__MediaChunk *)message)->data.len;
    tpo_payload_free(payload);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct loop *l = owner;
    (void)r, (void)err;
    l->in_flight--;
    l->failed += status != TPO_OK;
    if (l->left > 0) start_one(l);
}

static void start_one(struct loop *l)
{
    struct tpo_rpc_events on = {.owner = l, .on_message = on_message, .on_done = on_done};
    struct tpo_payload payload = {0};
    struct tpo_error err;
    if (l->large) {
        if (tpo_payload_alloc(&payload, TPO_F32, 2, (const int64_t[]){QUERIES, WIDTH}) != TPO_OK) die("memory", NULL);
        memset(payload.data, 1, payload.size_bytes);
    }
    l->left--;
    l->in_flight++;
    if (tpo_rpc_open(l->peers, &l->start, l->message, &payload, &on, &err) == NULL) die("call", &err);
}

static double run_ours(struct tpo_loop *loop, struct tpo_peers *peers, bool large, int outstanding, int calls)
{
    static uint8_t bytes[100];
    Tpo__V1__MediaChunk small = TPO__V1__MEDIA_CHUNK__INIT;
    Tpo__V1__EncodeReply reply = TPO__V1__ENCODE_REPLY__INIT;
    small.data = (ProtobufCBinaryData){sizeof(bytes), bytes};
    struct loop l = {.peers = peers, .large = large, .left = calls, .message = large ? &reply.base : &small.base};
    l.start = (struct tpo_rpc_start){.path = large ? "/tpo.bench.Echo/Large" : "/tpo.bench.Echo/Small",
                                     .reply = large ? &tpo__v1__encode_reply__descriptor : &tpo__v1__media_chunk__descriptor,
                                     .reply_payload = large,
                                     .timeout_ms = 60000};
    double begun = tpo_now_s();
    for (int i = 0; i < outstanding && l.left > 0; i++) start_one(&l);
    while (l.in_flight > 0) tpo_loop_wait(loop, 1000);
    if (l.failed > 0) die("calls failed", NULL);
    if (l.bytes != (size_t)calls * (large ? sizeof(float) * QUERIES * WIDTH : sizeof(bytes))) die("not all came back", NULL);
    return (tpo_now_s() - begun) / calls;
}

/* --- the peer, and starting programs -------------------------------------------------------------------------------------------------------- */

/* Starts argv with its stdout in a pipe. */
static pid_t start_program(char **argv, FILE **out)
{
    int ends[2];
    pid_t pid;
    posix_spawn_file_actions_t actions;
    if (pipe(ends) != 0) die("pipe", NULL);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    if (posix_spawn(&pid, argv[0], &actions, NULL, argv, environ) != 0) die(argv[0], NULL);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    *out = fdopen(ends[0], "r");
    return pid;
}

/* Its port. */
static int start_server(const char *program)
{
    int port;
    FILE *out;
    pid_t pid = start_program((char *[]){(char *)program, "serve", NULL}, &out);
    after("kill -9 %d", (int)pid);
    if (fscanf(out, "%d", &port) != 1) die("a server did not start", NULL);
    return port;
}

static double run_peer(const char *program, int port, bool large, int outstanding, int calls)
{
    char address[32], in_flight[16], n[16];
    double seconds;
    FILE *out;
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    snprintf(in_flight, sizeof(in_flight), "%d", outstanding);
    snprintf(n, sizeof(n), "%d", calls);
    char *argv[] = {(char *)program, "ask", address, large ? "large" : "small", in_flight, n, NULL};
    pid_t pid = start_program(argv, &out);
    if (fscanf(out, "%lf", &seconds) != 1) die("the peer's client failed", NULL);
    fclose(out);
    waitpid(pid, NULL, 0);
    return seconds / calls;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "serve") == 0) return serve();
    static const struct {
        const char *what;
        bool large;
        int outstanding, calls;
    } cases[] = {{"100 B, 1 at a time", false, 1, 4000},
                 {"100 B, 32 at once", false, 32, 20000},
                 {"295 KB, 1 at a time", true, 1, 600},
                 {"295 KB, 8 at once", true, 8, 1500}};
    char peer[4096], self[4096], address[32];
    snprintf(self, sizeof(self), "%s", argv[0]);
    snprintf(peer, sizeof(peer), "%.*s/hop_peer", (int)(strrchr(self, '/') - self), self);
    int our_port = start_server(self), peer_port = start_server(peer);

    struct tpo_loop *loop;
    struct tpo_peers *peers;
    struct tpo_error err;
    snprintf(address, sizeof(address), "127.0.0.1:%d", our_port);
    if (tpo_loop_open(&loop, NULL, NULL, &err) != TPO_OK) die("loop", &err);
    if (tpo_peers_open(&peers, loop, "echo", address, TPO_PICK_LEAST, &err) != TPO_OK) die("peers", &err);
    printf("%-22s %14s %14s %8s\n", "echo", "common/rpc", "grpc++", "ratio");
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        double best = 1e9, peer_best = 1e9;
        run_ours(loop, peers, cases[c].large, cases[c].outstanding, cases[c].calls / 10);
        for (int round = 0; round < ROUNDS; round++) {
            double s = run_ours(loop, peers, cases[c].large, cases[c].outstanding, cases[c].calls);
            double p = run_peer(peer, peer_port, cases[c].large, cases[c].outstanding, cases[c].calls);
            best = s < best ? s : best;
            peer_best = p < peer_best ? p : peer_best;
        }
        if (cases[c].outstanding == 1)
            printf("%-22s %11.1f us %11.1f us %8.2f\n", cases[c].what, best * 1e6, peer_best * 1e6, peer_best / best);
        else
            printf("%-22s %10.0f /s %11.0f /s %8.2f\n", cases[c].what, 1 / best, 1 / peer_best, peer_best / best);
    }
    printf("ratio above 1: common/rpc is faster\n");
    tpo_peers_close(peers);
    tpo_loop_close(loop);
    return 0;
}
