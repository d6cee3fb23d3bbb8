/* remote_private.h -- a remote learner's state, for remote.c and remote_call.c alone. */
#ifndef TPO_TRAINER_STEPS_REMOTE_PRIVATE_H
#define TPO_TRAINER_STEPS_REMOTE_PRIVATE_H

#include "common/arena.h"
#include "common/rpc/client.h"
#include "common/sha256.h"
#include "trainer/steps/remote.h"

/* The answer to one kind of call: what it told lies in the message and the arena. */
struct remote_reply {
    ProtobufCMessage *message;
    struct tpo_arena arena;
};

#define REMOTE_REFUSED_MAX 256

struct remote {
    struct tpo_remote_options o;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    struct tpo_arena request;
    struct remote_reply forward, backward, norms, chunk;
    char refused[REMOTE_REFUSED_MAX][TPO_SHA256_HEX]; /* media that the service does not take, the last so many */
    unsigned n_refused;                               /* ever */
    char run[64];
    uint64_t version;
    double run_ms;
};

struct remote_call {
    ProtobufCMessage *reply;
    int (*on_chunk)(void *arg, ProtobufCMessage *m, struct tpo_error *err); /* of a stream; NULL: one message */
    void *arg;
    struct tpo_error err;
    bool told; /* a message has come */
    bool done;
};

/* Until the answer is whole or the last try has failed. `stoppable`: the options' stop ends it. */
int tpo_remote_call(struct remote *r, const char *path, const ProtobufCMessageDescriptor *type, const ProtobufCMessage *message,
                    struct remote_call *w, bool stoppable, struct tpo_error *err);
/* A unary call whose reply says something; it replaces the one before of its kind. */
int tpo_remote_ask(struct remote *r, struct remote_reply *keep, const char *path, const ProtobufCMessageDescriptor *type,
                   const ProtobufCMessage *message, struct tpo_error *err);
/* A unary call that answers Empty. */
int tpo_remote_tell(struct remote *r, const char *path, const ProtobufCMessage *message, bool stoppable, struct tpo_error *err);

#endif
