/* Three optimiser steps derived on paper, through a recipe as it is read, tpo_step_run and three learners.
 *
 * Two services learn one number y from x (two numbers): the encoder has a (1, 2) and answers visual = a.x, the router has b and c and answers
 * y = b visual + c. The loss is "language" = (y - goal)^2, its weight 2, and M = 4 micro-batches lie in two lanes. With the residuals
 * r_m = y_m - goal_m a step's gradients are, since weight / M x 2 = 1,
 *
 *   dc = sum r_m        db = a.S        da = b S        with S = sum r_m x_m
 *
 * The recipe below says: a and b are clipped, at 3 of their common norm; c is not. a, b have betas (1/2, 1/2), so that after t steps
 *   t = 1: mhat = g1                 vhat = g1^2
 *   t = 2: mhat = (g1 + 2 g2) / 3    vhat = (g1^2 + 2 g2^2) / 3
 *   t = 3: mhat = (g1 + 2 g2 + 4 g3) / 7, vhat alike
 * eps = 1/2 is large on purpose, so that its place beside the root shows. Only b decays (0.1). Steps 1 and 2 warm up, of four; the cosine ends at
 * a tenth: shares of the rate 1/2, 1, 0.1 + 0.9 (1 + cos(pi/2)) / 2 = 0.55, and 0.1.
 *
 * x = (1,0), (1,1), (1,-1), (0,-1) in every step. Start: a = (2, 1), b = 2, c = 1/2.
 *
 * Step 1. y = 4.5, 6.5, 2.5, -1.5; goals 4, 5, 3.5, -2: r = .5, 1.5, -1, .5. loss = (.25 + 2.25 + 1 + .25) / 4 = .9375.
 *   S = (1, 2), da = (2, 4), db = 2 + 2 = 4, dc = 1.5. Norm of a and b: sqrt(4 + 16 + 16) = 6, so they are halved: (1, 2), 2.
 *   a: rate .36 / 2 = .18; .18 x 1 / 1.5 = .12, .18 x 2 / 2.5 = .144: a = (1.88, .856)
 *   b: rate .8 / 2 = .4; .4 (2 / 2.5 + .1 x 2) = .4: b = 1.6
 *   c: rate .4 / 2 = .2; .2 x 1.5 / 2 = .15: c = .35
 * Step 2. y = 3.358, 4.7276, 1.9884, -1.0196; goals 3.358, 3.3526, 3.9884, -3.1446: r = 0, 1.375, -2, 2.125. loss = 2.6015625.
 *   S = (-.625, 1.25), da = (-1, 2), db = -1.175 + 1.07 = -.105, dc = 1.5. Norm sqrt(5.011025) = 2.2385319 < 3: nothing is clipped.
 *   a: mhat = (-1/3, 2), vhat = (1, 4); .36 x (1/3) / 1.5 = .08, .36 x 2 / 2.5 = .288: a = (1.96, .568)
 *   b: mhat = (2 - .21) / 3 = .5966667, vhat = (4 + .02205) / 3 = 1.3406833, its root 1.1578788;
 *      .8 (.5966667 / 1.6578788 + .1 x 1.6) = .4159181: b = 1.1840819
 *   c: the same gradient again, so mhat = 1.5 and vhat = 2.25 whatever the betas; .4 x .75 = .3: c = .05
 * Step 3. goals are y: all gradients vanish, the moments move on. Norm 0.
 *   a: mhat = ((1 - 2) / 7, (2 + 4) / 7), vhat = (3/7, 12/7), roots .6546537, 1.3093073; rate .36 x .55 = .198:
 *      .198 x .1428571 / 1.1546537 = .0244971, .198 x .8571429 / 1.8093073 = .0938007: a = (1.9844971, .4741993)
 *   b: mhat = (2 - .21) / 7 = .2557143, vhat = 4.02205 / 7 = .5745786, root .7580096; .8 x .55 = .44:
 *      .44 (.2557143 / 1.2580096 + .1184082) = .1415379: b = 1.0425440
 *   c: m = .9 (.9 x .15 + .15) = .2565, mhat = .2565 / (1 - .729) = .9464945; v = .99 (.99 x .0225 + .0225) = .04432725,
 *      vhat = .04432725 / (1 - .970299) = 1.4924498, root 1.2216586; .22 x .9464945 / 1.7216586 = .1209466: c = -.0709466 */
#include "tests/support/test.h"

#include <math.h>

#include "trainer/steps/step.h"

static const char recipe_text[] = "name: golden\n"
                                  "model: none\n"
                                  "stages:\n"
                                  "  - name: paper\n"
                                  "    steps: 4\n"
                                  "    warmup: 2\n"
                                  "    floor: .1\n"
                                  "    clip: 3\n"
                                  "    micro_batches: 4\n"
                                  "    lanes: 2\n"
                                  "    losses: {language: 2}\n"
                                  "    data:\n"
                                  "      - {frames: 1}\n"
                                  "    groups:\n"
                                  "      - {name: a, rate: .36, betas: [.5, .5], eps: .5, tensors: [a]}\n"
                                  "      - {name: b, rate: .8, betas: [.5, .5], eps: .5, decay: .1, tensors: [b]}\n"
                                  "      - {name: c, rate: .4, betas: [.9, .99], eps: .5, clipped: false, tensors: [c]}\n";

#define M 4
static const float points[M][2] = {{1, 0}, {1, 1}, {1, -1}, {0, -1}};
static const struct {
    float goals[M], loss, norm, clip, rate, a[2], b, c;
} golden[] = {
    {{4, 5, 3.5f, -2}, .9375f, 6, .5f, .5f, {1.88f, .856f}, 1.6f, .35f},
    {{3.358f, 3.3526f, 3.9884f, -3.1446f}, 2.6015625f, 2.2385319f, 1, 1, {1.96f, .568f}, 1.1840819f, .05f},
    {{2.3708005f, 3.0433590f, 1.6982420f, -.6225585f}, 0, 0, 1, .55f, {1.9844971f, .4741993f}, 1.0425440f, -.0709466f},
};

struct paper {
    struct tpo_stream *stream;
    struct tpo_params params[TPO_PARTS];
    struct tpo_model models[TPO_PARTS];
    struct tpo_param *a, *b, *c;
};

static const float *target(const struct tpo_forward *f, int i)
{
    return f->samples[0].targets[i].data;
}

static int see(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct paper *p = self;
    (void)err;
    tpo_forward_output(f, "visual", tpo_linear(t, tpo_input(t, target(f, 0), 1, 2, false), p->a, NULL));
    return tpo_tape_error(t);
}

static int say(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct paper *p = self;
    (void)err;
    struct tpo_tensor *y = tpo_linear(t, tpo_forward_input(f, "visual"), p->b, p->c);
    tpo_forward_loss(f, "language", tpo_loss_mse(t, y, target(f, 1), NULL, 1));
    return tpo_tape_error(t);
}

static void paper_open(struct paper *p)
{
    static const char *const stages[] = {"encoder", "router", "region"};
    struct tpo_error err = {0};
    memset(p, 0, sizeof(*p));
    assert_int_equal(tpo_stream_open(&p->stream, "cpu", 1, &err), TPO_OK);
    p->a = tpo_params_declare(&p->params[TPO_PART_ENCODER], TPO_INIT_NORMAL, 1, TPO_SHAPE(1, 2), "a");
    p->b = tpo_params_declare(&p->params[TPO_PART_ROUTER], TPO_INIT_NORMAL, 1, TPO_SHAPE(1, 1), "b");
    p->c = tpo_params_declare(&p->params[TPO_PART_ROUTER], TPO_INIT_NORMAL, 1, TPO_SHAPE(1), "c");
    for (int i = 0; i < TPO_PARTS; i++) {
        assert_int_equal(tpo_params_random(&p->params[i], p->stream, 1, &err), TPO_OK);
        p->models[i] = (struct tpo_model){
            .stage = stages[i], .self = p, .params = &p->params[i], .forward = i == TPO_PART_ENCODER ? see : say};
    }
    memcpy(p->a->data, (float[]){2, 1}, 2 * sizeof(float));
    p->b->data[0] = 2;
    p->c->data[0] = .5f;
}

static void paper_close(struct paper *p)
{
    for (int i = 0; i < TPO_PARTS; i++) tpo_params_free(&p->params[i], p->stream);
    tpo_stream_close(p->stream);
}

static void near(int step, const char *what, double value, double expected)
{
    const double diff = value - expected;
    if (!(diff < 4e-6 && diff > -4e-6)) fail_msg("step %d: %s is %.8g, on paper %.8g", step, what, value, expected);
}

static int paper_learner(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    struct paper *p = owner;
    (void)replica;
    return tpo_learner_open_direct(out, &p->models[part], p->stream, err);
}

/* The recipe as read, and its only stage begun. */
static void paper_begin(struct paper *p, struct tpo_recipe **recipe, struct tpo_crew *crew)
{
    struct tpo_error err = {0};
    FILE *f = fopen("golden.yaml", "w");
    assert_non_null(f);
    fputs(recipe_text, f);
    fclose(f);
    if (tpo_recipe_load(recipe, "golden.yaml", &err) != TPO_OK) fail_msg("%s", err.message);
    paper_open(p);
    const struct tpo_crew_options o = {.n_replicas = {1, 1, 1}, .open = paper_learner, .owner = p};
    if (tpo_crew_open(crew, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    if (tpo_crew_begin(crew, *recipe, 0, "test", &err) != TPO_OK) fail_msg("%s", err.message);
}

static void paper_end(struct paper *p, struct tpo_recipe *recipe, struct tpo_crew *crew)
{
    tpo_crew_close(crew);
    paper_close(p);
    tpo_recipe_close(recipe);
}

static void step_run(struct tpo_crew *crew, const struct tpo_recipe *recipe, int step, const float goals[M],
                     struct tpo_step_report *report)
{
    struct tpo_named_tensor targets[M][2];
    struct tpo_sample samples[M];
    struct tpo_world_batch batches[M];
    struct tpo_error err = {0};
    for (int m = 0; m < M; m++) {
        targets[m][0] = (struct tpo_named_tensor){"x", TPO_F32, 2, {1, 2}, points[m]};
        targets[m][1] = (struct tpo_named_tensor){"goal", TPO_F32, 2, {1, 1}, &goals[m]};
        samples[m] = (struct tpo_sample){.n_targets = 2, .targets = targets[m]};
        batches[m] = (struct tpo_world_batch){.samples = &samples[m], .n = 1};
    }
    if (tpo_step_run(crew, &recipe->stages[0], step, batches, report, &err) != TPO_OK) fail_msg("%s", err.message);
}

static void three_steps_equal_paper(void **state)
{
    (void)state;
    struct paper p;
    struct tpo_step_report report;
    struct tpo_recipe *recipe = NULL;
    struct tpo_crew crew = {0};
    const int n = (int)(sizeof(golden) / sizeof(golden[0]));
    paper_begin(&p, &recipe, &crew);
    for (int s = 1; s <= n; s++) {
        step_run(&crew, recipe, s, golden[s - 1].goals, &report);
        assert_int_equal(report.n_losses, 1);
        near(s, "loss", report.losses[0].value, golden[s - 1].loss);
        near(s, "norm", report.norm, golden[s - 1].norm);
        near(s, "clip", report.clip, golden[s - 1].clip);
        near(s, "rate", report.rate, golden[s - 1].rate);
        for (int i = 0; i < 2; i++) near(s, "a", p.a->data[i], golden[s - 1].a[i]);
        near(s, "b", p.b->data[0], golden[s - 1].b);
        near(s, "c", p.c->data[0], golden[s - 1].c);
    }
    assert_int_equal(crew.version, n);
    near(4, "rate", tpo_recipe_rate(&recipe->stages[0], 4), .1);
    paper_end(&p, recipe, &crew);
}

/* Step 1 meets a goal that is no number, or one whose square is beyond f32: given up everywhere and counted; version and weights stay, and the
 * step after it has the bits of a run that never met one. */
static void what_is_not_finite_is_given_up_and_counted(void **state)
{
    (void)state;
    float weights[3][4];
    static const float goals[] = {0, NAN, 3e38f};
    for (int with = 0; with < 3; with++) {
        struct paper p;
        struct tpo_step_report report;
        struct tpo_recipe *recipe = NULL;
        struct tpo_crew crew = {0};
        paper_begin(&p, &recipe, &crew);
        for (int s = with > 0 ? 1 : 2; s <= 2; s++) {
            float goal[M];
            memcpy(goal, golden[0].goals, sizeof(goal));
            if (s == 1) goal[2] = goals[with];
            step_run(&crew, recipe, s, goal, &report);
            assert_int_equal(report.aborted, s == 1);
            if (s == 1) assert_true(p.a->data[0] == 2 && p.a->data[1] == 1 && p.b->data[0] == 2 && p.c->data[0] == .5f);
            assert_int_equal(crew.version, s - 1);
        }
        assert_int_equal(crew.aborted, with > 0);
        memcpy(weights[with], (float[]){p.a->data[0], p.a->data[1], p.b->data[0], p.c->data[0]}, sizeof(weights[with]));
        paper_end(&p, recipe, &crew);
    }
    assert_memory_equal(weights[0], weights[1], sizeof(weights[0]));
    assert_memory_equal(weights[0], weights[2], sizeof(weights[0]));
}

TPO_TESTS(cmocka_unit_test(three_steps_equal_paper), cmocka_unit_test(what_is_not_finite_is_given_up_and_counted))
