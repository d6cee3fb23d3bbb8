/* Messages that never end: what callers have sent of them is bounded over all calls. */
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/common/rpc/echo.h"

#define STREAMS       8
#define MESSAGE_BYTES (29u << 20) /* what each sends of a message of 30 MiB */
#define FRAME_BYTES   16384

/* HTTP/2 by hand: it sends as much as the server's windows allow. */
struct sender {
    int fd;
    int64_t window, initial; /* the connection's; a stream's at its start */
    struct {
        int64_t window;
        size_t sent;
    } streams[STREAMS];
    uint8_t in[1 << 16];
    size_t n_in;
    bool refused; /* a stream or the connection was ended */
};

static void put_u32(uint8_t *out, uint32_t v)
{
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t get_u32(const uint8_t *in)
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

/* Whole, or the connection is gone. */
static void write_all(struct sender *s, const void *data, size_t size)
{
    for (size_t at = 0; at < size && !s->refused;) {
        ssize_t n = send(s->fd, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (n <= 0)
            s->refused = true;
        else
            at += (size_t)n;
    }
}

static void write_frame(struct sender *s, int type, int flags, uint32_t stream, const void *data, size_t size)
{
    static uint8_t frame[9 + FRAME_BYTES];
    put_u32(frame, (uint32_t)size << 8 | (uint32_t)type);
    frame[4] = (uint8_t)flags;
    put_u32(frame + 5, stream);
    memcpy(frame + 9, data, size);
    write_all(s, frame, 9 + size);
}

static void take_settings(struct sender *s, const uint8_t *at, size_t size)
{
    for (; size >= 6; at += 6, size -= 6) {
        if (at[0] != 0 || at[1] != 4) continue; /* INITIAL_WINDOW_SIZE, also of streams that are there */
        int64_t now = get_u32(at + 2);
        for (int i = 0; i < STREAMS; i++) s->streams[i].window += now - s->initial;
        s->initial = now;
    }
    write_frame(s, 4, 1, 0, "", 0);
}

static void take_frame(struct sender *s, int type, int flags, uint32_t stream, const uint8_t *data, size_t size)
{
    if (type == 4 && !(flags & 1)) take_settings(s, data, size);
    if (type == 6 && !(flags & 1)) write_frame(s, 6, 1, 0, data, size);
    if (type == 8 && stream == 0) s->window += get_u32(data);
    if (type == 8 && stream != 0) s->streams[stream / 2].window += get_u32(data);
    if (type == 1 || type == 3 || type == 7) s->refused = true; /* trailers, RST_STREAM, GOAWAY */
}

/* What the server says, waiting for it at most that long. */
static void listen_to(struct sender *s, int timeout_ms)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    while (!s->refused && poll(&p, 1, timeout_ms) > 0) {
        ssize_t n = recv(s->fd, s->in + s->n_in, sizeof(s->in) - s->n_in, 0);
        if (n <= 0) {
            s->refused = true;
            return;
        }
        s->n_in += (size_t)n;
        size_t at = 0, size;
        for (; s->n_in - at >= 9 && s->n_in - at >= 9 + (size = get_u32(s->in + at) >> 8); at += 9 + size)
            take_frame(s, s->in[at + 3], s->in[at + 4], get_u32(s->in + at + 5), s->in + at + 9, size);
        memmove(s->in, s->in + at, s->n_in - at);
        s->n_in -= at;
        timeout_ms = 0;
    }
}

static void open_stream(struct sender *s, int i)
{
    static const char head[] = "\203\206\4\26/tpo.v1.Encoder/Encode\1\1x\17\20\20application/grpc\0\2te\10trailers";
    uint8_t prefix[5] = {0};
    put_u32(prefix + 1, 30u << 20);
    write_frame(s, 1, 4, (uint32_t)(2 * i + 1), head, sizeof(head) - 1);
    write_frame(s, 0, 0, (uint32_t)(2 * i + 1), prefix, sizeof(prefix));
    s->streams[i].window -= 5;
    s->window -= 5;
}

/* One frame where there is room for one; false: nowhere. */
static bool send_some(struct sender *s)
{
    static const uint8_t zeros[FRAME_BYTES];
    bool any = false;
    for (int i = 0; i < STREAMS && !s->refused; i++) {
        if (s->window < FRAME_BYTES || s->streams[i].window < FRAME_BYTES || s->streams[i].sent >= MESSAGE_BYTES) continue;
        write_frame(s, 0, 0, (uint32_t)(2 * i + 1), zeros, sizeof(zeros));
        s->window -= FRAME_BYTES;
        s->streams[i].window -= FRAME_BYTES;
        s->streams[i].sent += FRAME_BYTES;
        any = true;
    }
    return any;
}

/* How much of the messages the server took before it ended a call. */
static size_t send_unfinished(int port)
{
    static struct sender s;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    s = (struct sender){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .window = 65535, .initial = 65535};
    for (int i = 0; i < STREAMS; i++) s.streams[i].window = s.initial;
    assert_int_equal(connect(s.fd, (struct sockaddr *)&to, sizeof(to)), 0);
    write_all(&s, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    write_frame(&s, 4, 0, 0, "", 0);
    for (int i = 0; i < STREAMS; i++) open_stream(&s, i);
    size_t sent = 0;
    while (!s.refused && sent < STREAMS * (size_t)MESSAGE_BYTES) {
        listen_to(&s, send_some(&s) ? 0 : 100);
        sent = 0;
        for (int i = 0; i < STREAMS; i++) sent += s.streams[i].sent;
    }
    close(s.fd);
    return sent;
}

static void unfinished_messages_are_bounded_over_all_calls(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err;
    char digest[96];
    echo_start(&e, (struct tpo_server_options){.memory_bytes_max = 32 << 20});
    size_t sent = send_unfinished(tpo_server_port(e.server));
    if (sent > 100u << 20) fail_msg("%zu MiB were taken", sent >> 20);
    /* And the server goes on. */
    for (int i = 0; i < 1500 && tpo_server_calls(e.server) > 0; i++) usleep(20000);
    assert_int_equal(tpo_server_calls(e.server), 0);
    assert_int_equal(echo_ask(e.peers, "hello", 10000, digest, &err), TPO_OK);
    echo_stop(&e);
}

TPO_TESTS(cmocka_unit_test(unfinished_messages_are_bounded_over_all_calls))
