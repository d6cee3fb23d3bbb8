/* Fuzzes the HTTP door: any bytes on a connection end in answers or a closed connection, and every request that was begun is told its end. */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/door_http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int under_way; /* requests */
static int refused;   /* connections, since the last one that was made */

static void on_begin(struct tpo_http *x, void *owner)
{
    (void)owner;
    under_way++;
    tpo_http_set_state(x, calloc(1, sizeof(struct tpo_text)));
}

static void on_body(struct tpo_http *x, const char *data, size_t size)
{
    tpo_text_add(tpo_http_state(x), data, size);
}

static void forget(struct tpo_http *x)
{
    under_way--;
    tpo_text_free(tpo_http_state(x));
    free(tpo_http_state(x));
}

static void on_end(struct tpo_http *x)
{
    struct tpo_text *body = tpo_http_state(x), taken = *body;
    *body = (struct tpo_text){0};
    forget(x);
    if (taken.size % 2 == 0) {
        tpo_http_reply(x, 200, "text/plain", taken.data, taken.size, NULL);
    } else {
        tpo_http_stream_begin(x, "text/plain");
        tpo_http_stream_write(x, taken.data, taken.size);
        tpo_http_stream_end(x);
    }
    tpo_text_free(&taken);
}

static const struct tpo_http_route routes[] = {
    {.method = "GET", .path = "/a", .on_begin = on_begin, .on_end = on_end, .on_gone = forget},
    {.method = "POST",
     .path = "/a",
     .body_max = 1000,
     .on_begin = on_begin,
     .on_body = on_body,
     .on_end = on_end,
     .on_gone = forget},
    {0},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uv_loop_t loop;
    static struct tpo_http_door *door;
    if (door == NULL) {
        const struct tpo_http_settings s = {.host = "127.0.0.1", .routes = routes};
        uv_loop_init(&loop);
        if (tpo_http_door_open(&door, &loop, &s, NULL) != TPO_OK) abort();
    }
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)tpo_http_door_port(door)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct linger at_once = {1, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) abort();
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        /* The system gives none just now (no port is left, a signal came), which says nothing of the door; a hundred in a row do. */
        if (++refused == 100) {
            perror("connect");
            abort();
        }
        close(fd);
        usleep(100000);
        return 0;
    }
    refused = 0;
    (void)!send(fd, data, size < 60000 ? size : 60000, MSG_NOSIGNAL);
    /* All of it is read, then the client goes by a reset: an orderly end would keep the port for a minute, and ports run out. */
    for (int i = 0; i < 4; i++) uv_run(&loop, UV_RUN_NOWAIT);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
    while (tpo_http_door_connections(door) > 0) uv_run(&loop, UV_RUN_ONCE);
    if (under_way != 0) abort();
    return 0;
}
