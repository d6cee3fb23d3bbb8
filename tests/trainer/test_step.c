/* Proves the order of a step over replicas with learners that only keep count, and another collective in the place of the trainer's. */
#include "tests/support/test.h"

#include <pthread.h>

#include "trainer/steps/collective.h"
#include "trainer/steps/publish.h"
#include "trainer/steps/step.h"

#define M 8

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* One replica, however many handles it has. */
struct fake {
    int forwards, backwards, last, live, most_live, norms, prepared, committed, aborted;
    int order_broken;
    double squared;
    bool no_prepare, no_commit; /* it refuses */
    uint64_t served, lease, own_since;
    int full;  /* so often it has no room for another version */
    bool away; /* it does not answer */
};
static struct fake fakes[TPO_REPLICAS_MAX];

static int fake_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    const struct fake *f = self;
    (void)run, (void)plan, (void)err;
    *out = (struct tpo_begun){
        .instance = "one", .tapes = 2, .trainable = 1, .served = f->served, .lease = f->lease, .own_since = f->own_since};
    return TPO_OK;
}

static int fake_forward(void *self, const struct tpo_key *key, const struct tpo_sample *samples, int n_samples,
                        const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants,
                        struct tpo_forwarded *out, struct tpo_error *err)
{
    struct fake *f = self;
    (void)samples, (void)n_samples, (void)inputs, (void)n_inputs, (void)wants, (void)n_wants, (void)err;
    pthread_mutex_lock(&lock);
    f->forwards++;
    if (++f->live > f->most_live) f->most_live = f->live;
    pthread_mutex_unlock(&lock);
    *out = (struct tpo_forwarded){.n_losses = 1};
    out->losses[0].name = "dense";
    out->losses[0].value = (float)key->micro_batch;
    return TPO_OK;
}

static int fake_backward(void *self, const struct tpo_key *key, const struct tpo_named_tensor *gradients, int n,
                         struct tpo_named_tensor *inputs_out, int *n_inputs_out, struct tpo_error *err)
{
    struct fake *f = self;
    (void)gradients, (void)n, (void)inputs_out, (void)err;
    pthread_mutex_lock(&lock);
    f->backwards++;
    f->live--;
    f->order_broken += (int)key->micro_batch < f->last;
    f->last = (int)key->micro_batch;
    pthread_mutex_unlock(&lock);
    *n_inputs_out = 0;
    return TPO_OK;
}

static int fake_norms(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err)
{
    static const struct tpo_norm one[2] = {{.name = "w", .squared = 4}, {.name = "w", .squared = 9}};
    struct fake *f = self;
    (void)key, (void)err;
    f->norms++;
    *out = &one[f->squared == 9];
    *n = 1;
    return TPO_OK;
}

static int fake_prepare(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err)
{
    struct fake *f = self;
    (void)key, (void)clip, (void)rates, (void)n_rates;
    if (f->no_prepare) return tpo_fail(err, TPO_INVALID_ARGUMENT, "rates", "no");
    f->prepared++;
    return TPO_OK;
}

static int fake_commit(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    struct fake *f = self;
    (void)key;
    if (f->no_commit) return tpo_fail(err, TPO_INTERNAL, "commit", "no");
    f->committed++;
    return TPO_OK;
}

static int fake_abort(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    (void)key, (void)err;
    ((struct fake *)self)->aborted++;
    return TPO_OK;
}

static int fake_publish(void *self, const struct tpo_key *key, uint64_t version, struct tpo_error *err)
{
    struct fake *f = self;
    (void)key;
    assert_true(version >= f->served);
    if (f->away) return tpo_fail(err, TPO_UNAVAILABLE, "away", "nobody answers");
    if (f->full && version > f->served && f->full-- > 0)
        return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "versions", "both are needed");
    f->served = version;
    return TPO_OK;
}

static int fake_open(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    (void)owner, (void)part, (void)err;
    *out = (struct tpo_learner){.service = "encoder",
                                .self = &fakes[replica],
                                .begin = fake_begin,
                                .forward = fake_forward,
                                .backward = fake_backward,
                                .norms = fake_norms,
                                .prepare = fake_prepare,
                                .commit = fake_commit,
                                .abort = fake_abort,
                                .publish = fake_publish};
    return TPO_OK;
}

/* --- a collective of links between replicas --------------------------------------------------------------------------------------------- */

struct links {
    struct tpo_collective base;
    int started[TPO_REPLICAS_MAX], done[TPO_REPLICAS_MAX], finished, dropped; /* done: Backwards of that replica by its start */
};

static void links_start(struct tpo_collective *self, struct tpo_crew *t, int part, int replica, const struct tpo_key *key,
                        uint32_t skipped)
{
    struct links *l = (struct links *)self;
    (void)t, (void)part, (void)key, (void)skipped;
    l->started[replica]++;
    pthread_mutex_lock(&lock);
    l->done[replica] = fakes[replica].backwards;
    pthread_mutex_unlock(&lock);
}

static int links_finish(struct tpo_collective *self, struct tpo_crew *t, int part, const struct tpo_key *key, struct tpo_error *err)
{
    struct links *l = (struct links *)self;
    (void)part, (void)key, (void)err;
    for (int r = 0; r < t->options.n_replicas[TPO_PART_ENCODER]; r++) {
        assert_int_equal(l->started[r], 1);
        /* The last Backward is still to come: what it completes leaves while it runs. */
        assert_int_equal(l->done[r], M / t->options.n_replicas[TPO_PART_ENCODER] - 1);
        assert_int_equal(fakes[r].backwards, M / t->options.n_replicas[TPO_PART_ENCODER]);
        assert_int_equal(fakes[r].norms, 0);
    }
    l->finished++;
    return TPO_OK;
}

static void links_drop(struct tpo_collective *self, struct tpo_crew *t, int part)
{
    (void)t, (void)part;
    ((struct links *)self)->dropped++;
}

static void links_close(struct tpo_collective *self)
{
    (void)self;
}

static struct tpo_recipe *recipe_of(int lanes)
{
    struct tpo_recipe *r = calloc(1, sizeof(*r));
    struct tpo_recipe_stage *s = &r->stages[0];
    r->n_stages = 1;
    snprintf(s->name, sizeof(s->name), "see");
    s->steps = 10, s->floor = 1;
    s->groups[0].clipped = true;
    s->losses[0] = (struct tpo_loss_weight){"dense", 1};
    s->plan = (struct tpo_plan){
        .lanes = lanes, .micro_batches = M, .groups = s->groups, .n_groups = 1, .losses = s->losses, .n_losses = 1};
    return r;
}

static struct links step_over(int n, int lanes, double other, int expected, struct tpo_step_report *report)
{
    static const struct tpo_config config;
    struct links links = {.base = {.start = links_start, .finish = links_finish, .drop = links_drop, .close = links_close}};
    const struct tpo_crew_options o = {.config = &config, .n_replicas = {n, 0, 0}, .threaded = true, .open = fake_open};
    static const struct tpo_world_batch batches[M];
    struct tpo_crew crew;
    struct tpo_error err = {0};
    struct tpo_recipe *r = recipe_of(lanes);
    memset(fakes, 0, sizeof(fakes));
    fakes[n - 1].squared = other;
    assert_int_equal(tpo_crew_open(&crew, &o, &err), TPO_OK);
    crew.collective->close(crew.collective);
    crew.collective = &links.base;
    assert_int_equal(tpo_crew_begin(&crew, r, 0, "run", &err), TPO_OK);
    assert_int_equal(tpo_step_run(&crew, &r->stages[0], 1, batches, report, &err), expected);
    if (expected != TPO_OK) assert_string_equal(err.reason, "replicas");
    assert_int_equal(crew.version, expected == TPO_OK);
    tpo_crew_close(&crew);
    free(r);
    return links;
}

static void replicas_share_a_step(void **state)
{
    (void)state;
    struct tpo_step_report report;
    for (int n = 1; n <= 8; n *= 2) {
        const struct links links = step_over(n, n, 0, TPO_OK, &report);
        assert_int_equal(links.finished, n > 1);
        assert_true(report.losses[0].value == (M - 1) / 2.0);
        assert_true(report.norm == 2);
        for (int i = 0; i < n; i++) {
            assert_int_equal(fakes[i].forwards, M / n);
            assert_int_equal(fakes[i].order_broken, 0);
            assert_true(fakes[i].most_live <= 2); /* tapes */
            assert_int_equal(fakes[i].prepared, 1);
            assert_int_equal(fakes[i].committed, 1);
        }
    }
}

static void replicas_that_disagree_commit_nothing(void **state)
{
    (void)state;
    struct tpo_step_report report;
    step_over(2, 2, 9, TPO_INTERNAL, &report);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fakes[i].prepared, 0);
        assert_int_equal(fakes[i].committed, 0);
        assert_int_equal(fakes[i].aborted, 1);
    }
}

static void crew_of_two(struct tpo_crew *crew, uint64_t first, uint64_t second)
{
    static const struct tpo_config config;
    const struct tpo_crew_options o = {.config = &config, .n_replicas = {2, 0, 0}, .threaded = true, .open = fake_open};
    struct tpo_error err = {0};
    struct tpo_recipe *r = recipe_of(2);
    memset(fakes, 0, sizeof(fakes));
    fakes[0].served = first;
    fakes[1].served = second;
    assert_int_equal(tpo_crew_open(crew, &o, &err), TPO_OK);
    assert_int_equal(tpo_crew_begin(crew, r, 0, "run", &err), TPO_OK);
    free(r);
}

/* A step that one cannot prepare is given up by all. One that somebody may have committed is left to recovery: who has prepared it must keep it. */
static void who_cannot_prepare_or_commit(void **state)
{
    (void)state;
    static const struct tpo_world_batch batches[M];
    for (int commit = 0; commit < 2; commit++) {
        struct tpo_step_report report;
        struct tpo_crew crew;
        struct tpo_error err = {0};
        struct tpo_recipe *r = recipe_of(2);
        struct links links = {.base = {.start = links_start, .finish = links_finish, .drop = links_drop, .close = links_close}};
        crew_of_two(&crew, 0, 0);
        crew.collective->close(crew.collective);
        crew.collective = &links.base;
        fakes[1].no_prepare = !commit;
        fakes[1].no_commit = commit;
        assert_int_not_equal(tpo_step_run(&crew, &r->stages[0], 1, batches, &report, &err), TPO_OK);
        assert_string_equal(err.reason, commit ? "commit" : "rates");
        assert_int_equal(crew.torn, commit);
        assert_int_equal(crew.version, 0);
        assert_int_equal(fakes[0].prepared, 1);
        assert_int_equal(fakes[0].committed, commit);
        for (int i = 0; i < 2; i++) assert_int_equal(fakes[i].aborted, !commit);
        tpo_crew_close(&crew);
        free(r);
    }
}

/* The first one was started again; the second still needs both versions that it holds. */
static void who_lost_a_version_gets_it_again(void **state)
{
    (void)state;
    struct tpo_crew crew;
    struct tpo_error err = {0};
    uint64_t version = 0;
    crew_of_two(&crew, 0, 7);
    fakes[1].full = 1000;
    assert_true(tpo_crew_serves_apart(&crew));
    /* A new number: nobody takes it, so that nobody must wait for the others. */
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
    assert_true(version == 0 && fakes[0].served == 0);
    /* What the other one serves needs no room there. */
    version = 7;
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
    assert_true(version == 7 && fakes[0].served == 7 && fakes[1].served == 7);
    assert_false(tpo_crew_serves_apart(&crew));
    tpo_crew_close(&crew);

    /* A number that something newer has followed is not given again. */
    crew_of_two(&crew, 0, 9);
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
    assert_true(version > 9 && fakes[0].served == version && fakes[1].served == version);
    tpo_crew_close(&crew);
}

static void begin_again(struct tpo_crew *crew)
{
    struct tpo_error err = {0};
    struct tpo_recipe *r = recipe_of(2);
    assert_int_equal(tpo_crew_begin(crew, r, 0, "run", &err), TPO_OK);
    free(r);
}

/* A Begin whose answer was lost is made again, so that leases grow by two: nobody else has been there for that. */
static void who_was_taken_is_told_by_whose_leases_they_were(void **state)
{
    (void)state;
    struct tpo_crew crew;
    crew_of_two(&crew, 0, 0);
    for (int i = 0; i < 2; i++) fakes[i].lease = fakes[i].own_since = 5;
    begin_again(&crew);
    fakes[0].lease = 7;
    fakes[1].lease = fakes[1].own_since = 7;
    begin_again(&crew);
    assert_false(crew.replicas[TPO_PART_ENCODER][0].taken);
    assert_true(crew.replicas[TPO_PART_ENCODER][1].taken);
    assert_true(crew.replicas[TPO_PART_ENCODER][0].lease == 7);
    tpo_crew_close(&crew);
}

/* What a failure left half given is given to the rest under the same number: another one would find no room where that one lies. */
static void a_publish_that_failed_is_completed(void **state)
{
    (void)state;
    struct tpo_crew crew;
    struct tpo_error err = {0};
    uint64_t version = 0;
    crew_of_two(&crew, 7, 7);
    fakes[1].away = true;
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_UNAVAILABLE);
    const uint64_t number = version;
    assert_true(number > 7 && fakes[0].served == number && fakes[1].served == 7);
    fakes[0].full = 1000;
    fakes[1].away = false;
    begin_again(&crew);
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
    assert_true(version == number && fakes[1].served == number);
    tpo_crew_close(&crew);

    /* A number that nobody took is in nobody's way. */
    crew_of_two(&crew, 7, 7);
    fakes[0].away = true;
    version = 0;
    assert_int_equal(tpo_crew_publish(&crew, 2, 0, false, &version, &err), TPO_UNAVAILABLE);
    fakes[0].away = false;
    fakes[0].served = 0;
    fakes[1].full = 1000;
    begin_again(&crew);
    version = 7;
    assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
    assert_true(version == 7 && fakes[0].served == 7);
    tpo_crew_close(&crew);
}

/* The clock stands before the version that one of them serves. */
static void numbers_of_versions_grow_though_the_clock_goes_back(void **state)
{
    (void)state;
    const uint64_t ahead = UINT64_C(1) << 62;
    struct tpo_crew crew;
    struct tpo_error err = {0};
    crew_of_two(&crew, 0, ahead);
    for (uint64_t n = 1; n <= 2; n++) {
        uint64_t version = 0;
        assert_int_equal(tpo_crew_publish(&crew, 1, 0, false, &version, &err), TPO_OK);
        assert_true(version == ahead + n);
        assert_true(fakes[0].served == version && fakes[1].served == version);
    }
    tpo_crew_close(&crew);
}

static void sums_add_as_a_tree(void **state)
{
    (void)state;
    float a[4] = {1e8f, 1, -1e8f, 1}, *sums[4] = {&a[0], &a[1], &a[2], &a[3]};
    const float tree = (a[0] + a[1]) + (a[2] + a[3]), row = ((a[0] + a[1]) + a[2]) + a[3];
    assert_true(tree != row);
    tpo_sums_fold(sums, 4, 1);
    assert_true(a[0] == tree);
}

static void odd_numbers_of_replicas_are_refused(void **state)
{
    (void)state;
    struct tpo_crew crew;
    for (int n = 3; n <= 17; n += 14) {
        struct tpo_error err = {0};
        const struct tpo_crew_options o = {.n_replicas = {n, 0, 0}, .threaded = true, .open = fake_open};
        assert_int_equal(tpo_crew_open(&crew, &o, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "replicas");
    }
}

TPO_TESTS(cmocka_unit_test(replicas_share_a_step), cmocka_unit_test(replicas_that_disagree_commit_nothing),
          cmocka_unit_test(who_cannot_prepare_or_commit), cmocka_unit_test(who_lost_a_version_gets_it_again),
          cmocka_unit_test(who_was_taken_is_told_by_whose_leases_they_were), cmocka_unit_test(a_publish_that_failed_is_completed),
          cmocka_unit_test(numbers_of_versions_grow_though_the_clock_goes_back), cmocka_unit_test(sums_add_as_a_tree),
          cmocka_unit_test(odd_numbers_of_replicas_are_refused))
