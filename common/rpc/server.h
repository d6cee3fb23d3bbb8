/* server.h -- a gRPC server on the C core: all four call kinds, one completion-queue thread that owns every call.
 *
 * A method's functions run on that thread and must not block (Media.Put writes its chunk and returns; everything that computes goes through
 * services/host's queue). Answers may come from any thread: tpo_call_send and tpo_call_finish put them into the call's outbox and wake the owner.
 *
 * A message over its method's limit ends the call with RESOURCE_EXHAUSTED "message_too_large"; one over the server's is refused by gRPC itself.
 *
 * Every call that reached on_open is finished exactly once by its method with tpo_call_finish, also after on_cancel; after that the method must not
 * touch it. Errors travel as status, message and grpc-status-details-bin (google.rpc.ErrorInfo, RetryInfo). */
#ifndef TPO_COMMON_RPC_SERVER_H
#define TPO_COMMON_RPC_SERVER_H

#include <stdbool.h>

#include "common/rpc/payload.h"

struct tpo_server;
struct tpo_call;
struct tpo_loop;

struct tpo_method {
    const char *path; /* "/tpo.v1.Encoder/Encode" */
    const ProtobufCMessageDescriptor *request;
    bool payload;   /* the request carries a Tensor in field 15 */
    bool stream_in; /* client- or bidirectional streaming: on_message many times; else exactly once */
    bool paced;     /* of stream_in: the next message is read only after tpo_call_more, so that a caller waits for its reader */
    size_t message_bytes_max; /* a larger one is refused before it is unpacked; 0: the server's limit alone */
    /* Optional. A non-zero answer refuses the call with *err before any message is read. */
    int (*on_open)(void *owner, struct tpo_call *call, struct tpo_error *err);
    /* The message and payload are the method's to free (or take). NULL after the last of a stream. */
    void (*on_message)(void *owner, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload);
    /* Optional: the caller went away or its deadline passed. tpo_call_finish is still owed. */
    void (*on_cancel)(void *owner, struct tpo_call *call);
    void *owner;
};

struct tpo_server_options {
    const char *listen;       /* "127.0.0.1:8430"; port 0 lets the system choose */
    size_t message_bytes_max; /* 0: 64 MiB, both ways */
    size_t memory_bytes_max;  /* of messages on their way in or out, over all calls; past it gRPC resets calls; 0: no bound */
    const struct tpo_method *methods; /* borrowed for the server's life */
    int n_methods;
    const char *stage; /* put into errors that name no stage; NULL: none */
    struct tpo_loop
        *loop; /* of client.h: methods run where it is polled (drain and close are called there, too); NULL: a thread of its own */
    int calls_max; /* at once; one more gets RESOURCE_EXHAUSTED "too_many_calls"; 0: 1024 */
    int stall_ms; /* a caller that owes a message, or the next 16 KiB of a stream, this long gets DEADLINE_EXCEEDED "stalled"; 0: 30 s */
};

/* Serves Health as well (grpc.health.v1 Check and Watch): NOT_SERVING until tpo_server_serving. At most 256 watch at once, one more gets
 * RESOURCE_EXHAUSTED "too_many_watches"; a watcher hears of changes only, and one that reads slowly of the newest alone. */
int tpo_server_open(struct tpo_server **out, const struct tpo_server_options *o, struct tpo_error *err);
int tpo_server_port(const struct tpo_server *s);
void tpo_server_serving(struct tpo_server *s, bool serving); /* any thread, as often as one likes */
/* Health says NOT_SERVING, new calls get UNAVAILABLE, those in flight have drain_ms before they are cancelled; returns when none is left. */
void tpo_server_drain(struct tpo_server *s, int drain_ms);
void tpo_server_close(struct tpo_server *s);      /* drains with 0 ms where nobody did; accepts NULL */
int tpo_server_calls(const struct tpo_server *s); /* in flight, Health's apart */

/* What a method may ask of its call until it finishes it. */
void tpo_call_set_owner(struct tpo_call *c, void *owner); /* the method's own state of this call */
void *tpo_call_owner(const struct tpo_call *c);
bool tpo_call_cancelled(const struct tpo_call *c);                        /* any thread */
double tpo_call_left_ms(const struct tpo_call *c);                        /* until the deadline; negative once it passed */
const char *tpo_call_metadata(const struct tpo_call *c, const char *key); /* NULL when absent; text keys only */
const char *tpo_call_request_id(const struct tpo_call *c);                /* tpo-request-id or "-" */

void tpo_call_more(struct tpo_call *c); /* any thread; of a paced method, once per message */

/* Any thread. Takes the payload's data (may be NULL). Messages of a streaming call go out in order. */
void tpo_call_send(struct tpo_call *c, const ProtobufCMessage *message, struct tpo_payload *take_payload);
/* The same for a message that tpo_call_finish follows at once: both go out together, which saves both sides a round through their queues. */
void tpo_call_send_last(struct tpo_call *c, const ProtobufCMessage *message, struct tpo_payload *take_payload);
int tpo_call_unsent(struct tpo_call *c); /* messages in the outbox: a producer that outruns its reader waits on this */
/* status TPO_OK, or an error; then err (may be NULL) tells the rest. The last use of the call. */
void tpo_call_finish(struct tpo_call *c, int status, const struct tpo_error *err);

#endif
