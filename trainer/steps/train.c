/* This file owns a training run: models opened, stages walked, lines printed, checkpoints written. */
#include "trainer/steps/train.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "nn/tokenizer.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/learn.h"
#include "services/router/router.h"
#include "trainer/steps/checkpoint.h"
#include "trainer/steps/events.h"
#include "trainer/steps/feed.h"

struct run {
    const struct tpo_train_options *options;
    struct tpo_recipe *recipe;
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_tokenizer *tokenizer;
    struct tpo_encoder *encoder;
    struct tpo_router_trainee *router;
    struct tpo_region *region;
    struct tpo_model *models[TPO_PARTS];
    struct tpo_team_of_learners team;
};

/* The id of " word" where the tokenizer has it as one piece. */
static int word_id(void *owner, const char *word)
{
    struct tpo_ids ids = {0};
    int rc = tpo_tokenizer_encode(owner, &ids, word, strlen(word), false, NULL);
    const int id = rc == TPO_OK && ids.n == 1 ? ids.ids[0] : -1;
    tpo_ids_free(&ids);
    return id;
}

static void stage_folder(const struct run *r, int stage, char *out, size_t size)
{
    snprintf(out, size, "%s/%d-%s", r->options->out, stage + 1, r->recipe->stages[stage].name);
}

/* The model folder of a finished stage; false when it isn't finished. */
static bool stage_model(const struct run *r, int stage, char *out, size_t size)
{
    char dir[3000], file[4096];
    stage_folder(r, stage, dir, sizeof(dir));
    snprintf(out, size, "%s/model", dir);
    snprintf(file, sizeof(file), "%s/model/model.safetensors", dir);
    return access(file, R_OK) == 0;
}

/* From the folder of the last finished stage, or from random weights. */
static int models_open(struct run *r, int first_stage, struct tpo_error *err)
{
    char folder[4096];
    const bool fresh = first_stage == 0;
    const uint64_t seed = r->recipe->seed;
    if (fresh) snprintf(folder, sizeof(folder), "%s", r->recipe->model);
    else stage_model(r, first_stage - 1, folder, sizeof(folder));
    int rc = tpo_config_load(&r->config, folder, err);
    if (rc == TPO_OK) rc = tpo_tokenizer_open(&r->tokenizer, folder, err);
    if (rc == TPO_OK) rc = tpo_encoder_open(&r->encoder, r->stream, &r->config, fresh ? NULL : folder, 1, seed, err);
    if (rc == TPO_OK) rc = tpo_router_trainee_open(&r->router, r->stream, &r->config, folder, fresh, seed, 1, err);
    if (rc == TPO_OK) rc = tpo_region_open(&r->region, r->stream, &r->config, fresh ? NULL : folder, seed, err);
    if (rc != TPO_OK) return rc;
    r->models[TPO_PART_ENCODER] = tpo_encoder_model(r->encoder);
    r->models[TPO_PART_ROUTER] = tpo_router_trainee_model(r->router);
    r->models[TPO_PART_REGION] = tpo_region_model(r->region);
    r->team.config = &r->config;
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) rc = tpo_learner_open_direct(&r->team.learners[p], r->models[p], r->stream, err);
    return rc;
}

static void run_close(struct run *r)
{
    for (int p = 0; p < TPO_PARTS; p++)
        if (r->team.learners[p].close != NULL) r->team.learners[p].close(r->team.learners[p].self);
    tpo_region_close(r->region);
    tpo_router_trainee_close(r->router);
    tpo_encoder_close(r->encoder);
    tpo_tokenizer_close(r->tokenizer);
    tpo_stream_close(r->stream);
    tpo_recipe_close(r->recipe);
}

/* --- what is printed ----------------------------------------------------------------------------------------------------------------- */

struct meter {
    double begun_s, line_s;
    int first_step, line_step, samples, boxes;
    struct tpo_step_report sum; /* losses since the last line */
    int n[TPO_LOSSES_MAX];
};

static void meter_add(struct meter *m, const struct tpo_step_report *r)
{
    for (int i = 0; i < r->n_losses; i++) {
        int k = 0;
        while (k < m->sum.n_losses && m->sum.losses[k].name != r->losses[i].name) k++;
        if (k == m->sum.n_losses) {
            m->sum.losses[m->sum.n_losses++] = r->losses[i];
            m->n[k] = 1;
        } else {
            m->sum.losses[k].value += r->losses[i].value;
            m->n[k]++;
        }
    }
    m->samples += r->samples;
    m->boxes += r->boxes;
}

static void line_print(const struct run *r, const struct tpo_recipe_stage *s, struct meter *m, const struct tpo_step_report *last, int step)
{
    char losses[256] = "";
    size_t at = 0;
    const double now = tpo_now_s(), rate = (step - m->line_step) / (now - m->line_s + 1e-9);
    for (int k = 0; k < m->sum.n_losses && at < sizeof(losses); k++)
        at += (size_t)snprintf(losses + at, sizeof(losses) - at, " %s=%.4f", m->sum.losses[k].name, m->sum.losses[k].value / m->n[k]);
    printf("stage=%s step=%d/%d samples=%d boxes=%d%s norm=%.3f clip=%.3f rate=%.3f aborted=%llu steps_per_s=%.2f eta_s=%.0f\n", s->name, step,
           s->steps, m->samples, m->boxes, losses, last->norm, (double)last->clip, (double)last->rate, (unsigned long long)r->team.aborted, rate,
           (s->steps - step) / (rate > 0 ? rate : 1));
    fflush(stdout);
    m->line_s = now;
    m->line_step = step;
    m->sum.n_losses = 0;
}

static void bar_print(const struct tpo_recipe_stage *s, const struct meter *m, int step)
{
    char bar[31];
    const int full = (int)(30LL * step / s->steps);
    const double rate = (step - m->first_step) / (tpo_now_s() - m->begun_s + 1e-9);
    memset(bar, '.', sizeof(bar) - 1);
    memset(bar, '#', (size_t)full);
    bar[30] = '\0';
    const int eta = (int)((s->steps - step) / (rate > 0 ? rate : 1));
    fprintf(stderr, "\r%s [%s] %d/%d  %.1f steps/s  %d:%02d left ", s->name, bar, step, s->steps, rate, eta / 60, eta % 60);
    if (step == s->steps) fputc('\n', stderr);
}

/* --- one stage ----------------------------------------------------------------------------------------------------------------------- */

static int steps_run(struct run *r, int stage, const char *dir, struct tpo_checkpoint *c, struct tpo_feed *feed,
                     struct tpo_events *events, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &r->recipe->stages[stage];
    const struct tpo_train_options *o = r->options;
    const bool bar = !o->quiet && isatty(STDERR_FILENO);
    struct meter meter = {.begun_s = tpo_now_s(), .line_s = tpo_now_s(), .first_step = c->step, .line_step = c->step};
    for (int step = c->step + 1; step <= s->steps; step++) {
        const struct tpo_world_batch *batches = NULL;
        struct tpo_step_report report;
        const double begun_s = tpo_now_s();
        int rc = tpo_feed_next(feed, &batches, err);
        const double drawn_s = tpo_now_s();
        if (rc == TPO_OK) rc = tpo_step_run(&r->team, s, step, batches, &report, err);
        if (rc != TPO_OK) return rc;
        report.timing.seconds[TPO_PHASE_DATA] = drawn_s - begun_s;
        report.timing.wall_s = tpo_now_s() - begun_s;
        report.timing.bubble_s = report.timing.wall_s - report.timing.seconds[TPO_PHASE_FORWARD] - report.timing.seconds[TPO_PHASE_BACKWARD];
        tpo_events_step(events, s, step, &report, r->team.aborted);
        meter_add(&meter, &report);
        if (step % o->log_every == 0 || step == s->steps) line_print(r, s, &meter, &report, step);
        if (bar) bar_print(s, &meter, step);
        if (o->checkpoint_every > 0 && step % o->checkpoint_every == 0 && step < s->steps) {
            c->step = step;
            c->version = r->team.version;
            c->aborted = r->team.aborted;
            rc = tpo_checkpoint_write(dir, &r->team, c, err);
            if (rc != TPO_OK) return rc;
        }
    }
    return TPO_OK;
}

static int stage_run(struct run *r, int stage, struct tpo_error *err)
{
    char dir[3000];
    struct tpo_feed *feed = NULL;
    const struct tpo_recipe_stage *s = &r->recipe->stages[stage];
    struct tpo_checkpoint c = {.recipe_seed = r->recipe->seed, .lanes = s->plan.lanes, .micro_batches = s->plan.micro_batches, .threads = r->options->threads};
    stage_folder(r, stage, dir, sizeof(dir));
    if (mkdir(dir, 0755) != 0 && errno != EEXIST) return tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s: %s", dir, strerror(errno));
    int rc = tpo_step_begin(&r->team, r->recipe, stage, err);
    if (rc == TPO_OK) rc = tpo_checkpoint_read(dir, &r->team, &c, err);
    if (rc != TPO_OK) return rc;
    r->team.aborted = c.aborted;
    if (c.step > 0) r->team.version = c.version;
    printf("stage=%s event=begin first_step=%d steps=%d trainable=%d/%d/%d\n", s->name, c.step + 1, s->steps, r->team.trainable[0],
           r->team.trainable[1], r->team.trainable[2]);
    rc = tpo_feed_open(&feed, r->recipe, stage, c.step + 1, r->config.vision_encoder.img_size, word_id, r->tokenizer, err);
    struct tpo_events *events = rc == TPO_OK ? tpo_events_open(dir) : NULL;
    if (rc == TPO_OK) rc = steps_run(r, stage, dir, &c, feed, events, err);
    tpo_events_close(events);
    tpo_feed_close(feed);
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) rc = r->team.learners[p].end(r->team.learners[p].self, err);
    if (rc == TPO_OK) rc = tpo_checkpoint_finish(dir, r->recipe->model, r->models, TPO_PARTS, err);
    return rc;
}

int tpo_train(const struct tpo_train_options *o, struct tpo_error *err)
{
    struct run r = {.options = o};
    char folder[4096];
    int first = 0;
    int rc = tpo_recipe_load(&r.recipe, o->recipe, err);
    if (rc == TPO_OK && mkdir(o->out, 0755) != 0 && errno != EEXIST) rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s: %s", o->out, strerror(errno));
    if (rc == TPO_OK) rc = tpo_stream_open(&r.stream, "cpu", o->threads, err);
    if (rc == TPO_OK) {
        while (first < r.recipe->n_stages && stage_model(&r, first, folder, sizeof(folder))) first++;
        rc = models_open(&r, first, err);
    }
    const int last = rc == TPO_OK && o->stop_after > 0 && o->stop_after < r.recipe->n_stages ? o->stop_after : rc == TPO_OK ? r.recipe->n_stages : 0;
    for (int i = first; i < last && rc == TPO_OK; i++) rc = stage_run(&r, i, err);
    if (rc == TPO_OK && last > 0 && stage_model(&r, last - 1, folder, sizeof(folder))) printf("event=done model=%s\n", folder);
    run_close(&r);
    return rc;
}

static const char usage[] =
    "tpo train -- train a model by a recipe, in one process\n"
    "\n"
    "  tpo train RECIPE.yaml [--out DIR]\n"
    "      --out DIR             checkpoints and a model folder per stage (default: run-NAME beside where you stand)\n"
    "      --threads N           of the compute team (default 2; a resumed run needs the same)\n"
    "      --checkpoint-every N  steps (default 500)\n"
    "      --log-every N         steps per line (default 50)\n"
    "      --stop-after N        stages\n"
    "\n"
    "The same command again goes on where it was ended, and ends in the same bits. When done:\n"
    "  tpo model export DIR/LAST-STAGE/model OUT      weights to serve, in bf16\n"
    "exit status: 0 trained, 1 something failed, 2 wrong usage\n";

/* 1..most, or -1. */
static int count_of(const char *text, long most)
{
    char *end = NULL;
    const long n = strtol(text, &end, 10);
    return *text == '\0' || *end != '\0' || n < 0 || n > most ? -1 : (int)n;
}

int tpo_train_main(int argc, char **argv)
{
    static const struct option options[] = {{"out", required_argument, NULL, 'o'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"checkpoint-every", required_argument, NULL, 'c'},
                                            {"log-every", required_argument, NULL, 'l'},
                                            {"stop-after", required_argument, NULL, 's'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct tpo_train_options o = {.out = "run", .threads = 2, .checkpoint_every = 500, .log_every = 50};
    struct tpo_error err = {0};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'o') o.out = optarg;
        if (c == 't') o.threads = count_of(optarg, 256);
        if (c == 'c') o.checkpoint_every = count_of(optarg, 1 << 30);
        if (c == 'l') o.log_every = count_of(optarg, 1 << 30);
        if (c == 's') o.stop_after = count_of(optarg, TPO_STAGES_MAX);
        if (c == 'h') {
            fputs(usage, stdout);
            return 0;
        }
        if (c == '?') {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (argc - optind != 1 || o.threads < 1 || o.checkpoint_every < 0 || o.log_every < 1 || o.stop_after < 0) {
        fputs(usage, stderr);
        return 2;
    }
    o.recipe = argv[optind];
    if (tpo_train(&o, &err) == TPO_OK) return 0;
    fprintf(stderr, "tpo train: %s: %s\n", tpo_status_name(err.code), err.message);
    return 1;
}
