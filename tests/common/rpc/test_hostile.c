/* What strangers, dying peers and broken networks do to a server, and to a client. */
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/common/rpc/echo.h"

static int connect_to(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static void put(int fd, const void *bytes, size_t n)
{
    ssize_t ignored = send(fd, bytes, n, MSG_NOSIGNAL); /* the server may have hung up already */
    (void)ignored;
}

static void garbage_and_half_open_connections_harm_nobody(void **state)
{
    (void)state;
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    struct echo e;
    struct tpo_error err;
    char digest[96];
    int fds[64];
    uint64_t seed = tpo_test_seed();
    echo_start(&e, (struct tpo_server_options){0});
    for (int i = 0; i < 64; i++) {
        uint8_t noise[300];
        for (size_t k = 0; k < sizeof(noise); k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            noise[k] = (uint8_t)(seed >> 56);
        }
        fds[i] = connect_to(tpo_server_port(e.server));
        if (i % 4 == 1) put(fds[i], noise, sizeof(noise));
        if (i % 4 >= 2) put(fds[i], preface, i % 4 == 2 ? 10 : sizeof(preface) - 1);
        if (i % 4 == 3) put(fds[i], noise, sizeof(noise));
    }
    assert_int_equal(echo_ask(e.peers, "hello", 10000, digest, &err), TPO_OK);
    for (int i = 0; i < 64; i++) close(fds[i]);
    assert_int_equal(echo_ask(e.peers, "hello", 10000, digest, &err), TPO_OK);
    echo_stop(&e);
}

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    int *seen = owner;
    (void)r, (void)err;
    *seen = status;
}

/* A server in a process of its own, forked before this one has touched gRPC. Its port comes through a pipe. */
static pid_t server_process(int *port)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct tpo_server *s = echo_server((struct tpo_server_options){0});
        int mine = tpo_server_port(s);
        if (write(ends[1], &mine, sizeof(mine)) != sizeof(mine)) _exit(1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(ends[0], port, sizeof(*port)), sizeof(*port));
    return pid;
}

static void a_killed_peer_ends_its_calls_at_once(void **state)
{
    (void)state;
    int port, seen = -1;
    pid_t pid = server_process(&port);
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    struct tpo_error err;
    char address[32];
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, &err), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "encoder", address, TPO_PICK_LEAST, &err), TPO_OK);
    for (int i = 0; i < 500 && tpo_peers_ready(peers) == 0; i++) tpo_loop_wait(loop, 20);
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Encoder/Encode", .reply = &tpo__v1__encode_reply__descriptor, .timeout_ms = 60000};
    struct tpo_rpc_events on = {.owner = &seen, .on_message = on_message, .on_done = on_done};
    q.media_id = "hang";
    assert_non_null(tpo_rpc_open(peers, &start, &q.base, NULL, &on, &err));
    for (int i = 0; i < 10; i++) tpo_loop_wait(loop, 10);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 1000 && seen == -1; i++) tpo_loop_wait(loop, 20);
    assert_int_equal(seen, TPO_UNAVAILABLE);
    for (int i = 0; i < 1000 && tpo_peers_ready(peers) == 1; i++) tpo_loop_wait(loop, 20);
    assert_int_equal(tpo_peers_ready(peers), 0);
    tpo_peers_close(peers);
    tpo_loop_close(loop);
}

static void a_killed_client_frees_its_calls(void **state)
{
    (void)state;
    int ready[2], port;
    int back[2];
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(back), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct tpo_loop *loop;
        struct tpo_peers *peers;
        char address[32];
        int seen = -1;
        if (read(ready[0], &port, sizeof(port)) != sizeof(port)) _exit(1);
        snprintf(address, sizeof(address), "127.0.0.1:%d", port);
        if (tpo_loop_open(&loop, NULL, NULL, NULL) != TPO_OK) _exit(1);
        if (tpo_peers_open(&peers, loop, "encoder", address, TPO_PICK_LEAST, NULL) != TPO_OK) _exit(1);
        Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
        struct tpo_rpc_start start = {
            .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 60000};
        struct tpo_rpc_events on = {.owner = &seen, .on_message = on_message, .on_done = on_done};
        tpo_rpc_open(peers, &start, &chunk.base, NULL, &on, NULL);
        for (;;) tpo_loop_wait(loop, 100);
    }
    struct tpo_server *s = echo_server((struct tpo_server_options){0});
    port = tpo_server_port(s);
    assert_int_equal(write(ready[1], &port, sizeof(port)), sizeof(port));
    for (int i = 0; i < 1000 && tpo_server_calls(s) == 0; i++) usleep(10000);
    assert_int_equal(tpo_server_calls(s), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 1000 && tpo_server_calls(s) > 0; i++) usleep(10000);
    assert_int_equal(tpo_server_calls(s), 0);
    assert_int_equal(echo_cancels, 1);
    tpo_server_close(s);
}

static void calls_cancelled_at_any_moment_leave_nothing(void **state)
{
    (void)state;
    struct echo e;
    uint64_t seed = tpo_test_seed();
    struct tpo_error err;
    char digest[96];
    static int seen[200];
    echo_start(&e, (struct tpo_server_options){0});
    for (int i = 0; i < 200; i++) {
        static const char *const ids[] = {"hang", "late", "fail", "hello"};
        Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
        struct tpo_rpc_start start = {.path = "/tpo.v1.Encoder/Encode",
                                      .reply = &tpo__v1__encode_reply__descriptor,
                                      .reply_payload = true,
                                      .timeout_ms = 60000};
        struct tpo_rpc_events on = {.owner = &seen[i], .on_message = on_message, .on_done = on_done};
        q.media_id = (char *)ids[i % 2 == 0 ? 0 : 2 + i % 4 / 2];
        seen[i] = -1;
        struct tpo_rpc *r = tpo_rpc_open(e.peers, &start, &q.base, NULL, &on, &err);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        for (uint64_t k = seed >> 62; k > 0; k--) tpo_loop_wait(e.loop, 1);
        if (seen[i] == -1) tpo_rpc_cancel(r);
    }
    for (int i = 0; i < 200; i++) {
        for (int k = 0; k < 1000 && seen[i] == -1; k++) tpo_loop_wait(e.loop, 20);
        assert_int_not_equal(seen[i], -1);
    }
    for (int i = 0; i < 1000 && tpo_server_calls(e.server) > 0; i++) usleep(10000);
    assert_int_equal(tpo_server_calls(e.server), 0);
    assert_int_equal(echo_ask(e.peers, "hello", 10000, digest, &err), TPO_OK);
    echo_stop(&e);
}

/* Which the server hears of first, the end of the messages or the cancel, is a race inside gRPC: between the thread that reads the socket, which
 * may be any that waits for events, and the server's own. */
static void an_upload_that_is_cut_is_never_a_whole_one(void **state)
{
    (void)state;
    struct echo e;
    const int n = 600;
    static uint8_t bytes[1 << 16];
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){sizeof(bytes), bytes};
    struct tpo_server *waiting[3];
    echo_start(&e, (struct tpo_server_options){0});
    for (int i = 0; i < 3; i++) waiting[i] = echo_server((struct tpo_server_options){0});
    echo_taken = echo_cancels = 0;
    for (int i = 0; i < n; i++) {
        int seen = -1;
        const struct tpo_rpc_start start = {
            .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 60000};
        const struct tpo_rpc_events on = {.owner = &seen, .on_message = on_message, .on_done = on_done};
        struct tpo_rpc *r = tpo_rpc_open(e.peers, &start, &chunk.base, NULL, &on, NULL);
        assert_non_null(r);
        for (int k = 0; k < 3000 && echo_taken == i; k++) tpo_loop_wait(e.loop, 1);
        assert_int_equal(echo_taken, i + 1);
        tpo_rpc_cancel(r);
        for (int k = 0; k < 1000 && seen == -1; k++) tpo_loop_wait(e.loop, 20);
        assert_int_equal(seen, TPO_CANCELLED);
    }
    for (int i = 0; i < 1000 && echo_cancels + echo_put_ends < n; i++) usleep(10000);
    assert_int_equal(echo_put_ends, 0);
    assert_int_equal(echo_cancels, n);
    for (int i = 0; i < 3; i++) tpo_server_close(waiting[i]);
    echo_stop(&e);
}

TPO_TESTS(cmocka_unit_test(garbage_and_half_open_connections_harm_nobody), cmocka_unit_test(a_killed_peer_ends_its_calls_at_once),
          cmocka_unit_test(a_killed_client_frees_its_calls), cmocka_unit_test(calls_cancelled_at_any_moment_leave_nothing),
          cmocka_unit_test(an_upload_that_is_cut_is_never_a_whole_one))
