/* mesh.h -- the mesh of a test case: the real programs on the small model, started by `tpo up` in ./run, and questions to them over HTTP. Failures
 * abort the case. */
#ifndef TPO_TESTS_MESH_H
#define TPO_TESTS_MESH_H

#include <pthread.h>
#include <sys/types.h>

#include "tests/support/http.h"

/* A cmocka case's setup and teardown. */
int mesh_up(void **state);
int mesh_down(void **state);
/* A command with two %s; its wait status. */
int mesh_shell(const char *format, const char *a, const char *b);
/* The first line of a file: run/http and run/grpc hold the doors' addresses. */
void mesh_line(const char *path, char *out, size_t size);
/* Of "router-0", "redis", ...: what run/NAME.pid says. */
pid_t mesh_pid(const char *name);

/* http_send to ./run without a time limit. */
struct http_answer mesh_http(const char *path, const void *body, size_t size);
/* A file of models/small/samples goes up, with `tail` bytes more: another file with the same picture. */
void mesh_upload(const char *file, int tail, char id[65]);
/* One question; `more` is further members of the request, with a comma before. */
struct http_answer mesh_ask(const char *id, const char *sentence, const char *more);
/* The body as JSON, the caller's to free. */
json_t *mesh_json(const struct http_answer *a);
/* A member's text, "" where there is none; the entry of `stages` of that name, or NULL. */
const char *mesh_text(const json_t *o, const char *key);
const json_t *mesh_stage(const json_t *root, const char *name);
/* The sum of all samples of a metric whose labels hold `label`. */
double mesh_metric(const char *name, const char *label);
/* An error of that status, code and reason ("": any), with message, stage and request id. */
void mesh_expect_error(const struct http_answer *a, long status, const char *code, const char *reason);

/* A question that a thread asks; text is "STATUS ANSWER" afterwards. */
struct mesh_asker {
    pthread_t thread;
    char id[65], text[512];
    const char *sentence;
};
void *mesh_asker_run(void *asker);

#endif
