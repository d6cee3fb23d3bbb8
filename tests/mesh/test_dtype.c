/* Proves --dtype bf16 end to end: a mesh whose folder is BF16 and stays so answers bit for bit as the same model does in this process, the adapter
 * beside its weights; a model whose stream does not round answers so as on weights converted to f32; and with --train a mesh learns as one
 * process in f32 does. */
#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#include "common/media/media.h"
#include "common/safetensors.h"
#include "common/text.h"
#include "kernels/vector.h"
#include "services/encoder/encoder.h"
#include "services/encoder/frames.h"
#include "services/region/region.h"
#include "services/router/router.h"
#include "tests/support/http.h"
#include "tests/support/test.h"
#include "tests/support/training.h"

#define CALLS_MAX 4
#define THREADS   2

/* --- two folders of one model -------------------------------------------------------------------------------------------------------- */

static uint16_t to_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

static float from_half(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* models/small's config with adapters, and its other small files. */
static void companions_write(const char *dir)
{
    char command[8192], path[128];
    snprintf(command, sizeof(command),
             "mkdir %s && cp %s/models/small/*.json %s/models/small/tokenizer.model %s && rm %s/manifest.json", dir,
             tpo_test_source(), tpo_test_source(), dir, dir);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    json_t *j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    json_object_set_new(json_object_get(json_object_get(j, "model_config"), "llm"), "use_lora", json_true());
    assert_int_equal(json_dump_file(j, path, JSON_INDENT(2)), 0);
    json_decref(j);
}

static void weights_write(const char *dir, const struct tpo_entry *entries, int n)
{
    char path[128];
    struct tpo_error err;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (tpo_safetensors_write(path, entries, n, &err) != TPO_OK) fail_msg("%s", err.message);
}

static struct tpo_entry half_random(const struct tpo_param *p)
{
    struct tpo_entry e = {
        .name = p->name, .dtype = TPO_BF16, .n_dims = p->n_dims, .size = p->size, .size_bytes = (size_t)p->size * 2};
    uint16_t *data = malloc(e.size_bytes);
    memcpy(e.shape, p->shape, sizeof(p->shape));
    for (int64_t i = 0; i < p->size; i++) data[i] = to_half(0.02F * tpo_random_normal(strlen(p->name), (uint64_t)i));
    e.data = data;
    return e;
}

static void widen(struct tpo_entry *e, bool owned)
{
    float *wide = malloc((size_t)e->size * sizeof(*wide));
    for (int64_t i = 0; i < e->size; i++) wide[i] = from_half(((const uint16_t *)e->data)[i]);
    if (owned) free((void *)e->data);
    e->dtype = TPO_F32;
    e->size_bytes = (size_t)e->size * sizeof(*wide);
    e->data = wide;
}

/* "half": models/small (BF16) with random adapters beside its language model. "wide": the same numbers as f32. */
static void folders_write(void)
{
    char path[4096];
    struct tpo_config config;
    struct tpo_params schema = {0};
    struct tpo_safetensors *small;
    struct tpo_error err;
    companions_write("half");
    companions_write("wide");
    if (tpo_config_load(&config, "half", &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_router_schema(&schema, &config, 0);
    snprintf(path, sizeof(path), "%s/models/small", tpo_test_source());
    if (tpo_safetensors_open(&small, path, &err) != TPO_OK) fail_msg("%s", err.message);
    struct tpo_entry *all = calloc((size_t)(small->n + schema.n), sizeof(*all));
    int n = small->n;
    memcpy(all, small->items, (size_t)n * sizeof(*all));
    for (int i = 0; i < schema.n; i++)
        if (strstr(schema.items[i]->name, "lora_") != NULL) all[n++] = half_random(schema.items[i]);
    assert_true(n > small->n);
    weights_write("half", all, n);
    for (int i = 0; i < n; i++)
        if (all[i].dtype == TPO_BF16) widen(&all[i], i >= small->n);
    weights_write("wide", all, n);
    for (int i = 0; i < n; i++)
        if (all[i].dtype == TPO_F32) free((void *)all[i].data);
    free(all);
    tpo_safetensors_close(small);
    tpo_params_free(&schema, NULL);
}

/* --- an answer, from either ------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *file, *text, *task; /* file NULL: text alone */
} questions[] = {{"crowd.png", "Where is the dotted ball?", "region"},
                 {"walk.mp4", "Where is the white cross?", "region"},
                 {"crosses.png", "Describe the picture.", "auto"},
                 {NULL, "What can you see?", "auto"}};
#define QUESTIONS ((int)(sizeof(questions) / sizeof(questions[0])))

struct heard {
    char text[2048];
    int n_boxes, status;
    float boxes[CALLS_MAX][4];
};

static bool same(const struct heard *a, const struct heard *b)
{
    return strcmp(a->text, b->text) == 0 && a->n_boxes == b->n_boxes &&
           memcmp(a->boxes, b->boxes, sizeof(a->boxes[0]) * (size_t)a->n_boxes) == 0;
}

static void ask_mesh(struct heard *h, int q)
{
    static const char *const corners[] = {"x0", "y0", "x1", "y1"};
    char id[65], media[128] = "", body[1024];
    struct tpo_text out = {0};
    size_t i;
    json_t *box;
    *h = (struct heard){0};
    if (questions[q].file != NULL) {
        http_upload_sample("run", questions[q].file, id);
        snprintf(media, sizeof(media), "\"media\":[{\"id\":\"%s\"}],", id);
    }
    snprintf(body, sizeof(body), "{%s\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}],\"maxNewTokens\":24,\"task\":\"%s\"}", media,
             questions[q].text, questions[q].task);
    if (http_post("run", "/v1/perceive", body, strlen(body), &out) != 200) fail_msg("%s", out.data);
    json_t *root = json_loads(out.data, 0, NULL);
    snprintf(h->text, sizeof(h->text), "%s", json_string_value(json_object_get(root, "text")));
    json_array_foreach(json_object_get(root, "boxes"), i, box)
    {
        assert_true(h->n_boxes < CALLS_MAX);
        for (int k = 0; k < 4; k++)
            h->boxes[h->n_boxes][k] = (float)json_number_value(json_object_get(json_object_get(box, "normalised"), corners[k]));
        h->n_boxes++;
    }
    json_decref(root);
    tpo_text_free(&out);
}

/* The parts of the mesh as plain C. */
struct local {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_encoder *encoder;
    struct tpo_router *router;
    struct tpo_region *region;
    tpo_media_t *media;
    struct heard *hears;
};

static void local_open(struct local *l, const char *folder, bool rounds, bool merge)
{
    char program[4096];
    struct tpo_error err;
    snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
    const struct tpo_router_options o = {
        .folder = folder, .merge_lora = merge, .kv_bytes = 16 << 20, .max_sequences = 1, .prefill_tokens = 512};
    const struct tpo_media_options media = {.program = program};
    int rc = tpo_config_load(&l->config, folder, &err);
    l->config.keep_bf16 = strcmp(folder, "half") == 0;
    if (rc == TPO_OK) rc = tpo_stream_open(&l->stream, "cpu", THREADS, &err);
    if (rc == TPO_OK && rounds) tpo_stream_let_round(l->stream);
    if (rc == TPO_OK) rc = tpo_encoder_open(&l->encoder, l->stream, &l->config, folder, 0, 0, &err);
    if (rc == TPO_OK) rc = tpo_router_open(&l->router, l->stream, &l->config, &o, &err);
    if (rc == TPO_OK) rc = tpo_region_open(&l->region, l->stream, &l->config, folder, 0, &err);
    if (rc == TPO_OK) rc = tpo_media_open(&l->media, &media, &err);
    if (rc != TPO_OK) fail_msg("%s", err.message);
}

static void local_close(struct local *l)
{
    tpo_media_close(l->media);
    tpo_region_close(l->region);
    tpo_router_close(l->router);
    tpo_encoder_close(l->encoder);
    tpo_stream_close(l->stream);
}

static int on_text(void *owner, const char *text, size_t length)
{
    struct heard *h = ((struct local *)owner)->hears;
    strncat(h->text, text, length);
    return 0;
}

static int on_task(void *owner, const char *task, int index, int text_offset, const float *e, int n)
{
    struct local *l = owner;
    struct heard *h = l->hears;
    struct tpo_error err;
    (void)text_offset, (void)n;
    assert_string_equal(task, "region");
    assert_int_equal(index, h->n_boxes);
    assert_true(h->n_boxes < CALLS_MAX);
    assert_int_equal(tpo_region_run(l->region, h->boxes[h->n_boxes++], e, 1, &err), TPO_OK);
    return 0;
}

static void on_done(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                    const struct tpo_error *err)
{
    (void)finish_reason, (void)prompt_tokens, (void)completion_tokens, (void)err;
    ((struct local *)owner)->hears->status = status;
}

static float *look(struct local *l, const char *file, struct tpo_frames *f)
{
    char path[4096];
    struct tpo_error err;
    float *visual = malloc((size_t)tpo_config_queries(&l->config) * (size_t)l->config.bridge.hidden_size * sizeof(*visual));
    snprintf(path, sizeof(path), "%s/models/small/samples/%s", tpo_test_source(), file);
    const int fd = open(path, O_RDONLY);
    if (tpo_frames_load(f, l->media, fd, &l->config, l->stream, 0, &err) != TPO_OK) fail_msg("%s", err.message);
    close(fd);
    if (tpo_encoder_run(l->encoder, visual, f->pixels, f->T, &err) != TPO_OK) fail_msg("%s", err.message);
    return visual;
}

static void ask_local(struct local *l, struct heard *h, int q)
{
    const struct tpo_chat_turn turn = {"user", questions[q].text};
    struct tpo_frames f = {0};
    struct tpo_error err;
    uint64_t handle;
    float *visual = questions[q].file != NULL ? look(l, questions[q].file, &f) : NULL;
    const struct tpo_router_request request = {.n_turns = 1,
                                               .turns = &turn,
                                               .task = questions[q].task,
                                               .media_kind = visual == NULL     ? NULL
                                                             : f.duration_s > 0 ? "video"
                                                                                : "image",
                                               .visual = visual,
                                               .n_frames = f.duration_s > 0 ? f.T : 0,
                                               .frame_times_s = f.times,
                                               .max_new_tokens = 24,
                                               .seed = 1,
                                               .top_p = 1};
    const struct tpo_router_events on = {l, on_text, on_task, on_done, NULL};
    *h = (struct heard){0};
    l->hears = h;
    if (tpo_router_submit(l->router, &request, &on, &handle, &err) != TPO_OK) fail_msg("%s", err.message);
    while (tpo_router_step(l->router) > 0) continue;
    assert_int_equal(h->status, TPO_OK);
    free(visual);
    tpo_frames_free(&f);
}

/* --- cases ----------------------------------------------------------------------------------------------------------------------------- */

static int up(void **state)
{
    char command[8192];
    (void)state;
    folders_write();
    setenv("TPO_THREADS", "2", 1);
    snprintf(command, sizeof(command), "%s/tpo up --any-port --redis=no --model half --dtype bf16 --run-dir run >up.log 2>&1",
             tpo_test_build());
    if (system(command) == 0) return 0;
    (void)!system("cat up.log");
    return -1;
}

static int down(void **state)
{
    char command[8192];
    (void)state;
    snprintf(command, sizeof(command), "%s/tpo down --run-dir run >down.log 2>&1", tpo_test_build());
    return system(command);
}

static void the_same(const struct heard *a, const struct heard *b)
{
    if (!same(a, b)) fail_msg("one: %s (%d boxes)\nthe other: %s (%d boxes)", a->text, a->n_boxes, b->text, b->n_boxes);
}

static void it_answers_like_one_process(void **state)
{
    struct local half = {0}, exact = {0}, wide = {0}, merged = {0};
    struct heard mesh, here, converted;
    bool merging_shows = false;
    (void)state;
    local_open(&half, "half", true, false);
    local_open(&exact, "half", false, false);
    local_open(&wide, "wide", false, false);
    local_open(&merged, "wide", false, true);
    for (int q = 0; q < QUESTIONS; q++) {
        ask_mesh(&mesh, q);
        ask_local(&half, &here, q);
        if (strcmp(questions[q].task, "region") == 0) assert_true(here.n_boxes > 0);
        the_same(&mesh, &here);
        ask_local(&exact, &here, q);
        ask_local(&wide, &converted, q);
        the_same(&here, &converted);
        ask_local(&merged, &converted, q);
        merging_shows |= !same(&here, &converted);
    }
    /* Adapters are never added to a weight that stays BF16: were the router's converted, its answers would have the bits of these. */
    assert_true(merging_shows);
    local_close(&half);
    local_close(&exact);
    local_close(&wide);
    local_close(&merged);
}

/* OUT with stage 1 done: its model is the folder's. */
static void stage_put(const char *out, const char *folder)
{
    char command[600];
    snprintf(command, sizeof(command),
             "mkdir -p %s/1-see && cp -r %s %s/1-see/model && "
             "sed \"s/\\\"model\\\": .*/\\\"model\\\": \\\"$(sha256sum <%s/model.safetensors | cut -c1-64)\\\"/\" "
             "first/1-see/stage.json >%s/1-see/stage.json",
             out, folder, out, folder, out);
    assert_int_equal(system(command), 0);
}

/* Stage 2 begins, here and there, from weights that BF16 can hold: here converted, or as they are, as the recipe says; there the mesh serves just
 * those, as BF16, and so does the trainer keep them. Adapters and head learn, the rest is frozen. */
static void it_learns_like_one_process(void **state)
{
    static const char stages[] = "  - name: see\n"
                                 "    steps: 2\n"
                                 "    data:\n"
                                 "      - {frames: 1, samples: 2, conversations: 0, dense: true}\n"
                                 "    losses: {dense: 1}\n"
                                 "    groups:\n"
                                 "      - {name: rest, optimiser: adamw, rate: 2.0e-3, tensors: ['vision_*', 'ext.encoder.*']}\n"
                                 "  - name: talk\n"
                                 "    steps: 6\n"
                                 "    micro_batches: 2\n"
                                 "    lanes: 2\n"
                                 "    data:\n"
                                 "      - {frames: 1, samples: 2, conversations: 3}\n"
                                 "    losses: {language: 1, region: 1}\n"
                                 "    groups:\n"
                                 "      - {name: lora, optimiser: adamw, rate: 2e-3, tensors: ['lm.*lora_A.*', 'lm.*lora_B.*']}\n"
                                 "      - {name: head, optimiser: adamw, rate: 2e-3, tensors: [box_token, 'loc_decoder.*']}\n";
    static const char *const publish[] = {"--publish-every", "3", NULL};
    struct training_mesh m;
    (void)state;
    training_model(.1);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "first", NULL, (const char *const[]){"--stop-after", "1", NULL});
    training_export("first/1-see/model", "half", "bf16");
    training_export("half", "wide", "f32");
    stage_put("one", "wide"), stage_put("kept", "half"), stage_put("mesh", "half");
    assert_int_equal(system("{ echo 'dtype: bf16'; cat r.yaml; } >kept.yaml"), 0);
    training_run("r.yaml", "one", NULL, NULL);
    training_run("kept.yaml", "kept", NULL, NULL);
    assert_false(training_says("one.log", "event=kept_bf16"));
    assert_int_equal(system("grep -q 'event=kept_bf16 of=router tensors=[1-9]' kept.log"), 0);
    training_same_lines("one", "kept");
    training_same_model("one", "kept", "2-talk");
    setenv("TPO_DTYPE", "bf16", 1);
    setenv("TPO_VERSION_HOLD", "1s", 1); /* the end of the run waits for its last version */
    training_mesh_start(&m, "half", 1, 2);
    training_run("kept.yaml", "mesh", &m, publish);
    training_mesh_stop(&m);
    assert_true(training_says("router-0.log", "name=dtype value=\"bf16\""));
    assert_true(training_says("mesh.log", "event=published step=3"));
    /* What is frozen stays where the folder is mapped: nothing of it came over the wire. */
    assert_true(training_says("mesh.log", "event=start of=encoder"));
    assert_int_not_equal(system("grep event=start mesh.log | grep -vq ' sent=0'"), 0);
    training_same_lines("one", "mesh");
    training_same_model("one", "mesh", "2-talk");
}

TPO_TESTS(cmocka_unit_test_setup_teardown(it_answers_like_one_process, up, down), cmocka_unit_test(it_learns_like_one_process))
