/* Proves the mesh as a whole: the real programs, started by `tpo up` on the small model, spoken to over HTTP and gRPC; killed, stopped,
 * abandoned and fed with nonsense. */
#include "tests/support/test.h"

#include <curl/curl.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/text.h"
#include "gateway.pb-c.h"
#include "media.pb-c.h"

static char base[160], rest[64], grpc_address[64];

static int shell(const char *format, const char *a, const char *b)
{
    char command[4096];
    snprintf(command, sizeof(command), format, a, b);
    return system(command);
}

static void read_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, (int)size, f));
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

static int up(void **state)
{
    (void)state;
    if (shell("%s/tpo up --any-port --run-dir run --model %s/models/small >up.log 2>&1", tpo_test_build(), tpo_test_source()) !=
        0) {
        (void)!system("cat up.log");
        return -1;
    }
    read_line("run/http", rest, sizeof(rest));
    read_line("run/grpc", grpc_address, sizeof(grpc_address));
    snprintf(base, sizeof(base), "http://%s", rest);
    return 0;
}

static int down(void **state)
{
    (void)state;
    return shell("%s/tpo down --run-dir run >down.log 2>&1%s", tpo_test_build(), "");
}

static pid_t pid_of(const char *name)
{
    char path[64], line[64];
    snprintf(path, sizeof(path), "run/%s.pid", name);
    read_line(path, line, sizeof(line));
    return atoi(line);
}

/* --- HTTP ---------------------------------------------------------------------------------------------------------------------------- */

struct answer {
    long status;
    struct tpo_text body, head;
};

static size_t on_text(char *data, size_t one, size_t n, void *owner)
{
    tpo_text_add(owner, data, one * n);
    return one * n;
}

/* body NULL: GET. */
static struct answer http(const char *path, const void *body, size_t size)
{
    struct answer a = {0};
    char url[256];
    CURL *c = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    snprintf(url, sizeof(url), "%s%s", base, path);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &a.body);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, &a.head);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    if (body != NULL) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
    }
    curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &a.status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(c);
    tpo_text_add(&a.body, "", 0);
    tpo_text_add(&a.head, "", 0);
    return a;
}

static void answer_free(struct answer *a)
{
    tpo_text_free(&a->body);
    tpo_text_free(&a->head);
}

static json_t *parsed(const struct answer *a)
{
    json_t *root = json_loads(a->body.data, 0, NULL);
    if (root == NULL) fail_msg("HTTP %ld: %s", a->status, a->body.data);
    return root;
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL ? text : "";
}

static char *read_all(const char *file, size_t *size)
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
static void upload(const char *file, int tail, char id[65])
{
    size_t size;
    char *data = read_all(file, &size);
    for (int i = 0; i < tail; i++) data[size++] = 'x';
    struct answer a = http("/v1/media", data, size);
    assert_int_equal(a.status, 200);
    json_t *root = parsed(&a);
    snprintf(id, 65, "%s", text_of(root, "id"));
    assert_int_equal(strlen(id), 64);
    json_decref(root);
    answer_free(&a);
    free(data);
}

/* `more` is further members of the request, with a comma before. */
static struct answer ask(const char *id, const char *sentence, const char *more)
{
    char body[2048];
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}]%s}", id, sentence,
             more);
    return http("/v1/perceive", body, strlen(body));
}

/* The sum of all samples of a metric whose labels hold `label`. */
static double metric(const char *name, const char *label)
{
    struct answer a = http("/metrics", NULL, 0);
    double sum = 0;
    size_t n = strlen(name);
    for (char *line = strtok(a.body.data, "\n"); line != NULL; line = strtok(NULL, "\n"))
        if (strncmp(line, name, n) == 0 && (line[n] == '{' || line[n] == ' ') && strstr(line, label) != NULL)
            sum += atof(strrchr(line, ' '));
    answer_free(&a);
    return sum;
}

static void expect_error(const struct answer *a, long status, const char *code, const char *reason)
{
    json_t *root = parsed(a), *e = json_object_get(root, "error");
    if (a->status != status || strcmp(text_of(e, "code"), code) != 0 ||
        (reason[0] != '\0' && strcmp(text_of(e, "reason"), reason) != 0))
        fail_msg("HTTP %ld %s, wanted %ld %s %s", a->status, a->body.data, status, code, reason);
    assert_string_not_equal(text_of(e, "message"), "");
    assert_string_not_equal(text_of(e, "stage"), "");
    assert_string_not_equal(text_of(e, "requestId"), "");
    json_decref(root);
}

static const json_t *stage_of(const json_t *root, const char *name)
{
    size_t i;
    json_t *s;
    json_array_foreach(json_object_get(root, "stages"), i, s) if (strcmp(text_of(s, "name"), name) == 0) return s;
    return NULL;
}

/* --- cases ----------------------------------------------------------------------------------------------------------------------------- */

static void a_second_question_runs_no_encoder(void **state)
{
    (void)state;
    char id[65];
    upload("crowd.png", 0, id);
    struct answer a = ask(id, "Where is the dotted ball?", "");
    json_t *first = parsed(&a);
    assert_int_equal(a.status, 200);
    assert_int_equal(json_array_size(json_object_get(first, "calls")), 1);
    assert_int_equal(json_array_size(json_object_get(first, "boxes")), 1);
    const json_t *pixels = json_object_get(json_array_get(json_object_get(first, "boxes"), 0), "pixels"),
                 *media = json_object_get(first, "media");
    assert_true(json_number_value(json_object_get(pixels, "x0")) >= 0);
    assert_true(json_number_value(json_object_get(pixels, "x1")) <= json_number_value(json_object_get(media, "width")));
    assert_true(json_number_value(json_object_get(pixels, "x1")) > json_number_value(json_object_get(pixels, "x0")));
    assert_string_equal(text_of(stage_of(first, "encoder"), "cache"), "miss");
    assert_non_null(stage_of(first, "router"));
    assert_non_null(stage_of(first, "region"));
    double runs = metric("tpo_encoder_runs_total", "encoder");
    assert_true(runs >= 1);
    struct answer b = ask(id, "How many crosses are there?", "");
    json_t *second = parsed(&b);
    assert_int_equal(b.status, 200);
    assert_string_equal(text_of(stage_of(second, "encoder"), "cache"), "hit");
    assert_string_not_equal(text_of(second, "text"), "");
    assert_true(metric("tpo_encoder_runs_total", "encoder") == runs);
    assert_true(metric("tpo_requests_accepted_total", "gateway") == metric("tpo_requests_total", "stage=\"gateway\""));
    json_decref(first);
    json_decref(second);
    answer_free(&a);
    answer_free(&b);
}

static double number_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* From the call's start to its last message, as the gateway saw it. */
static double span_ms(const json_t *stage)
{
    return number_of(stage, "queueMs") + number_of(stage, "runMs") + number_of(stage, "hopMs");
}

/* hop_ms is what is left of a call's time after queue and run: more than nothing, and with them never more than the request took. Encoder and router work
 * one after the other; heads while the router still writes, or after it. */
static void hops_are_told_apart_from_work(void **state)
{
    (void)state;
    char id[65];
    upload("crowd.png", 0, id);
    struct answer a = ask(id, "Where is the dotted ball?", "");
    json_t *root = parsed(&a);
    assert_int_equal(a.status, 200);
    const json_t *encoder = stage_of(root, "encoder"), *router = stage_of(root, "router"), *region = stage_of(root, "region");
    const double total_ms = number_of(json_object_get(root, "usage"), "totalMs");
    const json_t *const all[] = {encoder, router, region};
    for (int i = 0; i < 3; i++) {
        assert_non_null(all[i]);
        if (!(number_of(all[i], "hopMs") > 0) || !(number_of(all[i], "runMs") > 0) || !(span_ms(all[i]) <= total_ms))
            fail_msg("stage %d: hop %g, span %g of %g ms: %s", i, number_of(all[i], "hopMs"), span_ms(all[i]), total_ms, a.body.data);
    }
    if (!(span_ms(encoder) + span_ms(router) <= total_ms)) fail_msg("more than the whole: %s", a.body.data);
    assert_true(number_of(stage_of(root, "gateway"), "hopMs") == 0); /* nobody called it from within */
    json_decref(root);
    answer_free(&a);
}

static void every_bad_request_gets_a_typed_error(void **state)
{
    (void)state;
    static const char id_none[] = "0000000000000000000000000000000000000000000000000000000000000000";
    char id[65], garbage[65];
    upload("crowd.png", 0, id);
    struct answer u = http("/v1/media", "this is no picture", 18);
    json_t *root = parsed(&u);
    snprintf(garbage, sizeof(garbage), "%s", text_of(root, "id"));
    json_decref(root);
    answer_free(&u);
    const struct {
        const char *body;
        long status;
        const char *code, *reason;
    } cases[] = {
        {"", 400, "INVALID_ARGUMENT", "json"},
        {"{}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"  \"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"robot\",\"text\":\"x\"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"assistant\",\"text\":\"x\"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"nope\":1}", 400, "INVALID_ARGUMENT", "json_field"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"a\\u0000b\"}]}", 400, "INVALID_ARGUMENT", "json"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"\xff\"}]}", 400, "INVALID_ARGUMENT", "json"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"seed\":-1}", 400, "INVALID_ARGUMENT", "json_value"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"maxNewTokens\":1000000}", 400, "INVALID_ARGUMENT", "max_new_tokens"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"topP\":2}", 400, "INVALID_ARGUMENT", "top_p"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"requestId\":\"a b\"}", 400, "INVALID_ARGUMENT", "request_id"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{}]}", 400, "INVALID_ARGUMENT", "media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"id\":\"zz\"}]}", 400, "INVALID_ARGUMENT", "media_id"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"data\":\"AA==\"},{\"data\":\"AA==\"}]}", 501,
         "UNIMPLEMENTED", "multi_media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"data\":\"AAAA\"}]}", 400, "INVALID_ARGUMENT",
         "media_unreadable"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"boxes\":[{\"rect\":{\"x1\":1}}]}", 400, "INVALID_ARGUMENT",
         "box_without_media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"task\":\"nosuch\"}", 400, "INVALID_ARGUMENT", "task_unknown"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct answer a = http("/v1/perceive", cases[i].body, strlen(cases[i].body));
        expect_error(&a, cases[i].status, cases[i].code, cases[i].reason);
        answer_free(&a);
    }
    const struct {
        const char *id, *text, *more;
        long status;
        const char *code, *reason;
    } more[] = {
        {id_none, "x", "", 404, "NOT_FOUND", "media_unknown"},
        {garbage, "x", "", 400, "INVALID_ARGUMENT", "media_unreadable"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":5,\"y0\":5,\"x1\":1,\"y1\":9}}]", 400, "INVALID_ARGUMENT", "box_invalid"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":5,\"y0\":5,\"x1\":100000,\"y1\":9}}]", 400, "INVALID_ARGUMENT", "box_invalid"},
        {id, "{box} {box}", ",\"boxes\":[{\"rect\":{\"x1\":5,\"y1\":5}}]", 400, "INVALID_ARGUMENT", "box_missing"},
        {id, "x", ",\"timeoutMs\":4000000", 400, "INVALID_ARGUMENT", "timeout"},
    };
    for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++) {
        struct answer a = ask(more[i].id, more[i].text, more[i].more);
        expect_error(&a, more[i].status, more[i].code, more[i].reason);
        answer_free(&a);
    }
    /* 64 KB of sentence, as text and over the router's context. */
    struct tpo_text big = {0};
    tpo_text_puts(&big, "{\"turns\":[{\"role\":\"user\",\"text\":\"");
    for (int i = 0; i < 65536; i++) tpo_text_puts(&big, "a");
    tpo_text_puts(&big, "\"}]}");
    struct answer a = http("/v1/perceive", big.data, big.size);
    expect_error(&a, 400, "INVALID_ARGUMENT", "text_too_long");
    answer_free(&a);
    tpo_text_free(&big);
    /* A task token that a user types is text. */

    a = ask(id, "<boxes><box_begin>", ",\"task\":\"none\"");
    assert_int_equal(a.status, 200);
    root = parsed(&a);
    assert_int_equal(json_array_size(json_object_get(root, "calls")), 0);
    json_decref(root);
    answer_free(&a);
}

static void events_come_in_order_and_done_is_last(void **state)
{
    (void)state;
    char id[65];
    upload("crosses.png", 0, id);
    struct answer a = ask(id, "Describe the picture.", ",\"stream\":true,\"requestId\":\"my-own\"");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.head.data, "text/event-stream"));
    struct tpo_text text = {0};
    json_t *done = NULL;
    int seq = 0;
    for (char *at = a.body.data, *end; (end = strstr(at, "\n\n")) != NULL; at = end + 2) {
        int number;
        char kind[32];
        *end = '\0';
        assert_null(done);
        assert_int_equal(sscanf(at, "id: %d\nevent: %31s\n", &number, kind), 2);
        assert_int_equal(number, seq++);
        json_t *event = json_loads(strstr(at, "data: ") + 6, 0, NULL);
        assert_non_null(event);
        assert_int_equal(json_integer_value(json_object_get(event, "seq")), number);
        if (strcmp(kind, "text") == 0) tpo_text_puts(&text, text_of(json_object_get(event, "text"), "text"));
        if (strcmp(kind, "done") == 0) done = json_incref(json_object_get(event, "done"));
        json_decref(event);
    }
    assert_non_null(done);
    assert_true(seq > 3);
    assert_string_equal(text_of(done, "text"), text.data);
    assert_string_equal(text_of(done, "requestId"), "my-own");
    json_decref(done);
    tpo_text_free(&text);
    answer_free(&a);
}

struct asker {
    pthread_t thread;
    char id[65], text[512];
    const char *sentence;
};

static void *run_asker(void *owner)
{
    struct asker *k = owner;
    struct answer a = ask(k->id, k->sentence, "");
    json_t *root = json_loads(a.body.data, 0, NULL);
    snprintf(k->text, sizeof(k->text), "%ld %s", a.status, text_of(root, "text"));
    json_decref(root);
    answer_free(&a);
    return NULL;
}

static void an_answer_is_the_same_among_eight(void **state)
{
    (void)state;
    static const char *const sentences[] = {"Describe the picture.", "How many crosses are there?", "What colour is the square?",
                                            "Where is the orange star?"};
    struct asker alone[8] = {0}, many[8] = {0};
    for (int i = 0; i < 8; i++) {
        upload(i % 2 == 0 ? "crosses.png" : "crowd.png", 0, alone[i].id);
        alone[i].sentence = sentences[i / 2];
        many[i] = alone[i];
        run_asker(&alone[i]);
        assert_int_equal(strncmp(alone[i].text, "200", 3), 0);
    }
    for (int i = 0; i < 8; i++) pthread_create(&many[i].thread, NULL, run_asker, &many[i]);
    for (int i = 0; i < 8; i++) pthread_join(many[i].thread, NULL);
    for (int i = 0; i < 8; i++) assert_string_equal(many[i].text, alone[i].text);
}

static void a_head_that_died_costs_its_own_call_alone(void **state)
{
    (void)state;
    char id[65];
    upload("crowd.png", 0, id);
    kill(pid_of("region-0"), SIGKILL);
    struct answer a = ask(id, "Where is the dotted ball?", "");
    assert_int_equal(a.status, 200);
    json_t *root = parsed(&a), *call = json_array_get(json_object_get(root, "calls"), 0);
    assert_string_equal(text_of(json_object_get(call, "error"), "code"), "UNAVAILABLE");
    assert_string_equal(text_of(json_object_get(call, "error"), "stage"), "region");
    assert_int_equal(json_array_size(json_object_get(root, "boxes")), 0);
    assert_null(json_object_get(root, "error"));
    json_decref(root);
    answer_free(&a);
    a = ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    answer_free(&a);
}

static void without_redis_answers_stay_the_same(void **state)
{
    (void)state;
    struct asker before = {.sentence = "Describe the picture."}, after = before;
    upload("crosses.png", 0, before.id);
    run_asker(&before);
    if (access("run/redis.pid", R_OK) != 0) skip();
    kill(pid_of("redis"), SIGKILL);
    upload("crosses.png", 7, after.id);
    run_asker(&after);
    assert_string_equal(after.text, before.text);
    run_asker(&after);
    assert_string_equal(after.text, before.text);
}

static void a_dead_encoder_is_a_typed_error_and_its_return_is_noticed(void **state)
{
    (void)state;
    char id[65], address[128] = "", command[4096];
    upload("crowd.png", 0, id);
    struct answer a = http("/readyz", NULL, 0);
    json_t *root = parsed(&a), *peer;
    size_t i;
    json_array_foreach(json_object_get(root, "peers"), i, peer) if (strcmp(text_of(peer, "stage"), "encoder") == 0)
        snprintf(address, sizeof(address), "%s", text_of(peer, "address"));
    json_decref(root);
    answer_free(&a);
    kill(pid_of("encoder-0"), SIGKILL);
    a = ask(id, "How many crosses are there?", "");
    expect_error(&a, 503, "UNAVAILABLE", "");
    answer_free(&a);
    for (int tries = 0; a.status != 503 || tries == 0; tries++) {
        a = http("/readyz", NULL, 0);
        answer_free(&a);
        usleep(20000);
    }
    /* It comes back without its files: the gateway sends them again. */
    snprintf(command, sizeof(command),
             "%s/tpo-encoder --listen %s --model %s/models/small --media-dir again >again.log 2>&1 & echo $! >again.pid",
             tpo_test_build(), address, tpo_test_source());
    assert_int_equal(system(command), 0);
    do {
        usleep(20000);
        a = http("/readyz", NULL, 0);
        answer_free(&a);
    } while (a.status != 200);
    a = ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    answer_free(&a);
    read_line("again.pid", command, 32);
    kill(atoi(command), SIGTERM);
}

static void a_stopped_router_meets_the_deadline_and_the_cancel(void **state)
{
    (void)state;
    char id[65];
    upload("crowd.png", 0, id);
    pid_t router = pid_of("router-0");
    kill(router, SIGSTOP);
    struct answer a = ask(id, "How many crosses are there?", ",\"timeoutMs\":300");
    expect_error(&a, 504, "DEADLINE_EXCEEDED", "deadline");
    answer_free(&a);
    /* A client that leaves: the request ends as CANCELLED. */
    CURL *c = curl_easy_init();
    char url[256], body[256];
    struct tpo_text ignored = {0};
    snprintf(url, sizeof(url), "%s/v1/perceive", base);
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"stream\":true}",
             id);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, 200L);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &ignored);
    curl_easy_perform(c);
    curl_easy_cleanup(c);
    tpo_text_free(&ignored);
    while (metric("tpo_requests_total", "code=\"CANCELLED\"") < 1) usleep(20000);
    assert_true(metric("tpo_requests_running", "stage=\"gateway\"") == 0);
    kill(router, SIGCONT);
    a = ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    answer_free(&a);
    assert_true(metric("tpo_requests_accepted_total", "gateway") == metric("tpo_requests_total", "stage=\"gateway\""));
}

static int up_narrow(void **state)
{
    setenv("TPO_RUNNING", "1", 1);
    setenv("TPO_WAITING", "0", 1);
    return up(state);
}

static void a_full_queue_is_429_with_retry_after(void **state)
{
    (void)state;
    struct asker first = {.sentence = "How many crosses are there?"};
    upload("crowd.png", 0, first.id);
    pid_t router = pid_of("router-0");
    kill(router, SIGSTOP);
    pthread_create(&first.thread, NULL, run_asker, &first);
    while (metric("tpo_requests_running", "stage=\"gateway\"") < 1) usleep(10000);
    struct answer a = ask(first.id, "How many crosses are there?", "");
    expect_error(&a, 429, "RESOURCE_EXHAUSTED", "queue_full");
    assert_non_null(strstr(a.head.data, "Retry-After: 1\r\n"));
    answer_free(&a);
    kill(router, SIGCONT);
    pthread_join(first.thread, NULL);
    assert_int_equal(strncmp(first.text, "200", 3), 0);
    assert_true(metric("tpo_admission_rejected_total", "queue_full") == 1);
}

/* --- gRPC --------------------------------------------------------------------------------------------------------------------------------- */

struct heard {
    int events, done, code;
    char kinds[64], reason[48];
};

static void on_event(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)r, (void)payload;
    struct heard *h = owner;
    const Tpo__V1__PerceiveEvent *e = (Tpo__V1__PerceiveEvent *)message;
    assert_int_equal(e->seq, h->events);
    h->kinds[h->events++ % 64] = (char)('0' + e->kind_case);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_end(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r;
    struct heard *h = owner;
    h->code = status;
    snprintf(h->reason, sizeof(h->reason), "%s", err->reason);
    h->done = 1;
}

static void grpc_answers_the_same(void **state)
{
    (void)state;
    char id[65];
    upload("crowd.png", 0, id);
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "gateway", grpc_address, TPO_PICK_LEAST, NULL), TPO_OK);
    Tpo__V1__MediaSource media = TPO__V1__MEDIA_SOURCE__INIT, *list[] = {&media};
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    media.id = id;
    turn.role = (char *)"user";
    turn.text = (char *)"Where is the dotted ball?";
    q.media = list;
    q.n_media = 1;
    q.turns = turns;
    q.n_turns = 1;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Gateway/Perceive", .reply = &tpo__v1__perceive_response__descriptor, .timeout_ms = 20000};
    struct tpo_error err = {0};
    ProtobufCMessage *reply = NULL;
    if (tpo_rpc_call(peers, &start, &q.base, NULL, &reply, NULL, &err) != TPO_OK) fail_msg("%s: %s", err.reason, err.message);
    assert_int_equal(((Tpo__V1__PerceiveResponse *)reply)->n_boxes, 1);
    protobuf_c_message_free_unpacked(reply, NULL);
    struct heard h = {0};
    const struct tpo_rpc_events events = {.owner = &h, .on_message = on_event, .on_done = on_end};
    start.path = "/tpo.v1.Gateway/PerceiveStream";
    start.reply = &tpo__v1__perceive_event__descriptor;
    assert_non_null(tpo_rpc_open(peers, &start, &q.base, NULL, &events, &err));
    while (!h.done) tpo_loop_wait(loop, 1000);
    assert_int_equal(h.code, TPO_OK);
    assert_non_null(strchr(h.kinds, '0' + TPO__V1__PERCEIVE_EVENT__KIND_BOX));
    assert_int_equal(h.kinds[h.events - 1], '0' + TPO__V1__PERCEIVE_EVENT__KIND_DONE);
    /* Errors keep their reason on the way. */
    turn.text = (char *)"";
    start.path = "/tpo.v1.Gateway/Perceive";
    start.reply = &tpo__v1__perceive_response__descriptor;
    assert_int_equal(tpo_rpc_call(peers, &start, &q.base, NULL, &reply, NULL, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "turns");
    /* Media.Put, with the right id and with a wrong one. */
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){3, (uint8_t *)"abc"};
    for (int wrong = 0; wrong < 2; wrong++) {
        h = (struct heard){0};
        chunk.id = (char *)(wrong ? "0000000000000000000000000000000000000000000000000000000000000000"
                                  : "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        start.path = "/tpo.v1.Media/Put";
        start.reply = &tpo__v1__media_put_reply__descriptor;
        assert_int_equal(tpo_rpc_call(peers, &start, &chunk.base, NULL, &reply, NULL, &err), wrong ? TPO_INVALID_ARGUMENT : TPO_OK);
        if (wrong)
            assert_string_equal(err.reason, "media_hash");
        else
            protobuf_c_message_free_unpacked(reply, NULL);
    }
    tpo_peers_close(peers);
    tpo_loop_close(loop);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, up, down)
TPO_TESTS(CASE(a_second_question_runs_no_encoder), CASE(hops_are_told_apart_from_work), CASE(every_bad_request_gets_a_typed_error),
          CASE(events_come_in_order_and_done_is_last), CASE(an_answer_is_the_same_among_eight),
          CASE(a_head_that_died_costs_its_own_call_alone), CASE(without_redis_answers_stay_the_same),
          CASE(a_dead_encoder_is_a_typed_error_and_its_return_is_noticed), CASE(a_stopped_router_meets_the_deadline_and_the_cancel),
          cmocka_unit_test_setup_teardown(a_full_queue_is_429_with_retry_after, up_narrow, down), CASE(grpc_answers_the_same))
