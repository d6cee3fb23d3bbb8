/* routes.h -- what the HTTP door offers.
 *
 *   POST /v1/media      the bytes of a video or an image -> {"id": SHA-256, "sizeBytes": "..."}; they aren't decoded here
 *   POST /v1/perceive   PerceiveRequest as JSON -> PerceiveResponse; with "stream": true server-sent events instead
 *   GET  /healthz       200 as long as the loop lives
 *   GET  /readyz        200 when an encoder and a router serve, else 503; lists every peer and the heads that are missing
 *   GET  /metrics       Prometheus text: the gateway's and every peer's
 *
 * An error before the first event of a stream is an HTTP status, one after it the `error` of `done`. */
#ifndef TPO_GATEWAY_ROUTES_H
#define TPO_GATEWAY_ROUTES_H

#include "gateway/door_http.h"
#include "gateway/gateway.h"

#define TPO_ROUTES 6 /* the end included */

/* The table for a door whose owner is g. */
void tpo_routes_fill(struct tpo_http_route rows[TPO_ROUTES], const struct tpo_gateway_settings *s);
/* Counts an answer; the door's on_answer. */
void tpo_routes_on_answer(void *owner, const char *path, int status);

#endif
