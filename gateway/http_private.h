/* http_private.h -- a connection's state, for door_http.c, http_parse.c and http_answer.c alone. */
#ifndef TPO_GATEWAY_HTTP_PRIVATE_H
#define TPO_GATEWAY_HTTP_PRIVATE_H

#include <llhttp/llhttp.h>

#include "gateway/door_http.h"

#define PENDING_BYTES 65536
#define READ_BYTES    65536
#define WRITE_MS      30000

enum state { HEADERS, BODY, ANSWER, LINGER, CLOSED };

struct span {
    size_t at, size;
};

struct tpo_http {
    uv_tcp_t tcp;
    uv_timer_t timer;
    struct tpo_http_door *door;
    struct tpo_http *next, *prev;
    int handles; /* close callbacks to come */
    enum state state;
    llhttp_t parser;
    bool reading, paused, in_execute;
    bool ended; /* the client has sent its last byte while the answer was on its way */
    bool lost;  /* can't be written to: nothing is read, told or written any more, and the timer closes it */

    /* the request at hand */
    struct tpo_text head; /* names and values, each with a NUL */
    struct tpo_text url;
    struct span names[100], values[100];
    int n_headers;
    bool in_value;
    size_t head_bytes;
    uint64_t body_bytes, enough_bytes; /* of the body: read, and to be read for the timer to start anew */
    bool started;                      /* the first byte has come */
    bool line_read;                    /* the request line has; its last word is in `word` */
    char word[8];
    int n_word;
    const struct tpo_http_route *route;
    void *handler;
    char request_id[65];
    bool begun;    /* the handler knows of it */
    bool complete; /* the body has been read to its end */
    bool answered; /* the last byte of the answer is on its way */
    bool streaming, chunked, keep_alive, head_only;

    struct tpo_text pending; /* pipelined bytes that wait, from `taken` on */
    size_t taken;
};

struct tpo_http_door {
    uv_loop_t *loop;
    uv_tcp_t listener;
    struct tpo_http_settings s;
    struct tpo_http *connections;
    int n_connections, port;
    bool listening, closing, draining;
    char buffer[READ_BYTES];
};

/* door_http.c: a connection's life */
void tpo_http_close(struct tpo_http *x);
/* As soon as the loop comes round: a handler is in the middle of its answer and must not hear on_gone from within. */
void tpo_http_lose(struct tpo_http *x);
void tpo_http_arm(struct tpo_http *x, int ms);
void tpo_http_disarm(struct tpo_http *x);
void tpo_http_set_reading(struct tpo_http *x);
size_t tpo_http_unsent(const struct tpo_http *x); /* bytes of answers that the client has not taken */
void tpo_http_after_answer(struct tpo_http *x);

/* http_parse.c: a request as it is read */
void tpo_http_parser_init(struct tpo_http *x);
void tpo_http_parse(struct tpo_http *x, const char *data, size_t size);
/* Goes through what waits, as long as answers come at once: a loop, so that a thousand pipelined requests need no stack. */
void tpo_http_go_on(struct tpo_http *x);

/* http_answer.c: an answer as it is written */
/* Takes two pieces so that a chunk needs no second copy. */
void tpo_http_write(struct tpo_http *x, const char *a, size_t n_a, const void *b, size_t n_b, const char *tail);
void tpo_http_answer_error(struct tpo_http *x, int status, const struct tpo_error *err, const char *request_id,
                           const char *headers);
/* Our own answer to what can't be handled; the handler, where there is one, learns that this request is over. */
void tpo_http_refuse(struct tpo_http *x, int status, int code, const char *reason, const char *message);

#endif
