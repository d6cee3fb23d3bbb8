/* http.h -- what the command line asks of the gateway's REST door: one blocking request at a time, by libcurl.
 *
 * DEADLINE_EXCEEDED "timeout" when no answer comes in time, RESOURCE_EXHAUSTED "http" for one of more than 64 MiB. */
#ifndef TPO_CLI_HTTP_H
#define TPO_CLI_HTTP_H

#include <jansson.h>

#include "common/status.h"

/* GET, the body as JSON (NULL where it is none). *http is the status. UNAVAILABLE when nobody answers. The caller decrefs. */
int tpo_http_get(const char *base, const char *path, long *http, json_t **body, struct tpo_error *err);

/* Streams the file to POST /v1/media; id gets its SHA-256. Shows a progress bar when it lasts. It ends when nothing moves for timeout_ms and 5 s. */
int tpo_http_upload(const char *base, const char *file, int64_t timeout_ms, char id[65], struct tpo_error *err);

/* POST /v1/perceive with "stream": true. on_event gets each event's name and data while they come. The error is the answer's own.
 * It ends after timeout_ms and 5 s: the gateway, which is asked to end by itself after timeout_ms, may still say so. */
int tpo_http_perceive(const char *base, const json_t *request, int64_t timeout_ms,
                      void (*on_event)(void *owner, const char *event, const json_t *data), void *owner, struct tpo_error *err);

#endif
