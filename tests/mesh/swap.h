/* swap.h -- what the tests of swapping versions share: meshes, questions, and a trainer's part in publishing a version. */
#ifndef TPO_TESTS_MESH_SWAP_H
#define TPO_TESTS_MESH_SWAP_H

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/safetensors.h"
#include "common/text.h"
#include "learner.pb-c.h"
#include "status.pb-c.h"
#include "tests/support/http.h"
#include "tests/support/test.h"

/* --- meshes -------------------------------------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static inline int shell(const char *format, ...)
{
    char command[16384];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    return system(command);
}

static inline void up(const char *model, const char *run, const char *flags)
{
    if (shell("%s/tpo up --any-port --model %s --run-dir %s %s >up.log 2>&1", tpo_test_build(), model, run, flags) != 0) {
        shell("cat up.log");
        fail_msg("tpo up --model %s --run-dir %s %s failed", model, run, flags);
    }
}

static inline int down(const char *run)
{
    return shell("%s/tpo down --run-dir %s >down.log 2>&1", tpo_test_build(), run);
}

static inline int tear_down(void **state)
{
    (void)state;
    shell("kill $(cat run/again.pid 2>/dev/null) 2>/dev/null");
    down("run");
    down("reference");
    return 0;
}

static inline void read_word(const char *run, const char *name, char *out, size_t size)
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

static inline void upload(const char *run)
{
    for (int q = 0; q < QUESTIONS; q++)
        if (questions[q].file != NULL) http_upload_sample(run, questions[q].file, ids[q]);
}

/* The answer's own words and boxes; the one version of all its stages, or -1 and why. */
struct heard {
    long status, version;
    char said[2048], why[512];
};

static inline void hear(struct heard *h, const json_t *answer)
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

static inline struct heard ask(const char *run, int q, bool stream)
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
static inline float *values(const struct tpo_entry *e, int k)
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

static struct tpo_loop *loop;

static inline void let_go(void)
{
    tpo_loop_close(loop);
    tpo_safetensors_close(small);
    loop = NULL;
    small = NULL;
}

/* The address of a service, out of RUN/services. */
static inline struct tpo_peers *peers_of(const char *service)
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

static inline int learner_call(struct tpo_peers *p, const char *method, const ProtobufCMessage *q,
                               const ProtobufCMessageDescriptor *type, ProtobufCMessage **reply, struct tpo_error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/tpo.v1.Learner/%s", method);
    const struct tpo_rpc_start start = {.path = path, .reply = type, .timeout_ms = 30000};
    *err = (struct tpo_error){0};
    return tpo_rpc_call(p, &start, q, NULL, reply, NULL, err);
}

static inline uint64_t begin(struct tpo_peers *p)
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
static inline int publish(int t, int k)
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

#endif
