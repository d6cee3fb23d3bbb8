/* This file owns the mesh of one test case: ./run, started and ended by `tpo`, and questions to it. */
#include "tests/support/mesh.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/test.h"

int mesh_shell(const char *format, const char *a, const char *b)
{
    char command[4096];
    snprintf(command, sizeof(command), format, a, b);
    return system(command);
}

void mesh_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, (int)size, f));
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

int mesh_up(void **state)
{
    (void)state;
    if (mesh_shell("%s/tpo up --any-port --run-dir run --model %s/models/small >up.log 2>&1", tpo_test_build(),
                   tpo_test_source()) != 0) {
        (void)!system("cat up.log");
        return -1;
    }
    return 0;
}

int mesh_down(void **state)
{
    (void)state;
    return mesh_shell("%s/tpo down --run-dir run >down.log 2>&1%s", tpo_test_build(), "");
}

pid_t mesh_pid(const char *name)
{
    char path[64], line[64];
    snprintf(path, sizeof(path), "run/%s.pid", name);
    mesh_line(path, line, sizeof(line));
    return atoi(line);
}

/* --- requests ------------------------------------------------------------------------------------------------------------------------------ */

struct http_answer mesh_http(const char *path, const void *body, size_t size)
{
    return http_send("run", path, body, size, 0);
}

json_t *mesh_json(const struct http_answer *a)
{
    json_t *root = json_loads(a->body.data, 0, NULL);
    if (root == NULL) fail_msg("HTTP %ld: %s", a->status, a->body.data);
    return root;
}

const char *mesh_text(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL ? text : "";
}

static char *sample_read(const char *file, size_t *size)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/models/small/samples/%s", tpo_test_source(), file);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *data = malloc(1 << 22);
    *size = fread(data, 1, 1 << 22, f);
    fclose(f);
    return data;
}

/* `tail` bytes more make it another file with the same picture. */
void mesh_upload(const char *file, int tail, char id[65])
{
    size_t size;
    char *data = sample_read(file, &size);
    for (int i = 0; i < tail; i++) data[size++] = 'x';
    struct http_answer a = mesh_http("/v1/media", data, size);
    assert_int_equal(a.status, 200);
    json_t *root = mesh_json(&a);
    snprintf(id, 65, "%s", mesh_text(root, "id"));
    assert_int_equal(strlen(id), 64);
    json_decref(root);
    http_free(&a);
    free(data);
}

/* `more` is further members of the request, with a comma before. */
struct http_answer mesh_ask(const char *id, const char *sentence, const char *more)
{
    char body[2048];
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}]%s}", id, sentence,
             more);
    return mesh_http("/v1/perceive", body, strlen(body));
}

/* The sum of all samples of a metric whose labels hold `label`. */
double mesh_metric(const char *name, const char *label)
{
    struct http_answer a = mesh_http("/metrics", NULL, 0);
    double sum = 0;
    size_t n = strlen(name);
    for (char *line = strtok(a.body.data, "\n"); line != NULL; line = strtok(NULL, "\n"))
        if (strncmp(line, name, n) == 0 && (line[n] == '{' || line[n] == ' ') && strstr(line, label) != NULL)
            sum += atof(strrchr(line, ' '));
    http_free(&a);
    return sum;
}

void mesh_expect_error(const struct http_answer *a, long status, const char *code, const char *reason)
{
    json_t *root = mesh_json(a), *e = json_object_get(root, "error");
    if (a->status != status || strcmp(mesh_text(e, "code"), code) != 0 ||
        (reason[0] != '\0' && strcmp(mesh_text(e, "reason"), reason) != 0))
        fail_msg("HTTP %ld %s, wanted %ld %s %s", a->status, a->body.data, status, code, reason);
    assert_string_not_equal(mesh_text(e, "message"), "");
    assert_string_not_equal(mesh_text(e, "stage"), "");
    assert_string_not_equal(mesh_text(e, "requestId"), "");
    json_decref(root);
}

const json_t *mesh_stage(const json_t *root, const char *name)
{
    size_t i;
    json_t *s;
    json_array_foreach(json_object_get(root, "stages"), i, s) if (strcmp(mesh_text(s, "name"), name) == 0) return s;
    return NULL;
}

void *mesh_asker_run(void *owner)
{
    struct mesh_asker *k = owner;
    struct http_answer a = mesh_ask(k->id, k->sentence, "");
    json_t *root = json_loads(a.body.data, 0, NULL);
    snprintf(k->text, sizeof(k->text), "%ld %s", a.status, mesh_text(root, "text"));
    json_decref(root);
    http_free(&a);
    return NULL;
}
