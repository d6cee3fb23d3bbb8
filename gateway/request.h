/* request.h -- one request from admission to its last event; the state machine is drawn in request.c.
 *
 * One deadline and one cancel cross every hop: what is left of the deadline goes with each call, and cancelling the request cancels
 * every call under way. What was accepted ends with exactly one on_done: an answer, or a typed error. Loop's thread. */
#ifndef TPO_GATEWAY_REQUEST_H
#define TPO_GATEWAY_REQUEST_H

#include "gateway.pb-c.h"
#include "gateway/gateway.h"

struct tpo_request;

struct tpo_request_events {
    void *owner;
    /* Everything but `done`, in order of seq; borrowed. NULL for an answer in one piece, which may then be started again unseen. */
    void (*on_event)(void *owner, const Tpo__V1__PerceiveEvent *event);
    /* Once, last. `event` is the `done` event: its response is the whole answer, or what there is of it with its error, which is
     * then also *err (else NULL). */
    void (*on_done)(void *owner, const Tpo__V1__PerceiveEvent *event, const struct tpo_error *err);
};

/* Never answers from within. take_message is the request's from here on, and freed also where NULL is returned, which means out of memory.
 * left_ms is what is left of a deadline of the transport's; negative: it has passed, the request ends with DEADLINE_EXCEEDED and no service hears
 * of it; 0: there is none. The message's own timeout counts where it is shorter. What the message takes counts in the gateway's body_bytes until
 * it is freed, its media until they are stored; where that is too much the request ends with RESOURCE_EXHAUSTED "bodies_full". request_id is used
 * where the message names none. traceparent may be NULL or nonsense. */
struct tpo_request *tpo_request_open(struct tpo_gateway *g, Tpo__V1__PerceiveRequest *take_message, double left_ms,
                                     const char *request_id, const char *traceparent, const struct tpo_request_events *on);
void tpo_request_cancel(struct tpo_request *r);              /* the caller went away: no event comes any more */
struct tpo_request *tpo_request_next(struct tpo_request *r); /* of the gateway's list */

#endif
