/* request_private.h -- a request's state, for request.c, encoder_call.c, router_call.c, head_call.c and request_report.c alone. */
#ifndef TPO_GATEWAY_REQUEST_PRIVATE_H
#define TPO_GATEWAY_REQUEST_PRIVATE_H

#include "encoder.pb-c.h"
#include "gateway/compose.h"
#include "gateway/media_put.h"
#include "gateway/request.h"
#include "gateway/versions.h"
#include "head.pb-c.h"
#include "router.pb-c.h"

#define CALLS_MAX 32
#define PUTS_MAX  2

enum state { WAITING, VERSION_WAIT, STORING, ENCODING, PUTTING, GENERATING, HEADS, FINISHED };

/* A task call and the head that works on it. */
struct head_call {
    struct tpo_request *r;
    uint32_t index;
    char task[24]; /* as long as an error's stage */
    struct tpo_peers *peers;
    struct tpo_rpc *rpc;
    struct tpo_media_put *put;
    struct tpo_payload e; /* kept until the head has answered, for asking again after a put */
    int puts, peer;       /* peer: the id of the one that worked on it last; 0: none */
    bool done;
    struct tpo_error err; /* why it failed */
    Tpo__V1__HeadDone *end;
    char instance[128];
    double sent_ms, told_ms; /* the call's start, its last message */
};

struct tpo_request {
    struct tpo_gateway *g;
    struct tpo_request *next, *prev;
    enum state state;
    Tpo__V1__PerceiveRequest *q;
    struct tpo_request_events on;
    uint64_t held; /* of the gateway's body_bytes: what q takes */
    bool detached; /* the owner is gone */
    char id[65], traceparent[56], media_id[65];
    struct tpo_ticket ticket;
    uv_timer_t timer;
    int refs; /* callbacks to come; at 0 and FINISHED the request is freed */
    double started_ms, deadline_ms, begun_ms, put_ms, put_started_ms;
    struct tpo_error early; /* refused before it was accepted */
    bool accepted, first_text_seen;
    uint32_t seq; /* > 0: something was streamed */

    struct tpo_version_choice version; /* of every hop */
    char version_text[24];
    struct tpo_version_wait wait;
    int anew; /* how often it was started again */

    struct tpo_upload *upload;
    struct tpo_media_put *put;
    struct tpo_rpc *rpc; /* encoder's, then router's */
    int puts, peer;      /* peer: the id of the encoder that was given the bytes or asks for them; 0: none */
    struct tpo_payload visual;
    Tpo__V1__MediaInfo *media; /* within `encoded` */
    Tpo__V1__EncodeReply *encoded;
    Tpo__V1__GenerateDone *generated;
    Tpo__V1__Rect *rects;
    char encoder_instance[128], router_instance[128];
    double encode_sent_ms, encode_told_ms, generate_sent_ms, generate_told_ms;
    struct head_call *calls[CALLS_MAX];
    uint32_t n_calls;
    struct tpo_answer answer;
};

void tpo_request_finish(struct tpo_request *r, const struct tpo_error *err); /* NULL: whole */
void tpo_request_fail(struct tpo_request *r, const struct tpo_error *err, const char *stage);
/* A stage that the answer can't do without failed, or has no peer for this version: begins anew where that can help. */
void tpo_request_refused(struct tpo_request *r, const struct tpo_error *err, const char *stage);
void tpo_request_finish_if_done(struct tpo_request *r); /* the router and every head have ended */
/* The last thing a callback does: frees a request that is finished, and begins one anew that waits, when none is left to come back. */
void tpo_request_callback_done(struct tpo_request *r);
void tpo_request_emit(struct tpo_request *r, Tpo__V1__PerceiveEvent__KindCase kind, void *part);
/* What every hop carries. */
struct tpo_rpc_start tpo_request_hop(const struct tpo_request *r, const char *path, const ProtobufCMessageDescriptor *reply);

bool tpo_request_over(const struct tpo_request *r);       /* FINISHED, or about to begin anew: what comes now comes too late */
bool tpo_request_of_version(const struct tpo_error *err); /* the version asked for is not there */
void tpo_request_version_gone(
    struct tpo_error *err); /* such an error as the caller gets it: ours to mend, so UNAVAILABLE; others stay */
/* Asks the peers what they hold and begins anew when they have told and all that still runs has come back. False: too late for that. */
bool tpo_request_start_anew(struct tpo_request *r);

/* Asks the encoder for the request's medium, then the router; without a medium the router at once. */
void tpo_encoder_call_open(struct tpo_request *r);
/* Asks the router, with the visual tokens where there are any. */
void tpo_router_call_open(struct tpo_request *r);

/* A task call of the router's: it goes to its head at once. */
void tpo_head_call_open(struct tpo_request *r, const Tpo__V1__TaskEmbedding *t);
void tpo_head_call_fail(struct head_call *c, const struct tpo_error *err);
void tpo_head_call_free(struct head_call *c);

/* What each stage did, or why it didn't; once, at the end, so that the order never depends on who was faster. */
void tpo_request_stages(struct tpo_request *r, const struct tpo_error *err);
void tpo_request_count(struct tpo_request *r, int code);

#endif
