/* bench_train -- training steps of the small model in one process, over a mesh of its services, and in PyTorch (tests/peers/train_torch.py), in
 * one run.
 *
 *   bench_train [THREADS] [STEPS] [torch|alone]        default: 2, 20, torch; alone: without PyTorch. Run from the repository's root
 *
 * tests/bench/train.yaml says what is trained. All start from the weights of models/small and take the same batches in the same order, drawn
 * ahead: what is timed is forward, backward and the optimiser's step. First all must find the same losses on the first batch. One process and the
 * mesh take turns, a block of steps each; PyTorch takes as many such blocks afterwards, in f32 and in bf16. Each has had every batch before,
 * untimed; each figure is the median of the blocks. CPU seconds are of one process's own threads (the mesh's lie in its services); they say more
 * than the wall's where others use the machine. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "common/safetensors.h"
#include "nn/tokenizer.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/learn.h"
#include "services/router/prompt.h"
#include "tests/bench/after.h"
#include "tests/support/test.h"
#include "tests/support/training.h"
#include "trainer/steps/mesh.h"
#include "trainer/steps/step.h"

#define BATCHES 4
#define ENTRIES 16
#define MODEL   "models/small"
#define FILE_OF "build/bench-train.safetensors"

struct took {
    double wall, cpu;
};

static struct took now(void)
{
    struct timespec wall, cpu;
    clock_gettime(CLOCK_MONOTONIC, &wall);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (struct took){(double)wall.tv_sec + (double)wall.tv_nsec * 1e-9, (double)cpu.tv_sec + (double)cpu.tv_nsec * 1e-9};
}

static void die(const char *what)
{
    fprintf(stderr, "bench_train: %s\n", what);
    exit(1);
}

static void check(int rc, const struct tpo_error *err)
{
    if (rc != TPO_OK) die(err->message);
}

static void *zeros(size_t n, size_t size)
{
    void *p = calloc(n > 0 ? n : 1, size);
    if (p == NULL) die("no memory");
    return p;
}

/* --- what the peer gets --------------------------------------------------------------------------------------------------------------- */

/* One batch as arrays: conversations packed behind their sample's prefix, as services/router/learn.c packs them. */
struct arrays {
    int B, T, n_labels, n_slots, size;
    uint8_t *pixels;
    int32_t *ids, *visual, *positions, *segments, *label_row, *label, *slot_row; /* the first four (B, T) */
    float *weight, *boxes;
};

static void rows_add(struct arrays *a, const struct tpo_prompt *p, int b, int conversation, int first)
{
    for (int r = conversation == 0 ? 0 : p->n_prefix; r < p->n; r++) {
        int m = b * a->T + (r < p->n_prefix ? r : first + r - p->n_prefix);
        a->ids[m] = p->ids[r];
        a->visual[m] = p->visual[r];
        a->positions[m] = r;
        a->segments[m] = r < p->n_prefix ? 0 : conversation + 1;
    }
    for (int r = p->n_prefix; r < p->n; r++) {
        if (p->labels[r] == TPO_LABEL_NONE || p->weights[r] <= 0) continue;
        a->label_row[a->n_labels] = b * a->T + (r - 1 < p->n_prefix ? r - 1 : first + r - 1 - p->n_prefix);
        a->label[a->n_labels] = p->labels[r];
        a->weight[a->n_labels++] = p->weights[r];
    }
    for (int i = 0; i < p->n_slots; i++) a->slot_row[a->n_slots++] = b * a->T + first + p->slots[i].position - p->n_prefix;
}

static void arrays_make(struct arrays *a, const struct tpo_world_batch *batch, struct tpo_tokenizer *tokenizer,
                        const struct tpo_config *c)
{
    const int queries = tpo_config_queries(c), side = c->vision_encoder.img_size;
    int n_boxes = 0;
    struct tpo_error err;
    *a = (struct arrays){.B = batch->n, .size = side * side * 3};
    struct tpo_prompt prompts[64][16] = {0};
    int longest = 0;
    for (int b = 0; b < a->B; b++) {
        int length = 0;
        for (int i = 0; i < batch->samples[b].n_conversations; i++) {
            struct tpo_prompt *p = &prompts[b][i];
            check(tpo_prompt_train(p, tokenizer, c, &batch->samples[b].conversations[i], "image", queries, &err), &err);
            length += i == 0 ? p->n : p->n - p->n_prefix;
        }
        longest = length > longest ? length : longest;
    }
    a->T = longest;
    const size_t n = (size_t)a->B * (size_t)a->T;
    a->pixels = zeros((size_t)a->B, (size_t)a->size);
    int32_t **rows[] = {&a->ids, &a->visual, &a->positions, &a->segments, &a->label_row, &a->label, &a->slot_row};
    for (size_t i = 0; i < 7; i++) *rows[i] = zeros(n, sizeof(int32_t));
    a->weight = zeros(n, sizeof(float));
    a->boxes = zeros(4 * n, sizeof(float));
    for (size_t m = 0; m < n; m++) a->visual[m] = a->segments[m] = -1;
    for (int b = 0; b < a->B; b++) {
        const struct tpo_sample *s = &batch->samples[b];
        memcpy(a->pixels + (size_t)b * (size_t)a->size, s->pixels, (size_t)a->size);
        for (int i = 0, first = 0; i < s->n_conversations; i++) {
            first = i == 0 ? prompts[b][0].n_prefix : first;
            rows_add(a, &prompts[b][i], b, i, first);
            first += prompts[b][i].n - prompts[b][i].n_prefix;
            for (int k = 0; k < s->conversations[i].n_boxes; k++)
                memcpy(a->boxes + 4 * n_boxes++, s->conversations[i].boxes[k], 4 * sizeof(float));
            tpo_prompt_free(&prompts[b][i]);
        }
    }
    if (n_boxes != a->n_slots) die("boxes and slots differ in number");
}

static void arrays_write(struct arrays *a, int n)
{
    static char names[BATCHES * ENTRIES][24];
    struct tpo_entry entries[BATCHES * ENTRIES] = {0};
    struct tpo_error err;
    int count = 0;
    for (int i = 0; i < n; i++) {
        const int64_t all = (int64_t)a[i].B * a[i].T;
        const struct {
            const char *name;
            int dtype;
            int64_t size;
            const void *data;
        } list[] = {{"pixels", TPO_U8, (int64_t)a[i].B * a[i].size, a[i].pixels},
                    {"ids", TPO_I32, all, a[i].ids},
                    {"visual", TPO_I32, all, a[i].visual},
                    {"positions", TPO_I32, all, a[i].positions},
                    {"segments", TPO_I32, all, a[i].segments},
                    {"label_row", TPO_I32, a[i].n_labels, a[i].label_row},
                    {"label", TPO_I32, a[i].n_labels, a[i].label},
                    {"weight", TPO_F32, a[i].n_labels, a[i].weight},
                    {"slot_row", TPO_I32, a[i].n_slots, a[i].slot_row},
                    {"boxes", TPO_F32, 4 * (int64_t)a[i].n_slots, a[i].boxes}};
        for (size_t k = 0; k < sizeof(list) / sizeof(list[0]); k++, count++) {
            snprintf(names[count], sizeof(names[count]), "%d.%s", i, list[k].name);
            entries[count] = (struct tpo_entry){.name = names[count],
                                                .dtype = list[k].dtype,
                                                .n_dims = 1,
                                                .shape = {list[k].size},
                                                .size = list[k].size,
                                                .size_bytes = (size_t)list[k].size * tpo_dtype_size(list[k].dtype),
                                                .data = list[k].data};
        }
    }
    check(tpo_safetensors_write(FILE_OF, entries, count, &err), &err);
}

/* --- ours ------------------------------------------------------------------------------------------------------------------------------- */

static double loss_of(const struct tpo_step_report *r, const char *name)
{
    for (int i = 0; i < r->n_losses; i++)
        if (strcmp(r->losses[i].name, name) == 0) return r->losses[i].value;
    return NAN;
}

#define BLOCK      BATCHES /* steps between turns: of every batch one, as their sizes differ */
#define BLOCKS_MAX 64

/* What takes the steps: a crew of this process, or of a mesh's services. */
struct side {
    struct tpo_crew crew;
    int step, n_blocks;
    double losses[2], walls[BLOCKS_MAX], cpus[BLOCKS_MAX]; /* of a step, block by block */
    struct tpo_timing timing;                              /* added up over the timed steps */
};

struct models {
    struct tpo_config config;
    struct tpo_stream *stream;
    struct tpo_tokenizer *tokenizer;
    struct tpo_model *models[TPO_PARTS];
};

static int direct_handle(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    struct models *m = owner;
    (void)replica;
    return tpo_learner_open_direct(out, m->models[part], m->stream, err);
}

static void models_open(struct models *m, int threads)
{
    struct tpo_encoder *encoder;
    struct tpo_router_trainee *router;
    struct tpo_region *region;
    struct tpo_error err;
    check(tpo_stream_open(&m->stream, "cpu", threads, &err), &err);
    check(tpo_config_load(&m->config, MODEL, &err), &err);
    check(tpo_tokenizer_open(&m->tokenizer, MODEL, &err), &err);
    check(tpo_encoder_open(&encoder, m->stream, &m->config, MODEL, 0, 1, &err), &err);
    check(tpo_router_trainee_open(&router, m->stream, &m->config, MODEL, false, 1, 0, &err), &err);
    check(tpo_region_open(&region, m->stream, &m->config, MODEL, 1, &err), &err);
    m->models[TPO_PART_ENCODER] = tpo_encoder_model(encoder);
    m->models[TPO_PART_ROUTER] = tpo_router_trainee_model(router);
    m->models[TPO_PART_REGION] = tpo_region_model(region);
}

static void side_open(struct side *s, const struct tpo_recipe *recipe, struct models *models, struct tpo_mesh *mesh)
{
    struct tpo_error err;
    struct tpo_crew_options o = {.config = &models->config, .n_replicas = {1, 1, 1}, .open = direct_handle, .owner = models};
    if (mesh != NULL) o.threaded = true, o.open = tpo_mesh_handle, o.owner = mesh;
    check(tpo_crew_open(&s->crew, &o, &err), &err);
    if (mesh != NULL) s->crew.stop = &mesh->stop;
    check(tpo_crew_begin(&s->crew, recipe, 0, "bench", &err), &err);
}

static void steps_take(struct side *s, const struct tpo_recipe *recipe, const struct tpo_world_batch *batches, bool timed)
{
    struct tpo_error err;
    const struct took start = now();
    for (int i = 0; i < BLOCK; i++) {
        struct tpo_step_report report = {0};
        check(tpo_step_run(&s->crew, &recipe->stages[0], s->step + 1, &batches[s->step % BATCHES], &report, &err), &err);
        if (s->step++ == 0) s->losses[0] = loss_of(&report, "language"), s->losses[1] = loss_of(&report, "region");
        if (timed) tpo_timing_sum(&s->timing, &report.timing);
    }
    const struct took end = now();
    if (!timed) return;
    s->walls[s->n_blocks] = (end.wall - start.wall) / BLOCK;
    s->cpus[s->n_blocks++] = (end.cpu - start.cpu) / BLOCK;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int n)
{
    double sorted[BLOCKS_MAX];
    memcpy(sorted, x, sizeof(*x) * (size_t)n);
    qsort(sorted, (size_t)n, sizeof(*sorted), by_value);
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static struct took side_took(const struct side *s)
{
    return (struct took){median(s->walls, s->n_blocks), median(s->cpus, s->n_blocks)};
}

static void batches_make(struct tpo_world_batch *batches, const struct models *m, const struct tpo_recipe *recipe)
{
    static struct arrays arrays[BATCHES];
    struct tpo_world *world;
    struct tpo_error err;
    const struct tpo_world_options options = {.split = TPO_WORLD_TRAIN, .seed = 1, .side = m->config.vision_encoder.img_size};
    const struct tpo_recipe_data *data = &recipe->stages[0].data[0];
    check(tpo_world_open(&world, &options, &err), &err);
    for (int i = 0; i < BATCHES; i++) {
        check(tpo_world_batch_fill(&batches[i], world, &data->draw, (uint64_t)i * 1024, data->samples, 1, &err), &err);
        arrays_make(&arrays[i], &batches[i], m->tokenizer, &m->config);
    }
    arrays_write(arrays, BATCHES);
}

/* Turn by turn; the first block is not timed: memory is taken. */
static void ours(struct side *one, struct side *mesh, const struct tpo_recipe *recipe, struct models *models, int threads,
                 int blocks)
{
    static struct tpo_world_batch batches[BATCHES];
    static struct tpo_mesh where;
    struct training_mesh services;
    struct tpo_error err;
    char model[4096];
    snprintf(model, sizeof(model), "%s/" MODEL, tpo_test_source());
    models_open(models, threads);
    batches_make(batches, models, recipe);
    after("rm -f encoder-0.log router-0.log region-0.log");
    training_mesh_start(&services, model, 1, threads);
    for (int i = 0; i < TRAINING_SERVICES; i++) after("kill -9 %d", (int)services.pids[i][0]);
    check(tpo_mesh_read(&where, training_mesh_text(&services), 0, &err), &err);
    where.holder = "bench";
    where.lease_ms = where.call_ms = 60000;
    side_open(one, recipe, models, NULL);
    side_open(mesh, recipe, models, &where);
    for (int block = 0; block <= blocks; block++) {
        steps_take(one, recipe, batches, block > 0);
        steps_take(mesh, recipe, batches, block > 0);
    }
    tpo_crew_close(&mesh->crew);
    tpo_crew_close(&one->crew);
    training_mesh_stop(&services);
}

/* --- PyTorch ---------------------------------------------------------------------------------------------------------------------------- */

static struct took peer(const char *dtype, int threads, int blocks, double losses[2])
{
    char command[4096], line[1024] = "";
    snprintf(command, sizeof(command),
             "build/peers/bin/python tests/peers/train_torch.py " MODEL " " FILE_OF " --dtype %s --threads %d --blocks %d", dtype,
             threads, blocks);
    FILE *f = popen(command, "r");
    if (f == NULL || fgets(line, sizeof(line), f) == NULL) die("the peer answered nothing");
    pclose(f);
    json_t *answer = json_loads(line, 0, NULL);
    losses[0] = json_number_value(json_object_get(answer, "language"));
    losses[1] = json_number_value(json_object_get(answer, "region"));
    const struct took took = {json_number_value(json_object_get(answer, "seconds")),
                              json_number_value(json_object_get(answer, "cpu_seconds"))};
    json_decref(answer);
    if (took.wall <= 0) die("the peer's answer has no time");
    return took;
}

static void line(const char *what, struct took t, int samples, const double losses[2])
{
    printf("%-16s %8.1f ms %7.2f samples/s | %8.1f CPU ms %7.2f samples/CPU s | first losses: language %.5f region %.5f\n", what,
           1e3 * t.wall, samples / t.wall, 1e3 * t.cpu, samples / t.cpu, losses[0], losses[1]);
}

static void phases(const char *what, const struct side *s)
{
    const double each = 1e3 / (s->n_blocks * BLOCK), *t = s->timing.seconds;
    printf("%-16s forward %.1f ms, backward %.1f, norms and prepare %.1f, commit %.1f; no service computed %.1f\n", what,
           each * t[TPO_PHASE_FORWARD], each * t[TPO_PHASE_BACKWARD], each * t[TPO_PHASE_PREPARE], each * t[TPO_PHASE_COMMIT],
           each * s->timing.bubble_s);
}

static void compare_losses(const double *a, const double *b, double tolerance, const char *with)
{
    if (fabs(a[0] - b[0]) <= tolerance * a[0] && fabs(a[1] - b[1]) <= tolerance * a[1]) return;
    fprintf(stderr, "bench_train: %s finds other losses: the comparison means nothing\n", with);
    exit(1);
}

int main(int argc, char **argv)
{
    static struct side alone, mesh;
    static struct models models;
    struct tpo_recipe *recipe;
    struct tpo_error err;
    check(tpo_recipe_load(&recipe, "tests/bench/train.yaml", &err), &err);
    const int threads = argc > 1 ? atoi(argv[1]) : 2, steps = argc > 2 ? atoi(argv[2]) : 20,
              blocks = steps / BLOCK < 1            ? 1
                       : steps / BLOCK > BLOCKS_MAX ? BLOCKS_MAX
                                                    : steps / BLOCK,
              samples = recipe->stages[0].data[0].samples;
    double f32[2], bf16[2];
    ours(&alone, &mesh, recipe, &models, threads, blocks);
    const struct took one = side_took(&alone), over = side_took(&mesh);
    printf("a step of %d samples, %d threads\n", samples, threads);
    line("one process", one, samples, alone.losses);
    line("the mesh", over, samples, mesh.losses);
    compare_losses(alone.losses, mesh.losses, 0, "the mesh");
    phases("one process:", &alone);
    phases("the mesh:", &mesh);
    printf("one process / the mesh: %.3f by wall\n", one.wall / over.wall);
    tpo_recipe_close(recipe);
    if (argc > 3 && strcmp(argv[3], "alone") == 0) return 0;
    const struct took torch32 = peer("f32", threads, blocks, f32), torch16 = peer("bf16", threads, blocks, bf16);
    line("PyTorch, f32", torch32, samples, f32);
    line("PyTorch, bf16", torch16, samples, bf16);
    printf("PyTorch's better one / one process: %.2f by wall, %.2f by CPU\n", fmin(torch32.wall, torch16.wall) / one.wall,
           fmin(torch32.cpu, torch16.cpu) / one.cpu);
    compare_losses(alone.losses, f32, 1e-3, "PyTorch");
    return 0;
}
