/* server_private.h -- what server.c, call.c and health.c share. */
#ifndef TPO_COMMON_RPC_SERVER_PRIVATE_H
#define TPO_COMMON_RPC_SERVER_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/rpc/loop.h"
#include "common/rpc/server.h"

enum call_state {
    CALL_ACCEPTING, /* waits for a caller */
    CALL_OPEN,      /* a caller is there: messages come and go */
    CALL_ENDING,    /* the status is on its way */
    CALL_ENDED,     /* it left, or never will */
};

struct call_out {
    struct call_out *next;
    grpc_byte_buffer *bytes;
};

struct tpo_call {
    /* The owning thread's. */
    enum call_state state;
    struct tpo_server *server;
    const struct tpo_method *method;  /* NULL: nobody offers it */
    struct tpo_call *previous, *next; /* in server->calls while OPEN or ENDING */
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *received;
    int close_cancelled, tags; /* tags: batches that have not come back */
    bool reading, writing, greeted, read_ended, handed, told_lost, quiet, watching;
    int64_t reading_since_us, owed_us; /* owed: waited in all since the last READ_LEAST bytes were complete */
    size_t read_bytes;                 /* since then */
    struct tpo_error doomed;           /* code != OK: ends so whatever the method says */
    struct tpo_tag accept_tag, read_tag, write_tag, close_tag, post_tag;
    void *owner;
    char request_id[72];
    char texts[4][96]; /* metadata asked for, NUL-terminated */
    int n_texts;

    /* Any thread's. */
    pthread_mutex_t lock;
    struct call_out *out_first, *out_last; /* under lock */
    int n_out;
    bool posted, finished, held; /* under lock; held: a paced method has not asked for more */
    struct tpo_error end;        /* under lock until finished */
    atomic_bool cancelled;
};

struct tpo_server {
    struct tpo_loop *loop;
    bool own_loop, started;
    grpc_server *server;
    int port, message_bytes_max, calls_max, stall_ms;
    const char *stage;
    const struct tpo_method *methods;
    int n_methods;
    struct tpo_method health_methods[2];
    struct tpo_call *calls;
    struct tpo_tag tick_tag, shutdown_tag, serving_tag;
    int n_watches;       /* the owning thread's */
    bool serving_posted; /* under lock */
    pthread_mutex_t lock;
    _Atomic int n_calls;   /* in flight without Health's watches */
    _Atomic int n_objects; /* calls not freed, watches and waiting ones included */
    _Atomic int open;      /* 1 until the server has shut down */
    atomic_bool serving, draining;
};

/* call.c */
void tpo_call_accept(struct tpo_server *s);                                     /* waits for one more caller */
void tpo_call_send_newest(struct tpo_call *c, const ProtobufCMessage *message); /* instead of all that has not left yet */
void tpo_call_check_stall(struct tpo_call *c, int64_t now_us);
const struct tpo_method *tpo_server_method(struct tpo_server *s, grpc_slice path);

/* call_metadata.c */
void tpo_call_read_request_id(struct tpo_call *c); /* "-" for none, or one that is none */

/* health.c */
void tpo_health_init(struct tpo_server *s);

#endif
