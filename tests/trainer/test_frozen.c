/* Proves that a step asks frozen services for no gradients: three fakes count what they are asked for. */
#include "tests/support/test.h"
#include "trainer/steps/step.h"

#define M 8

/* A service. Counts are of the whole step. */
struct part {
    bool learns;
    const struct tpo_named_tensor *takes, *passes; /* from the service before, to the one after; NULL: nothing */
    int forwards, backwards;
    int wants, given; /* inputs whose gradient was wanted, gradients that came */
};

static const float one = 1;
static const struct tpo_named_tensor visual = {"visual", TPO_F32, 2, {1, 1}, &one}, e = {"e.region", TPO_F32, 2, {1, 1}, &one};

static int part_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    const struct part *p = self;
    (void)run, (void)plan, (void)err;
    *out = (struct tpo_begun){.instance = "one", .tapes = 2, .trainable = p->learns};
    return TPO_OK;
}

static int part_forward(void *self, const struct tpo_key *key, const struct tpo_sample *samples, int n_samples,
                        const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants,
                        struct tpo_forwarded *out, struct tpo_error *err)
{
    static const struct tpo_row row = {0}; /* the router's: whose box it is */
    struct part *p = self;
    (void)key, (void)samples, (void)n_samples, (void)inputs, (void)n_inputs, (void)wants, (void)err;
    p->forwards++;
    p->wants += n_wants;
    *out = (struct tpo_forwarded){.rows = &row, .n_rows = 1};
    if (p->passes != NULL) out->outputs[out->n_outputs++] = *p->passes;
    return TPO_OK;
}

static int part_backward(void *self, const struct tpo_key *key, const struct tpo_named_tensor *gradients, int n,
                         struct tpo_named_tensor *inputs_out, int *n_inputs_out, struct tpo_error *err)
{
    struct part *p = self;
    (void)key, (void)gradients, (void)err;
    p->backwards++;
    p->given += n;
    *n_inputs_out = 0;
    if (p->wants > 0) inputs_out[(*n_inputs_out)++] = *p->takes;
    return TPO_OK;
}

static int part_norms(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err)
{
    (void)self, (void)key, (void)err;
    *out = NULL;
    *n = 0;
    return TPO_OK;
}

static int part_prepare(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err)
{
    (void)self, (void)key, (void)clip, (void)rates, (void)n_rates, (void)err;
    return TPO_OK;
}

static int part_commit(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    (void)self, (void)key, (void)err;
    return TPO_OK;
}

static int part_open(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    (void)replica, (void)err;
    *out = (struct tpo_learner){.service = tpo_part_names[part],
                                .self = (struct part *)owner + part,
                                .begin = part_begin,
                                .forward = part_forward,
                                .backward = part_backward,
                                .norms = part_norms,
                                .prepare = part_prepare,
                                .commit = part_commit};
    return TPO_OK;
}

/* Encoder, router, region: who learns; then, per micro-batch, Backwards, inputs whose gradient is wanted, gradients that come. */
struct mix {
    bool learns[TPO_PARTS];
    int backwards[TPO_PARTS], wants[TPO_PARTS], given[TPO_PARTS];
};

static void step_of(const struct mix *x)
{
    static const struct tpo_config config = {.n_tasks = 1, .tasks = {{.name = "region"}}};
    static const float box[1][4];
    static const struct tpo_conversation conversation = {.n_boxes = 1, .boxes = box};
    static struct tpo_sample sample = {.n_conversations = 1, .conversations = &conversation};
    static struct tpo_recipe recipe;
    struct tpo_recipe_stage *s = &recipe.stages[0];
    struct part parts[TPO_PARTS] = {{.passes = &visual}, {.takes = &visual, .passes = &e}, {.takes = &e}};
    const struct tpo_crew_options o = {.config = &config, .n_replicas = {1, 1, 1}, .open = part_open, .owner = parts};
    struct tpo_world_batch batches[M];
    struct tpo_step_report report;
    struct tpo_crew crew;
    struct tpo_error err = {0};
    s->steps = 1, s->floor = 1;
    s->losses[0] = (struct tpo_loss_weight){"region", 1};
    s->plan =
        (struct tpo_plan){.lanes = 1, .micro_batches = M, .groups = s->groups, .n_groups = 1, .losses = s->losses, .n_losses = 1};
    for (int m = 0; m < M; m++) batches[m] = (struct tpo_world_batch){.samples = &sample, .n = 1};
    for (int p = 0; p < TPO_PARTS; p++) parts[p].learns = x->learns[p];
    assert_int_equal(tpo_crew_open(&crew, &o, &err), TPO_OK);
    assert_int_equal(tpo_crew_begin(&crew, &recipe, 0, "run", &err), TPO_OK);
    if (tpo_step_run(&crew, s, 1, batches, &report, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(report.boxes, M);
    for (int p = 0; p < TPO_PARTS; p++) {
        assert_int_equal(parts[p].forwards, M);
        assert_int_equal(parts[p].backwards, M * x->backwards[p]);
        assert_int_equal(parts[p].wants, M * x->wants[p]);
        assert_int_equal(parts[p].given, M * x->given[p]);
    }
    tpo_crew_close(&crew);
}

/* Gradients go no further than somebody learns. */
static void frozen_parts_are_skipped(void **state)
{
    (void)state;
    static const struct mix mixes[] = {{{1, 1, 1}, {1, 1, 1}, {0, 1, 1}, {1, 1, 0}},
                                       {{0, 1, 1}, {0, 1, 1}, {0, 0, 1}, {0, 1, 0}},
                                       {{0, 1, 0}, {0, 1, 1}, {0, 0, 1}, {0, 1, 0}},
                                       {{1, 0, 0}, {1, 1, 1}, {0, 1, 1}, {1, 1, 0}},
                                       {{0, 0, 1}, {0, 0, 1}, {0, 0, 0}, {0, 0, 0}}};
    for (size_t i = 0; i < sizeof(mixes) / sizeof(mixes[0]); i++) step_of(&mixes[i]);
}

TPO_TESTS(cmocka_unit_test(frozen_parts_are_skipped))
