/* Proves that a trained version goes into a running mesh with no failed request: real programs, requests of all kinds in a loop, several swaps,
 * every answer of one version and equal to that of a mesh started on that version's folder. And what a service that was killed and has lost its
 * versions does to it. */
#include <jansson.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/safetensors.h"
#include "common/text.h"
#include "learner.pb-c.h"
#include "status.pb-c.h"
#include "tests/support/http.h"
#include "tests/support/test.h"

#define VERSIONS 4 /* 0 is the folder's */
#define CLIENTS  4

/* --- meshes -------------------------------------------------------------------------------------------------------------------------- */

static int shell(const char *format, const char *a, const char *b)
{
    char command[4096];
    snprintf(command, sizeof(command), format, tpo_test_build(), a, b);
    return system(command);
}

static void up(const char *model, const char *run, const char *flags)
{
    char more[512];
    snprintf(more, sizeof(more), "%s --run-dir %s %s", model, run, flags);
    if (shell("%s/tpo up --any-port --model %s %s >up.log 2>&1", more, "") != 0) {
        (void)!system("cat up.log");
        fail_msg("tpo up --model %s failed", more);
    }
}

static void down(const char *run)
{
    assert_int_equal(shell("%s/tpo down --run-dir %s >down.log 2>&1%s", run, ""), 0);
}

static int tear_down(void **state)
{
    (void)state;
    (void)!system("kill $(cat run/again.pid 2>/dev/null) 2>/dev/null");
    (void)shell("%s/tpo down --run-dir run >down.log 2>&1%s%s", "", "");
    (void)shell("%s/tpo down --run-dir reference >down.log 2>&1%s%s", "", "");
    return 0;
}

static void read_word(const char *run, const char *name, char *out, size_t size)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", run, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, (int)size, f));
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

/* --- questions ----------------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *file, *text; /* file NULL: text alone */
} questions[] = {
    {"crowd.png", "Where is the dotted ball?"}, {NULL, "What can you see?"}, {"crosses.png", "How many crosses are there?"}};
#define QUESTIONS ((int)(sizeof(questions) / sizeof(questions[0])))

static char ids[8][65];

static void upload(const char *run)
{
    for (int q = 0; q < QUESTIONS; q++)
        if (questions[q].file != NULL) http_upload_sample(run, questions[q].file, ids[q]);
}

/* The answer's own words and boxes; the one version of all its stages, or -1 and why. */
struct heard {
    long status, version;
    char said[2048], why[512];
};

static void hear(struct heard *h, const json_t *answer)
{
    size_t i;
    json_t *stage;
    char *boxes = json_dumps(json_object_get(answer, "boxes"), JSON_COMPACT | JSON_SORT_KEYS);
    const char *text = json_string_value(json_object_get(answer, "text"));
    snprintf(h->said, sizeof(h->said), "%s %s", text != NULL ? text : "(none)", boxes != NULL ? boxes : "");
    free(boxes);
    h->version = -1;
    if (json_object_get(answer, "error") != NULL) return;
    json_array_foreach(json_object_get(answer, "calls"), i, stage) if (json_object_get(stage, "error") != NULL) return;
    json_array_foreach(json_object_get(answer, "stages"), i, stage)
    {
        const char *name = json_string_value(json_object_get(stage, "name")),
                   *number = json_string_value(json_object_get(stage, "version"));
        if (strcmp(name, "gateway") == 0) continue;
        const long version = number != NULL ? atol(number) : 0;
        if (h->version >= 0 && version != h->version) {
            h->version = -2;
            return;
        }
        h->version = version;
    }
}

static struct heard ask(const char *run, int q, bool stream)
{
    struct heard h = {0};
    struct tpo_text out = {0};
    char media[128] = "", body[1024];
    if (questions[q].file != NULL) snprintf(media, sizeof(media), "\"media\":[{\"id\":\"%s\"}],", ids[q]);
    snprintf(body, sizeof(body), "{%s\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}],\"maxNewTokens\":24,\"stream\":%s}", media,
             questions[q].text, stream ? "true" : "false");
    h.status = http_post(run, "/v1/perceive", body, strlen(body), &out);
    const char *at = stream && h.status == 200 ? strstr(out.data, "event: done\ndata: ") : NULL;
    json_t *root = json_loads(at != NULL ? at + 18 : out.data, JSON_DISABLE_EOF_CHECK, NULL);
    hear(&h, at != NULL ? json_object_get(root, "done") : root);
    snprintf(h.why, sizeof(h.why), "%.500s", out.data);
    json_decref(root);
    tpo_text_free(&out);
    return h;
}

/* --- versions ------------------------------------------------------------------------------------------------------------------------ */

/* A tensor of each service, and its number in the plan's order of services. */
static const struct {
    const char *service, *name;
} trained[] = {
    {"router", "box_token"}, {"encoder", "vision_encoder.encoder.patch_embed.proj.weight"}, {"region", "loc_decoder.2.bias"}};
#define TRAINED ((int)(sizeof(trained) / sizeof(trained[0])))

static struct tpo_safetensors *small;

static const struct tpo_entry *entry_of(int t)
{
    char path[4096];
    struct tpo_error err;
    snprintf(path, sizeof(path), "%s/models/small", tpo_test_source());
    if (small == NULL && tpo_safetensors_open(&small, path, &err) != TPO_OK) fail_msg("%s", err.message);
    for (int i = 0; i < small->n; i++) {
        const char *found = strstr(small->items[i].name, trained[t].name);
        if (found != NULL) return &small->items[i];
    }
    fail_msg("no tensor %s", trained[t].name);
    return NULL;
}

/* What version k holds in place of it. */
static float *values(const struct tpo_entry *e, int k)
{
    float *x = malloc((size_t)e->size * sizeof(*x));
    assert_int_equal(e->dtype, TPO_BF16);
    for (int64_t i = 0; i < e->size; i++) {
        const uint32_t bits = (uint32_t)((const uint16_t *)e->data)[i] << 16;
        memcpy(&x[i], &bits, sizeof(bits));
        x[i] = x[i] * (1.0F + 0.01F * (float)k) + 0.02F * (float)k * sinf((float)i + (float)k);
    }
    return x;
}

/* The folder of version k. */
static void write_folder(const char *dir, int k)
{
    char path[4096];
    struct tpo_error err;
    struct tpo_entry *entries;
    entry_of(0);
    snprintf(path, sizeof(path),
             "mkdir -p %s && cp %s/models/small/*.json %s/models/small/tokenizer.model %s && rm %s/manifest.json", dir,
             tpo_test_source(), tpo_test_source(), dir, dir);
    assert_int_equal(system(path), 0);
    entries = malloc((size_t)small->n * sizeof(*entries));
    memcpy(entries, small->items, (size_t)small->n * sizeof(*entries));
    for (int t = 0; t < TRAINED; t++) {
        const struct tpo_entry *e = entry_of(t);
        entries[e - small->items].dtype = TPO_F32;
        entries[e - small->items].data = values(e, k);
        entries[e - small->items].size_bytes = (size_t)e->size * sizeof(float);
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (tpo_safetensors_write(path, entries, small->n, &err) != TPO_OK) fail_msg("%s", err.message);
    for (int t = 0; t < TRAINED; t++) free((void *)entries[entry_of(t) - small->items].data);
    free(entries);
}

static struct tpo_loop *loop;

static void let_go(void)
{
    tpo_loop_close(loop);
    tpo_safetensors_close(small);
    loop = NULL;
    small = NULL;
}

/* The address of a service, out of RUN/services. */
static struct tpo_peers *peers_of(const char *service)
{
    char line[256];
    struct tpo_peers *p = NULL;
    FILE *f = fopen("run/services", "r");
    assert_non_null(f);
    if (loop == NULL) assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    while (p == NULL && fgets(line, sizeof(line), f) != NULL) {
        const size_t n = strlen(service);
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, service, n) == 0 && line[n] == '=')
            assert_int_equal(tpo_peers_open(&p, loop, service, line + n + 1, TPO_PICK_LEAST, NULL), TPO_OK);
    }
    fclose(f);
    assert_non_null(p);
    return p;
}

static int learner_call(struct tpo_peers *p, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type,
                        ProtobufCMessage **reply, struct tpo_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/tpo.v1.Learner/%s", method);
    const struct tpo_rpc_start start = {.path = path, .reply = type, .timeout_ms = 30000};
    *err = (struct tpo_error){0};
    return tpo_rpc_call(p, &start, q, NULL, reply, NULL, err);
}

static uint64_t begin(struct tpo_peers *p)
{
    Tpo__V1__BeginRequest q = TPO__V1__BEGIN_REQUEST__INIT;
    Tpo__V1__Plan plan = TPO__V1__PLAN__INIT;
    Tpo__V1__Group group = TPO__V1__GROUP__INIT, *groups[] = {&group};
    char *names[] = {(char *)"loc_decoder.2.bias"};
    ProtobufCMessage *reply;
    struct tpo_error err;
    group.name = (char *)"head";
    group.n_names = 1, group.names = names;
    group.optimiser = (char *)"adamw";
    group.beta1 = 0.9F, group.beta2 = 0.999F, group.eps = 1e-8F;
    plan.lanes = plan.micro_batches = 1;
    plan.n_groups = 1, plan.groups = groups;
    q.run = (char *)"swap", q.holder = (char *)"test", q.lease_ms = 60000, q.plan = &plan;
    if (learner_call(p, "Begin", &q.base, &tpo__v1__begin_reply__descriptor, &reply, &err) != TPO_OK)
        fail_msg("Begin: %s %s", err.reason, err.message);
    const uint64_t lease = ((Tpo__V1__BeginReply *)reply)->lease;
    protobuf_c_message_free_unpacked(reply, NULL);
    return lease;
}

/* What a trainer does: version k's weights into the learner, then into serving. How often it was told to wait. */
static int publish(int t, int k)
{
    struct tpo_peers *p = peers_of(trained[t].service);
    const struct tpo_entry *e = entry_of(t);
    Tpo__V1__Key key = TPO__V1__KEY__INIT;
    Tpo__V1__Chunk chunk = TPO__V1__CHUNK__INIT;
    Tpo__V1__PublishRequest q = TPO__V1__PUBLISH_REQUEST__INIT;
    ProtobufCMessage *reply;
    struct tpo_error err;
    int waited = 0;
    float *x = values(e, k);
    key.run = (char *)"swap", key.lease = begin(p);
    chunk.key = &key, chunk.name = (char *)e->name, chunk.part = (char *)"start";
    chunk.n_shape = (size_t)e->n_dims, chunk.shape = (int64_t *)e->shape;
    chunk.data = (ProtobufCBinaryData){(size_t)e->size * sizeof(*x), (uint8_t *)x};
    if (learner_call(p, "Import", &chunk.base, &tpo__v1__empty__descriptor, &reply, &err) != TPO_OK)
        fail_msg("Import: %s %s", err.reason, err.message);
    protobuf_c_message_free_unpacked(reply, NULL);
    q.key = &key, q.version = (uint64_t)k;
    while (learner_call(p, "Publish", &q.base, &tpo__v1__empty__descriptor, &reply, &err) != TPO_OK) {
        if (err.code != TPO_RESOURCE_EXHAUSTED || strcmp(err.reason, "versions") != 0)
            fail_msg("Publish: %s %s", err.reason, err.message);
        waited++;
        usleep(100000);
    }
    protobuf_c_message_free_unpacked(reply, NULL);
    free(x);
    tpo_peers_close(p);
    return waited;
}

/* --- the request loop ---------------------------------------------------------------------------------------------------------------- */

static char expected[VERSIONS][8][2048];
static _Atomic int seen[VERSIONS], failed, stopping;

static void *run_client(void *owner)
{
    for (int n = (int)(intptr_t)owner; !stopping; n++) {
        const int q = n % QUESTIONS;
        const bool stream = n / QUESTIONS % 2 != 0;
        struct heard h = ask("run", q, stream);
        const bool fits = h.status == 200 && h.version >= 0 && h.version < VERSIONS && strcmp(h.said, expected[h.version][q]) == 0;
        if (fits)
            atomic_fetch_add(&seen[h.version], 1);
        else if (atomic_fetch_add(&failed, 1) == 0)
            fprintf(stderr, "HTTP %ld, version %ld, stream %d, question %d: %s\nwanted: %s\n%s\n", h.status, h.version, stream, q,
                    h.said, h.version >= 0 && h.version < VERSIONS ? expected[h.version][q] : "", h.why);
    }
    return NULL;
}

static void wait_for(int version)
{
    const int before = seen[version];
    while (seen[version] < before + CLIENTS && !failed) usleep(10000);
}

static void swaps_fail_no_request_and_mix_no_versions(void **state)
{
    (void)state;
    char dir[64], source[4096];
    pthread_t clients[CLIENTS];
    int waited = 0;
    for (int k = 1; k < VERSIONS; k++) {
        snprintf(dir, sizeof(dir), "version-%d", k);
        write_folder(dir, k);
        up(dir, "reference", "--redis=no");
        upload("reference");
        for (int q = 0; q < QUESTIONS; q++) {
            struct heard h = ask("reference", q, false);
            if (h.status != 200 || h.version != 0) fail_msg("%s", h.why);
            snprintf(expected[k][q], sizeof(expected[k][q]), "%s", h.said);
        }
        down("reference");
        assert_string_not_equal(expected[k][0], expected[k - 1][0]); /* the boxes differ, or nothing is proved */
    }
    setenv("TPO_VERSION_HOLD", "4s", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    for (int q = 0; q < QUESTIONS; q++) snprintf(expected[0][q], sizeof(expected[0][q]), "%s", ask("run", q, false).said);
    for (int i = 0; i < CLIENTS; i++) pthread_create(&clients[i], NULL, run_client, (void *)(intptr_t)(i * 2));
    wait_for(0);
    for (int k = 1; k < VERSIONS; k++) {
        for (int t = 0; t < TRAINED; t++) {
            waited += publish(t, k);
            wait_for(t + 1 < TRAINED ? k - 1 : k); /* half of the services have it: answers with a picture are of the one before */
        }
    }
    stopping = 1;
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i], NULL);
    fprintf(stderr, "requests");
    for (int k = 0; k < VERSIONS; k++) fprintf(stderr, " version%d=%d", k, (int)seen[k]);
    fprintf(stderr, " failed=%d publishes_told_to_wait=%d\n", (int)failed, waited);
    assert_int_equal(failed, 0);
    for (int k = 0; k < VERSIONS; k++) assert_true(seen[k] > 0);
    assert_true(waited > 0); /* the third was refused while the first was still wanted */
    let_go();
}

/* --- a service that lost its versions ---------------------------------------------------------------------------------------------- */

/* The one that `tpo up` started, or the one of the last restart. */
static void kill_service(const char *service, int how)
{
    char pid[32], name[64];
    snprintf(name, sizeof(name), "%s-0.pid", service);
    read_word("run", access("run/again.pid", R_OK) == 0 ? "again.pid" : name, pid, sizeof(pid));
    kill(atoi(pid), how);
}

/* A killed process lets its port go a moment after its connections. */
static void wait_until_free(const char *address)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1)),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (bool taken = true; taken; usleep(10000)) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        taken = bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0;
        close(fd);
    }
}

/* One service in a case. */
static void restart(const char *service)
{
    char command[4096], address[256] = "";
    bool serving = false;
    struct tpo_peers *p = peers_of(service);
    snprintf(address, sizeof(address), "%s", tpo_peers_address(p, 0, &serving));
    kill_service(service, SIGKILL);
    while (tpo_peers_address(p, 0, &serving) != NULL && serving) tpo_loop_wait(loop, 20);
    wait_until_free(address);
    snprintf(command, sizeof(command),
             "%s/tpo-%s --train --listen %s --model %s/models/small >again.log 2>&1 & echo $! >run/again.pid", tpo_test_build(),
             service, address, tpo_test_source());
    assert_int_equal(system(command), 0);
    while (tpo_peers_address(p, 0, &serving) != NULL && !serving) tpo_loop_wait(loop, 20);
    tpo_peers_close(p);
}

/* Until the mesh is past the moments in which it finds out: the wanted version, or with -1 the typed error. */
static void expect(long version)
{
    struct heard h;
    do {
        h = ask("run", 0, false);
        if (h.status != 200 && h.status != 503) fail_msg("HTTP %ld %s", h.status, h.why);
        if (h.status == 200 && h.version < 0) fail_msg("two versions in one answer: %s", h.why);
    } while (version >= 0 ? h.status != 200 || h.version != version
                          : h.status != 503 || strstr(h.why, "\"reason\":\"version\"") == NULL);
}

static void a_service_that_lost_its_versions_gets_them_again(void **state)
{
    (void)state;
    char source[4096];
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    expect(0);
    for (int t = 0; t < TRAINED; t++) publish(t, 1);
    expect(1);
    restart("router"); /* it holds 0 alone, as the others still do */
    expect(0);
    publish(0, 1);
    expect(1);
    for (int t = 0; t < TRAINED; t++) publish(t, 2);
    expect(2);
    restart("router"); /* the others hold 2 and 1 */
    expect(-1);
    publish(0, 2);
    expect(2);
    let_go();
}

/* A question about the first picture, `more` further members with a comma before. */
static json_t *answer_about_the_ball(const char *more)
{
    char body[512];
    struct tpo_text out = {0};
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}]%s}", ids[0],
             questions[0].text, more);
    const long status = http_post("run", "/v1/perceive", body, strlen(body), &out);
    if (status != 200) fail_msg("HTTP %ld %s", status, out.data);
    json_t *root = json_loads(out.data, 0, NULL);
    assert_non_null(root);
    tpo_text_free(&out);
    return root;
}

static void expect_stage(const json_t *root, const char *name, const char *version)
{
    size_t i;
    json_t *stage;
    json_array_foreach(json_object_get(root, "stages"), i, stage)
    {
        const char *said = json_string_value(json_object_get(stage, "name"));
        if (said == NULL || strcmp(said, name) != 0) continue;
        assert_string_equal(json_string_value(json_object_get(stage, "version")), version);
        return;
    }
    fail_msg("no stage %s", name);
}

/* "" where the first call went well. */
static const char *reason_of_call(const json_t *root)
{
    const char *reason =
        json_string_value(json_object_get(json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error"), "reason"));
    return reason != NULL ? reason : "";
}

static void a_head_that_lost_its_versions_costs_its_own_calls(void **state)
{
    (void)state;
    char source[4096], text[256];
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    for (int k = 1; k <= 2; k++)
        for (int t = 0; t < TRAINED; t++) publish(t, k);
    expect(2);
    json_t *root = answer_about_the_ball("");
    assert_int_equal(json_array_size(json_object_get(root, "calls")), 1);
    snprintf(text, sizeof(text), "%s", json_string_value(json_object_get(root, "text")));
    json_decref(root);
    restart("region"); /* it holds 0, the others 2 and 1 */
    for (int again = 0; again < 2; again++) {
        const json_t *error;
        root = answer_about_the_ball("");
        while (strcmp(reason_of_call(root), "peer_unavailable") == 0) { /* until the gateway has heard that it is back */
            json_decref(root);
            root = answer_about_the_ball("");
        }
        error = json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error");
        assert_string_equal(json_string_value(json_object_get(root, "text")), text);
        expect_stage(root, "router", "2");
        assert_string_equal(json_string_value(json_object_get(error, "code")), "UNAVAILABLE");
        assert_string_equal(json_string_value(json_object_get(error, "reason")), "version");
        assert_int_equal(json_array_size(json_object_get(root, "boxes")), 0);
        json_decref(root);
    }
    root = answer_about_the_ball(",\"task\":\"none\""); /* no head is asked */
    expect_stage(root, "router", "2");
    json_decref(root);
    const struct heard chat = ask("run", 1, false);
    assert_int_equal(chat.status, 200);
    assert_int_equal(chat.version, 2);
    publish(2, 2);
    while (ask("run", 0, false).version != 2) usleep(10000); /* until the gateway has heard of it */
    let_go();
}

TPO_TESTS(cmocka_unit_test_teardown(swaps_fail_no_request_and_mix_no_versions, tear_down),
          cmocka_unit_test_teardown(a_service_that_lost_its_versions_gets_them_again, tear_down),
          cmocka_unit_test_teardown(a_head_that_lost_its_versions_costs_its_own_calls, tear_down))
