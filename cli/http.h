/* http.h -- what the command line asks of the gateway's REST door: one blocking request at a time, by libcurl. */
#ifndef TPO_CLI_HTTP_H
#define TPO_CLI_HTTP_H

#include <jansson.h>

#include "common/status.h"

/* GET, the body as JSON (NULL where it is none). *http is the status. UNAVAILABLE when nobody answers. The caller decrefs. */
int tpo_http_get(const char *base, const char *path, long *http, json_t **body, struct tpo_error *err);

/* Streams the file to POST /v1/media; id gets its SHA-256. Shows a progress bar when it lasts. */
int tpo_http_upload(const char *base, const char *file, char id[65], struct tpo_error *err);

/* POST /v1/perceive with "stream": true. on_event gets each event's name and data while they come. The error is the answer's own. */
int tpo_http_perceive(const char *base, const json_t *request, void (*on_event)(void *owner, const char *event, const json_t *data),
                      void *owner, struct tpo_error *err);

#endif
