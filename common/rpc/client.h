/* client.h -- calls to other services: a loop that owns calls, and sets of peers that share a job.
 *
 * A completion-queue thread only collects events; callbacks run on the loop owner's thread, inside tpo_loop_poll, never before the call that
 * registered them has returned. `wake` is called on any thread when there is something to poll (a libuv owner passes uv_async_send). Without a
 * `wake` there is no such thread: the owner takes events from the queue itself, in tpo_loop_wait or tpo_loop_poll, which saves a hand-over. */
#ifndef TPO_COMMON_RPC_CLIENT_H
#define TPO_COMMON_RPC_CLIENT_H

#include <stdbool.h>

#include "common/rpc/payload.h"

#define TPO_RPC_MESSAGE_BYTES (64 << 20) /* what a message may have, both ways */

struct tpo_loop;  /* one thread's completion queue */
struct tpo_peers; /* the replicas of one service */
struct tpo_rpc;   /* one call in flight */

int tpo_loop_open(struct tpo_loop **out, void (*wake)(void *arg), void *arg, struct tpo_error *err);
void tpo_loop_poll(struct tpo_loop *l);
/* Blocks until something can be polled or the time is over, then polls. For owners without a loop of their own (wake NULL): CLI, tests. */
void tpo_loop_wait(struct tpo_loop *l, int timeout_ms);
/* Cancels what is in flight, delivers every on_done, then frees. All peers of the loop must be closed before. */
void tpo_loop_close(struct tpo_loop *l);

enum tpo_pick { TPO_PICK_HASH /* rendezvous hash of the key: equal media, same replica */, TPO_PICK_LEAST /* fewest in flight */ };

/* addresses: "host:port,host:port"; a name that resolves to several addresses is resolved again every 10 s and each address is a peer. Health is
 * watched; a peer that is not SERVING is picked only when none is. */
int tpo_peers_open(struct tpo_peers **out, struct tpo_loop *l, const char *stage, const char *addresses, enum tpo_pick pick,
                   struct tpo_error *err);
void tpo_peers_close(struct tpo_peers *p);      /* its calls end with CANCELLED first */
int tpo_peers_ready(const struct tpo_peers *p); /* how many are SERVING */
int tpo_peers_count(const struct tpo_peers *p);
const char *tpo_peers_stage(const struct tpo_peers *p);
const char *tpo_peers_address(const struct tpo_peers *p, int i, bool *serving);
/* Peer i may be another after the next poll. Its id stays its own: never 0, and never another's when it is gone. */
int tpo_peers_id(const struct tpo_peers *p, int i);

#define TPO_PEER_VERSIONS_MAX 8
/* The versions that a peer told of (StatusReply), for calls that need one; forgotten when its health is lost, since another process may come
 * back. Nothing happens where the peer is gone. */
void tpo_peers_set_versions(struct tpo_peers *p, int id, const uint64_t *versions, int n);
void tpo_peers_drop_version(struct tpo_peers *p, int id, uint64_t version); /* it turned out not to hold it */
/* How many peer i told of; -1: it has not told since its health was lost last. */
int tpo_peers_versions(const struct tpo_peers *p, int i, uint64_t out[TPO_PEER_VERSIONS_MAX]);

struct tpo_rpc_events {
    void *owner;
    /* A message arrived; it and the payload are the owner's to free (or take). */
    void (*on_message)(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload);
    /* One more message of a client stream may be sent. Optional. */
    void (*on_writable)(void *owner, struct tpo_rpc *r);
    /* Once, last: r is gone afterwards. status TPO_OK or the error, with reason and stage as the other side told them. */
    void (*on_done)(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err);
};

struct tpo_rpc_start {
    const char *path; /* "/tpo.v1.Encoder/Encode" */
    const ProtobufCMessageDescriptor *reply;
    bool reply_payload;                             /* replies carry a Tensor in field 15 */
    bool stream_in;                                 /* the first message is not the last: tpo_rpc_send, tpo_rpc_send_end follow */
    int timeout_ms;                                 /* a deadline on every call */
    const char *key;                                /* for TPO_PICK_HASH: the media's id; NULL: any */
    const char *request_id, *traceparent, *version; /* metadata; NULL: none */
    bool versioned;                                 /* pick only peers that hold `version` or have told of none */
    int peer; /* the id of the one that takes it while it is known; 0, or gone: one is picked */
};

/* Starts a call with its first message (takes the payload's data). NULL and *err when there is no peer (UNAVAILABLE
 * "peer_missing"; FAILED_PRECONDITION "version" where none holds the one needed) or no memory. A call that fails with UNAVAILABLE before
 * any message came back is tried once more on another peer, unless it streams in. */
struct tpo_rpc *tpo_rpc_open(struct tpo_peers *p, const struct tpo_rpc_start *start, const ProtobufCMessage *message,
                             struct tpo_payload *take_payload, const struct tpo_rpc_events *on, struct tpo_error *err);
void tpo_rpc_send(struct tpo_rpc *r, const ProtobufCMessage *message); /* queued; wait for on_writable after each */
void tpo_rpc_send_end(struct tpo_rpc *r);
void tpo_rpc_cancel(struct tpo_rpc *r);            /* on_done follows, with TPO_CANCELLED */
const char *tpo_rpc_peer(const struct tpo_rpc *r); /* its address */
int tpo_rpc_peer_id(const struct tpo_rpc *r);

/* One unary call, waited for; the owner's thread has nothing else to do. *reply as in on_message. */
int tpo_rpc_call(struct tpo_peers *p, const struct tpo_rpc_start *start, const ProtobufCMessage *message,
                 struct tpo_payload *take_payload, ProtobufCMessage **reply, struct tpo_payload *reply_payload,
                 struct tpo_error *err);

#endif
