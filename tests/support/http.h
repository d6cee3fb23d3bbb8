/* http.h -- a client of a mesh's REST door, for tests: requests of one piece, answers whole in memory. A mesh is named by its --run-dir. */
#ifndef TPO_TESTS_HTTP_H
#define TPO_TESTS_HTTP_H

#include <jansson.h>
#include <stddef.h>

#include "common/text.h"

struct http_answer {
    long status;                /* 0: nobody answered */
    struct tpo_text body, head; /* with a NUL after them; http_free */
};

/* POST, or GET where body is NULL, to PATH of the mesh whose run directory is `run`. The client hangs up after timeout_ms; 0: never. */
struct http_answer http_send(const char *run, const char *path, const void *body, size_t size, long timeout_ms);
void http_free(struct http_answer *a);
/* POST: the status, and the body in `out` (zeroed before). */
long http_post(const char *run, const char *path, const void *body, size_t size, struct tpo_text *out);
/* A file of models/small/samples goes up; id (65) is its media id. */
void http_upload_sample(const char *run, const char *file, char *id);

#endif
