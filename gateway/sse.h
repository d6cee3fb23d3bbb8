/* sse.h -- an event of an answer as a server-sent event: `id:` is seq, `event:` the kind, `data:` the whole event's JSON on one line.
 * https://html.spec.whatwg.org/multipage/server-sent-events.html */
#ifndef TPO_GATEWAY_SSE_H
#define TPO_GATEWAY_SSE_H

#include "common/status.h"
#include "common/text.h"
#include "gateway.pb-c.h"

/* Appends. Errors as tpo_protojson_encode. */
int tpo_sse_event(struct tpo_text *out, const Tpo__V1__PerceiveEvent *event, struct tpo_error *err);

#endif
