/* This file owns the small training meshes of tests. */
#include "tests/support/training.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "tests/support/events.h"
#include "tests/support/test.h"

extern char **environ;

static const char *const names[TRAINING_SERVICES] = {"encoder", "router", "region"};

static pid_t spawn(char *const argv[], const char *out, const char *err)
{
    posix_spawn_file_actions_t files;
    pid_t pid;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, out, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_addopen(&files, 2, err, O_WRONLY | O_CREAT | O_APPEND, 0644);
    assert_int_equal(posix_spawn(&pid, argv[0], &files, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

static char *file_read(const char *path, size_t *size)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s is missing", path);
    fstat(fileno(f), &st);
    char *bytes = malloc((size_t)st.st_size + 1);
    *size = fread(bytes, 1, (size_t)st.st_size, f);
    bytes[*size] = '\0';
    fclose(f);
    return bytes;
}

/* --- the model ------------------------------------------------------------------------------------------------------------------------ */

static void integer_set(json_t *j, const char *part, const char *key, int value)
{
    json_object_set_new(json_object_get(json_object_get(j, "model_config"), part), key, json_integer(value));
}

static void real_set(json_t *j, const char *part, const char *key, double value)
{
    json_object_set_new(json_object_get(json_object_get(j, "model_config"), part), key, json_real(value));
}

/* Links would make it the recipes' own file to the checks of folders; it is copied. */
static void copy(const char *file)
{
    char from[4096], to[64];
    size_t size;
    snprintf(from, sizeof(from), "%s/trainer/recipes/lora/%s", tpo_test_source(), file);
    snprintf(to, sizeof(to), "tiny/%s", file);
    char *bytes = file_read(from, &size);
    FILE *f = fopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    fclose(f);
    free(bytes);
}

void training_model(double dropout)
{
    char path[4096], program[4096];
    snprintf(path, sizeof(path), "%s/trainer/recipes/lora/config.json", tpo_test_source());
    json_t *j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    integer_set(j, "vision_encoder", "encoder_embed_dim", 32), integer_set(j, "vision_encoder", "encoder_depth", 2);
    integer_set(j, "vision_encoder", "encoder_num_heads", 2), integer_set(j, "vision_encoder", "num_frames", 4);
    integer_set(j, "vision_encoder", "checkpoint_frames", 4), integer_set(j, "vision_encoder", "img_size", 48);
    integer_set(j, "bridge", "hidden_size", 32), integer_set(j, "bridge", "num_hidden_layers", 2);
    integer_set(j, "bridge", "num_attention_heads", 2), integer_set(j, "bridge", "intermediate_size", 64);
    integer_set(j, "bridge", "num_query_token", 32);
    integer_set(j, "llm", "hidden_size", 64), integer_set(j, "llm", "num_hidden_layers", 2),
        integer_set(j, "llm", "intermediate_size", 96);
    integer_set(j, "llm", "num_attention_heads", 2), integer_set(j, "llm", "num_key_value_heads", 2);
    real_set(j, "bridge", "qformer_hidden_dropout_prob", dropout), real_set(j, "bridge", "drop_path_rate", dropout);
    real_set(j, "llm", "lora_dropout", dropout);
    assert_int_equal(mkdir("tiny", 0755), 0);
    assert_int_equal(json_dump_file(j, "tiny/config.json", JSON_INDENT(2)), 0);
    json_decref(j);
    copy("added_tokens.json");
    copy("tokenizer.model");
    snprintf(program, sizeof(program), "%s/tpo-trainer", tpo_test_build());
    char *argv[] = {program, "model", "random", "tiny", "served", "--seed", "77", NULL};
    assert_int_equal(training_wait(spawn(argv, "model.log", "model.log"), 60), 0);
}

void training_export(const char *from, const char *to, const char *dtype)
{
    char program[4096];
    snprintf(program, sizeof(program), "%s/tpo-trainer", tpo_test_build());
    char *argv[] = {program, "model", "export", (char *)from, (char *)to, "--dtype", (char *)dtype, NULL};
    assert_int_equal(training_wait(spawn(argv, "model.log", "model.log"), 60), 0);
}

void training_recipe_with(const char *name, const char *stages, const char *piece, const char *instead)
{
    char text[4096];
    assert_true(snprintf(text, sizeof(text), "name: test\nseed: 3\nmodel: tiny\nstages:\n%s", stages) < (int)sizeof(text));
    const char *at = strstr(text, piece);
    assert_non_null(at);
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    fprintf(f, "%.*s%s%s", (int)(at - text), text, instead, at + strlen(piece));
    fclose(f);
}

void training_recipe(const char *name, const char *stages)
{
    training_recipe_with(name, stages, "", "");
}

/* --- services -------------------------------------------------------------------------------------------------------------------------- */

/* The port that the process took, once it serves; a log may tell of lives before. */
static int ready_wait(const char *log, size_t from, pid_t pid)
{
    const double limit_s = tpo_test_limit_s(60);
    for (const double until = tpo_now_s() + limit_s; tpo_now_s() < until; usleep(5000)) {
        size_t size = 0;
        char *text = access(log, R_OK) == 0 ? file_read(log, &size) : NULL;
        const char *at = text != NULL && size > from ? strstr(text + from, "event=listening port=") : NULL;
        const int port = at != NULL && strstr(at, "event=ready") != NULL ? atoi(at + strlen("event=listening port=")) : 0;
        free(text);
        if (port > 0) return port;
        if (waitpid(pid, NULL, WNOHANG) == pid) fail_msg("a service did not start: see %s", log);
    }
    fail_msg("%s: not ready within %.0f s", log, limit_s);
    return 0;
}

static size_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (size_t)st.st_size : 0;
}

static void service_spawn(struct training_mesh *m, int service, int replica, const char *fault, char log[64], size_t *from)
{
    char program[4096], listen[64], media[64], threads[16];
    snprintf(threads, sizeof(threads), "%d", m->threads);
    snprintf(program, sizeof(program), "%s/tpo-%s", tpo_test_build(), names[service]);
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", m->ports[service][replica]);
    snprintf(media, sizeof(media), "media-%d", replica);
    snprintf(log, 64, "%s-%d.log", names[service], replica);
    *from = size_of(log);
    char *argv[20] = {program, "--listen", listen, "--model", (char *)m->model, "--train", "--threads", threads};
    int n = 8;
    if (service == TRAINING_ENCODER) argv[n++] = "--media-dir", argv[n++] = media;
    if (service == TRAINING_ENCODER && getenv("TPO_CACHE") == NULL) argv[n++] = "--cache", argv[n++] = "";
    if (fault != NULL) argv[n++] = "--fault", argv[n++] = (char *)fault;
    m->pids[service][replica] = spawn(argv, log, log);
}

void training_mesh_renew(struct training_mesh *m, int service, int replica, const char *fault)
{
    char log[64];
    size_t from;
    if (m->pids[service][replica] > 0) {
        kill(m->pids[service][replica], SIGKILL);
        waitpid(m->pids[service][replica], NULL, 0);
    }
    service_spawn(m, service, replica, fault, log, &from);
    m->ports[service][replica] = ready_wait(log, from, m->pids[service][replica]);
}

void training_mesh_start(struct training_mesh *m, const char *model, int n, int threads)
{
    training_mesh_start_each(m, model, (const int[TRAINING_SERVICES]){n, n, n}, threads);
}

void training_mesh_start_each(struct training_mesh *m, const char *model, const int n[TRAINING_SERVICES], int threads)
{
    char logs[TRAINING_SERVICES][TRAINING_REPLICAS][64];
    size_t from[TRAINING_SERVICES][TRAINING_REPLICAS];
    *m = (struct training_mesh){.model = model, .threads = threads};
    for (int s = 0; s < TRAINING_SERVICES; s++)
        for (int r = 0; r < n[s]; r++) service_spawn(m, s, r, NULL, logs[s][r], &from[s][r]);
    for (int s = 0; s < TRAINING_SERVICES; s++)
        for (int r = 0; r < n[s]; r++) m->ports[s][r] = ready_wait(logs[s][r], from[s][r], m->pids[s][r]);
    for (int s = 0; s < TRAINING_SERVICES; s++) m->n[s] = n[s];
}

void training_mesh_stop(struct training_mesh *m)
{
    for (int s = 0; s < TRAINING_SERVICES; s++)
        for (int r = 0; r < m->n[s]; r++)
            if (m->pids[s][r] > 0) {
                kill(m->pids[s][r], SIGKILL);
                waitpid(m->pids[s][r], NULL, 0);
                m->pids[s][r] = 0;
            }
}

bool training_mesh_died(struct training_mesh *m, int service, int replica)
{
    if (m->pids[service][replica] <= 0 || waitpid(m->pids[service][replica], NULL, WNOHANG) == 0) return false;
    m->pids[service][replica] = 0;
    return true;
}

const char *training_mesh_text(const struct training_mesh *m)
{
    static char text[512];
    size_t at = 0;
    for (int s = 0; s < TRAINING_SERVICES; s++)
        for (int r = 0; r < m->n[s]; r++)
            at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s%s127.0.0.1:%d", at > 0 ? "," : "", r == 0 ? names[s] : "",
                                   r == 0 ? "=" : "", m->ports[s][r]);
    return text;
}

/* --- trainers -------------------------------------------------------------------------------------------------------------------------- */

pid_t training_start(const char *recipe, const char *out, const struct training_mesh *m, const char *const *more)
{
    char program[4096], log[128], err[128];
    snprintf(program, sizeof(program), "%s/tpo-trainer", tpo_test_build());
    snprintf(log, sizeof(log), "%s.log", out);
    snprintf(err, sizeof(err), "%s.err", out);
    char *argv[40] = {program, "train", (char *)recipe, "--out", (char *)out, "--threads", "2", "--log-every", "1"};
    int n = 9;
    if (m != NULL) argv[n++] = "--mesh", argv[n++] = (char *)training_mesh_text(m);
    for (; more != NULL && *more != NULL; more++) argv[n++] = (char *)*more;
    return spawn(argv, log, err);
}

int training_wait(pid_t pid, double usual_s)
{
    int status = 0;
    const double limit_s = tpo_test_limit_s(usual_s);
    const double until = tpo_now_s() + limit_s;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (tpo_now_s() > until) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            fail_msg("a process did not end within %.0f s", limit_s);
        }
        usleep(5000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void training_run(const char *recipe, const char *out, const struct training_mesh *m, const char *const *more)
{
    char err[128];
    size_t size;
    const int status = training_wait(training_start(recipe, out, m, more), 90);
    snprintf(err, sizeof(err), "%s.err", out);
    if (status != 0) fail_msg("the trainer of %s ended with %d: %s", out, status, file_read(err, &size));
}

int training_through(const char *recipe, const char *out, struct training_mesh *m, const char *const *more)
{
    int died = 0, status = 0;
    pid_t pid = training_start(recipe, out, m, more);
    const double limit_s = tpo_test_limit_s(120), until = tpo_now_s() + limit_s;
    for (; waitpid(pid, &status, WNOHANG) == 0; usleep(5000)) {
        if (tpo_now_s() > until) {
            kill(pid, SIGKILL);
            fail_msg("%s: no end within %.0f s", out, limit_s);
        }
        for (int s = 0; s < TRAINING_SERVICES; s++)
            for (int r = 0; r < m->n[s]; r++)
                if (training_mesh_died(m, s, r)) {
                    died++;
                    training_mesh_renew(m, s, r, NULL);
                }
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        char command[128];
        snprintf(command, sizeof(command), "cat %s.err; tail -n 3 %s.log", out, out);
        (void)!system(command);
        fail_msg("%s: the trainer ended with %d", out, status);
    }
    return died;
}

/* --- comparing ------------------------------------------------------------------------------------------------------------------------- */

void training_same_model(const char *out_a, const char *out_b, const char *stage)
{
    char path[256];
    size_t size_a, size_b;
    snprintf(path, sizeof(path), "%s/%s/model/model.safetensors", out_a, stage);
    char *a = file_read(path, &size_a);
    snprintf(path, sizeof(path), "%s/%s/model/model.safetensors", out_b, stage);
    char *b = file_read(path, &size_b);
    if (size_a != size_b || memcmp(a, b, size_a) != 0) fail_msg("%s and %s: the models of %s differ", out_a, out_b, stage);
    free(a);
    free(b);
}

/* The next line that tells of a step, cut before its times; NULL at the end. */
static char *step_line(char **next)
{
    for (char *line; (line = strsep(next, "\n")) != NULL;) {
        char *times = strstr(line, " data_ms=");
        if (times == NULL) continue;
        *times = '\0';
        return line;
    }
    return NULL;
}

void training_same_lines(const char *out_a, const char *out_b)
{
    char path[256];
    size_t size;
    int n = 0;
    snprintf(path, sizeof(path), "%s.log", out_a);
    char *a = file_read(path, &size), *next_a = a;
    snprintf(path, sizeof(path), "%s.log", out_b);
    char *b = file_read(path, &size), *next_b = b;
    for (char *line_a, *line_b; (line_a = step_line(&next_a)) != NULL; n++) {
        line_b = step_line(&next_b);
        if (line_b == NULL || strcmp(line_a, line_b) != 0)
            fail_msg("%s tells\n%s\n%s tells\n%s", out_a, line_a, out_b, line_b != NULL ? line_b : "nothing");
    }
    assert_true(n > 0);
    assert_null(step_line(&next_b));
    free(a);
    free(b);
}

/* What the arithmetic made; seconds and samples per second are left out. */
static bool is_sum(const char *tag)
{
    static const char *const begins[] = {"loss/", "norm/", "rate/", "clip"};
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++)
        if (strncmp(tag, begins[i], strlen(begins[i])) == 0) return true;
    return false;
}

static void same_bits(const Tfevents__Event *a, const Tfevents__Event *b, const char *out_a, const char *out_b)
{
    int losses = 0;
    assert_int_equal(a->summary->n_value, b->summary->n_value);
    for (size_t i = 0; i < a->summary->n_value; i++) {
        const char *tag = a->summary->value[i]->tag;
        const float x = test_events_value(a, tag), y = test_events_value(b, tag);
        losses += strncmp(tag, "loss/", 5) == 0;
        if (is_sum(tag) && memcmp(&x, &y, sizeof(x)) != 0)
            fail_msg("step %d, %s: %a in %s, %a in %s", (int)a->step, tag, (double)x, out_a, (double)y, out_b);
    }
    assert_true(losses > 0);
}

void training_same_bits(const char *out_a, const char *out_b, const char *stage, int steps)
{
    struct test_events a, b;
    char dir[256];
    snprintf(dir, sizeof(dir), "%s/%s", out_a, stage);
    test_events_read(&a, dir, 0);
    snprintf(dir, sizeof(dir), "%s/%s", out_b, stage);
    test_events_read(&b, dir, 0);
    assert_int_equal(a.n, 2 + steps); /* the file's version, and the start */
    assert_int_equal(b.n, 2 + steps);
    for (int step = 1; step <= steps; step++) {
        assert_int_equal(a.all[1 + step]->step, step);
        assert_int_equal(b.all[1 + step]->step, step);
        same_bits(a.all[1 + step], b.all[1 + step], out_a, out_b);
    }
    test_events_free(&a);
    test_events_free(&b);
}

bool training_says(const char *path, const char *text)
{
    size_t size;
    char *all = file_read(path, &size);
    const bool says = strstr(all, text) != NULL;
    free(all);
    return says;
}
