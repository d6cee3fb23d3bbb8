/* http.h -- a client of a mesh's REST door, for tests: requests of one piece, answers whole in memory. A mesh is named by its --run-dir. */
#ifndef TPO_TESTS_HTTP_H
#define TPO_TESTS_HTTP_H

#include <jansson.h>
#include <stddef.h>

#include "common/text.h"

/* POST to PATH of the mesh whose run directory is `run`. The HTTP status, 0 where nobody answered; the body in `out` (zeroed before), with a NUL after it. */
long http_post(const char *run, const char *path, const void *body, size_t size, struct tpo_text *out);
/* A file of models/small/samples goes up; id (65) is its media id. */
void http_upload_sample(const char *run, const char *file, char *id);

#endif
