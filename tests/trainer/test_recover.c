/* Proves of a recovery that a service which has its state keeps its lease while others still take in theirs; with learners that only keep count. */
#include "tests/support/test.h"

#include <stdatomic.h>
#include <time.h>

#include "trainer/steps/recover.h"

/* The second one's state takes until the first has been called so often since it had its own. */
#define CALLS 3
static _Atomic int imported, calls;

static int fake_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    (void)self, (void)run, (void)plan, (void)err;
    *out = (struct tpo_begun){.instance = "one", .tapes = 2, .trainable = 1};
    return TPO_OK;
}

static int fake_import(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err)
{
    const int replica = *(int *)self;
    (void)version;
    if (x != NULL) return TPO_OK;
    for (int i = 0; replica == 1 && calls < CALLS; i++) {
        if (i == 6000) return tpo_fail(err, TPO_INTERNAL, "lease", "nobody called the other one");
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    imported++;
    return TPO_OK;
}

static int fake_export(void *self, int at, int64_t offset, int64_t most, struct tpo_chunk *out, struct tpo_error *err)
{
    (void)err;
    assert_true(*(int *)self == 0 && at == 0 && offset == 0 && most == 0);
    *out = (struct tpo_chunk){0};
    calls++;
    return TPO_OK;
}

static int fake_open(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    static int replicas[2] = {0, 1};
    (void)owner, (void)part, (void)err;
    *out = (struct tpo_learner){.stage = "encoder",
                                .self = &replicas[replica],
                                .begin = fake_begin,
                                .import_state = fake_import,
                                .export_state = fake_export};
    return TPO_OK;
}

static void who_waits_for_others_keeps_its_lease(void **state)
{
    (void)state;
    static const struct tpo_config config;
    static struct tpo_params none;
    static struct tpo_model empty = {.stage = "encoder", .params = &none};
    struct tpo_model *const models[TPO_PARTS] = {&empty, &empty, &empty};
    const struct tpo_crew_options o = {
        .config = &config, .n_replicas = {2, 0, 0}, .threaded = true, .keep_ms = 10, .open = fake_open};
    struct tpo_recipe *recipe = calloc(1, sizeof(*recipe));
    struct tpo_recipe_stage *s = &recipe->stages[0];
    struct tpo_checkpoint at = {.lanes = 2, .micro_batches = 2};
    struct tpo_crew crew;
    struct tpo_held *held;
    struct tpo_error err = {0};
    recipe->n_stages = 1;
    s->losses[0] = (struct tpo_loss_weight){"dense", 1};
    s->plan = (struct tpo_plan){.lanes = 2, .micro_batches = 2, .losses = s->losses, .n_losses = 1};
    assert_int_equal(tpo_held_open(&held, ".", &err), TPO_OK);
    assert_int_equal(tpo_crew_open(&crew, &o, &err), TPO_OK);
    const struct tpo_recovery r = {
        .crew = &crew, .held = held, .recipe = recipe, .stage_dir = ".", .name = "recipe/see", .models = models, .config = ""};
    if (tpo_recovery_run(&r, false, &at, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_true(calls >= CALLS);
    assert_true(imported >= 2);
    tpo_crew_close(&crew);
    tpo_held_close(held);
    free(recipe);
}

TPO_TESTS(cmocka_unit_test(who_waits_for_others_keeps_its_lease))
