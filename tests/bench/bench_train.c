/* bench_train -- training steps of the small model in one process beside the same steps in PyTorch (tests/peers/train_torch.py), in one run.
 *
 *   bench_train [THREADS] [STEPS]        default: every core, 20; run from the repository's root
 *
 * tests/bench/train.yaml says what is trained. Both sides start from the weights of models/small and take the same batches in the same order, drawn
 * ahead: what is timed is forward, backward and the optimiser's step. First both must find the same losses on the first batch. CPU seconds say more
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

static struct took ours(struct tpo_recipe *recipe, int threads, int steps, double losses[2])
{
    static struct tpo_team_of_learners team;
    static struct tpo_config c;
    struct tpo_stream *s;
    struct tpo_tokenizer *tokenizer;
    struct tpo_encoder *encoder;
    struct tpo_router_trainee *router;
    struct tpo_region *region;
    struct tpo_world *world;
    struct tpo_error err;
    const char *folder = MODEL;
    check(tpo_stream_open(&s, "cpu", threads, &err), &err);
    check(tpo_config_load(&c, folder, &err), &err);
    check(tpo_tokenizer_open(&tokenizer, folder, &err), &err);
    check(tpo_encoder_open(&encoder, s, &c, folder, 0, 1, &err), &err);
    check(tpo_router_trainee_open(&router, s, &c, folder, false, 1, 0, &err), &err);
    check(tpo_region_open(&region, s, &c, folder, 1, &err), &err);
    struct tpo_model *models[TPO_PARTS] = {tpo_encoder_model(encoder), tpo_router_trainee_model(router), tpo_region_model(region)};
    team.config = &c;
    for (int p = 0; p < TPO_PARTS; p++) check(tpo_learner_open_direct(&team.learners[p], models[p], s, &err), &err);
    check(tpo_step_begin(&team, recipe, 0, &err), &err);

    static struct tpo_world_batch batches[BATCHES];
    static struct arrays arrays[BATCHES];
    const struct tpo_world_options options = {.split = TPO_WORLD_TRAIN, .seed = 1, .side = c.vision_encoder.img_size};
    const struct tpo_recipe_data *data = &recipe->stages[0].data[0];
    check(tpo_world_open(&world, &options, &err), &err);
    for (int i = 0; i < BATCHES; i++) {
        check(tpo_world_batch_fill(&batches[i], world, &data->draw, (uint64_t)i * 1024, data->samples, 1, &err), &err);
        arrays_make(&arrays[i], &batches[i], tokenizer, &c);
    }
    arrays_write(arrays, BATCHES);

    struct took start = {0, 0};
    for (int step = 0; step < steps + BATCHES; step++) { /* the first of every batch is not timed: memory is taken */
        struct tpo_step_report report;
        if (step == BATCHES) start = now();
        check(tpo_step_run(&team, &recipe->stages[0], step + 1, &batches[step % BATCHES], &report, &err), &err);
        if (step == 0) losses[0] = loss_of(&report, "language"), losses[1] = loss_of(&report, "region");
    }
    const struct took end = now();
    return (struct took){(end.wall - start.wall) / steps, (end.cpu - start.cpu) / steps};
}

/* --- PyTorch ---------------------------------------------------------------------------------------------------------------------------- */

static struct took peer(const char *dtype, int threads, int steps, int warm, double losses[2])
{
    char command[4096], line[1024] = "";
    snprintf(command, sizeof(command),
             "build/peers/bin/python tests/peers/train_torch.py " MODEL " " FILE_OF " --dtype %s --threads %d --steps %d --warm %d",
             dtype, threads, steps, warm);
    FILE *f = popen(command, "r");
    if (f == NULL || fgets(line, sizeof(line), f) == NULL) die("the peer answered nothing");
    pclose(f);
    json_t *answer = json_loads(line, 0, NULL);
    losses[0] = json_number_value(json_object_get(answer, "language"));
    losses[1] = json_number_value(json_object_get(answer, "region"));
    const struct took took = {json_number_value(json_object_get(answer, "seconds")),
                              json_number_value(json_object_get(answer, "cpu_seconds"))};
    json_decref(answer);
    return took;
}

static void line(const char *what, struct took t, int samples, const double losses[2])
{
    printf("%-16s %8.1f ms %7.2f samples/s | %8.1f CPU ms %7.2f samples/CPU s | first losses: language %.5f region %.5f\n", what,
           1e3 * t.wall, samples / t.wall, 1e3 * t.cpu, samples / t.cpu, losses[0], losses[1]);
}

int main(int argc, char **argv)
{
    struct tpo_recipe *recipe;
    struct tpo_error err;
    check(tpo_recipe_load(&recipe, "tests/bench/train.yaml", &err), &err);
    const int threads = argc > 1 ? atoi(argv[1]) : 2, steps = argc > 2 ? atoi(argv[2]) : 20,
              samples = recipe->stages[0].data[0].samples;
    double mine[2], f32[2], bf16[2];
    const struct took one = ours(recipe, threads, steps, mine);
    const struct took torch32 = peer("f32", threads, steps, BATCHES, f32), torch16 = peer("bf16", threads, steps / 8 + 1, 1, bf16);
    printf("a step of %d samples, %d threads\n", samples, threads);
    line("one process", one, samples, mine);
    line("PyTorch, f32", torch32, samples, f32);
    line("PyTorch, bf16", torch16, samples, bf16);
    printf("PyTorch's better one / one process: %.2f by wall, %.2f by CPU\n", fmin(torch32.wall, torch16.wall) / one.wall,
           fmin(torch32.cpu, torch16.cpu) / one.cpu);
    if (!(fabs(mine[0] - f32[0]) <= 1e-3 * mine[0] && fabs(mine[1] - f32[1]) <= 1e-3 * mine[1]))
        die("the losses differ: the comparison means nothing");
    tpo_recipe_close(recipe);
    return 0;
}
