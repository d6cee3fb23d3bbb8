/* This file owns a training run: models opened, a crew made of them or of a mesh, stages walked. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "nn/config.h"
#include "nn/tokenizer.h"
#include "services/encoder/encoder.h"
#include "services/host/fault.h"
#include "services/region/region.h"
#include "services/router/learn.h"
#include "services/router/router.h"
#include "trainer/model_folder.h"
#include "trainer/steps/events.h"
#include "trainer/steps/feed.h"
#include "trainer/steps/keeper.h"
#include "trainer/steps/mesh.h"
#include "trainer/steps/messages.h"
#include "trainer/steps/publish.h"
#include "trainer/steps/recover.h"
#include "trainer/steps/run_log.h"
#include "trainer/steps/shard.h"
#include "trainer/steps/train.h"

#define RECOVERIES_MAX 20 /* in a row, without a step between them */

struct run {
    const struct tpo_train_options *options;
    struct tpo_recipe *recipe;
    struct tpo_config config;
    char folder[4096]; /* that the models were opened from */
    char config_hash[TPO_SHA256_HEX], tokens_hash[TPO_SHA256_HEX];
    struct tpo_tokenizer *tokenizer;
    struct tpo_encoder *encoder;
    struct tpo_router_trainee *router;
    struct tpo_region *region;
    struct tpo_model *models[TPO_PARTS]; /* one process: what is trained; over a mesh: the start of the stage */
    struct tpo_mesh mesh;
    bool remote;
    int last;                              /* stages that are run, --stop-after heeded */
    struct tpo_learner mirrors[TPO_PARTS]; /* over a mesh: of the models, to take in what a stage has learned */
    struct tpo_held *held;
    struct tpo_crew crew;
    struct tpo_keeper *keeper; /* over a mesh */
    uint64_t version;          /* the number under which serving has what the next stage begins with; 0: none */
    struct tpo_run_log *log;
};

/* One stage on its way. */
struct stage {
    struct run *run;
    int index;
    const struct tpo_recipe_stage *recipe;
    char dir[3000];
    struct tpo_recovery recovery;
    struct tpo_checkpoint at; /* the step that is done */
    struct tpo_feed *feed;
    struct tpo_events *events;
    int recoveries;
    int published;    /* the step that serving took last; 0: none by this process */
    uint64_t version; /* the number it has there */
    bool apart; /* a service serves another version than the others, or may: no request gets theirs until it is published again */
    bool ended; /* its model folder is written */
};

/* --- models -------------------------------------------------------------------------------------------------------------------------- */

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

/* From the folder of the last finished stage; before the first one from the recipe's, or from random weights where that has none. */
static int models_open(struct run *r, int first_stage, struct tpo_error *err)
{
    const char *folder = r->folder;
    char quoted[4200];
    const uint64_t seed = r->recipe->seed;
    if (first_stage == 0)
        snprintf(r->folder, sizeof(r->folder), "%s", r->recipe->model);
    else
        stage_model(r, first_stage - 1, r->folder, sizeof(r->folder));
    const bool fresh = tpo_model_folder_vacant(folder, NULL) == TPO_OK;
    int rc = fresh ? TPO_OK : tpo_identity_model(folder, err);
    if (rc == TPO_OK) rc = tpo_config_load(&r->config, folder, err);
    r->config.keep_bf16 = r->recipe->bf16;
    if (rc == TPO_OK) rc = tpo_config_hash(r->config_hash, folder, err);
    if (rc == TPO_OK) rc = tpo_tokenizer_open(&r->tokenizer, folder, err);
    tpo_config_tokens_hash(r->tokens_hash, folder);
    if (rc == TPO_OK) rc = tpo_encoder_open(&r->encoder, r->options->stream, &r->config, fresh ? NULL : folder, 1, seed, err);
    if (rc == TPO_OK) rc = tpo_router_trainee_open(&r->router, r->options->stream, &r->config, folder, fresh, seed, 1, err);
    if (rc == TPO_OK) rc = tpo_region_open(&r->region, r->options->stream, &r->config, fresh ? NULL : folder, seed, err);
    if (rc != TPO_OK) return rc;
    if (fresh)
        tpo_log(TPO_LOG_INFO, "random_start", "model=%s seed=%llu", tpo_log_quote(quoted, sizeof(quoted), folder),
                (unsigned long long)seed);
    r->models[TPO_PART_ENCODER] = tpo_encoder_model(r->encoder);
    r->models[TPO_PART_ROUTER] = tpo_router_trainee_model(r->router);
    r->models[TPO_PART_REGION] = tpo_region_model(r->region);
    for (int p = 0; p < TPO_PARTS && r->recipe->bf16; p++)
        tpo_log(TPO_LOG_INFO, "kept_bf16", "of=%s tensors=%d", tpo_part_names[p], tpo_params_n_half(r->models[p]->params));
    return TPO_OK;
}

static int direct_handle(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    struct run *r = owner;
    (void)replica;
    return tpo_learner_open_direct(out, r->models[part], r->options->stream, err);
}

static int crew_open(struct run *r, struct tpo_error *err)
{
    struct tpo_crew_options o = {.config = &r->config, .n_replicas = {1, 1, 1}, .open = direct_handle, .owner = r};
    if (r->remote) {
        r->mesh.holder = tpo_held_token(r->held);
        r->mesh.lease_ms = r->options->lease_ms;
        r->mesh.call_ms = r->options->call_ms;
        memcpy(o.n_replicas, r->mesh.n_replicas, sizeof(o.n_replicas));
        o.threaded = true;
        o.open = tpo_mesh_handle;
        o.owner = &r->mesh;
    }
    int rc = tpo_crew_open(&r->crew, &o, err);
    if (rc == TPO_OK && r->remote) r->crew.stop = &r->mesh.stop;
    if (rc == TPO_OK && r->remote) tpo_held_leases(r->held, &r->crew);
    if (rc == TPO_OK && r->remote) rc = tpo_keeper_open(&r->keeper, &r->mesh, err);
    return rc;
}

static void run_close(struct run *r)
{
    tpo_keeper_close(r->keeper);
    tpo_crew_close(&r->crew);
    for (int p = 0; p < TPO_PARTS; p++)
        if (r->mirrors[p].close != NULL) r->mirrors[p].close(r->mirrors[p].self);
    tpo_region_close(r->region);
    tpo_router_trainee_close(r->router);
    tpo_encoder_close(r->encoder);
    tpo_tokenizer_close(r->tokenizer);
    tpo_run_log_close(r->log);
    tpo_held_close(r->held);
    tpo_recipe_close(r->recipe);
}

/* --- the steps of a stage ------------------------------------------------------------------------------------------------------------- */

static int feed_reopen(struct stage *s, struct tpo_error *err)
{
    struct run *r = s->run;
    tpo_feed_close(s->feed);
    r->mesh.feed = s->feed = NULL;
    const struct tpo_feed_options o = {.recipe = r->recipe,
                                       .stage = s->index,
                                       .first_step = s->at.step + 1,
                                       .config = &r->config,
                                       .word_id = word_id,
                                       .owner = r->tokenizer,
                                       .dir = s->dir,
                                       .data = s->at.of.data,
                                       .over_mesh = r->remote,
                                       .by_id = r->remote && r->crew.trainable[TPO_PART_ENCODER] == 0};
    const int rc = tpo_feed_open(&s->feed, &o, err);
    r->mesh.feed = s->feed;
    return rc == TPO_OK ? tpo_identity_rows(&s->at.of, r->recipe, s->index, err) : rc;
}

/* Of the step that is done. */
static int state_write(struct stage *s, struct tpo_error *err)
{
    s->at.version = s->run->crew.version;
    s->at.aborted = s->run->crew.aborted;
    return tpo_checkpoint_write(s->dir, &s->run->crew, &s->at, err);
}

/* A disk that is full costs this checkpoint: the one before is whole, and the run goes on. */
static int checkpoint(struct stage *s, struct tpo_error *err)
{
    struct run *r = s->run;
    struct tpo_error why = {0};
    int rc = state_write(s, &why);
    if (rc == TPO_OK) tpo_run_log_note(r->log, "");
    if (rc == TPO_OK) return rc;
    if (strcmp(why.reason, "disk_full") == 0) {
        tpo_log(TPO_LOG_ERROR, "checkpoint_failed", "step=%d reason=disk_full", s->at.step);
        tpo_run_log_note(r->log, "the disk is full: the last checkpoint could not be written");
        return TPO_OK;
    }
    if (err != NULL) *err = why;
    return rc;
}

/* Serving goes on from the committed step; where it cannot take a version yet it takes a later one, and waits for the last. A service that has no
 * room for what others have taken gets a later one, too: requests are served from what all hold. Steps that are done once more change nothing there;
 * the one that is served, reached again, is given to a service that has lost it. */
static int publish(struct stage *s, bool patient, struct tpo_error *err)
{
    struct run *r = s->run;
    struct tpo_error why = {0};
    const int every = r->options->publish_every, n = s->at.step;
    uint64_t version = n == s->published ? s->version : 0;
    if (!r->remote || every == 0 || n < s->published || (n == 0 && version == 0)) return TPO_OK;
    if (!s->apart && n % every != 0 && n < s->recipe->steps) return TPO_OK;
    const int rc = tpo_crew_publish(&r->crew, n, r->options->wait_ms, patient, &version, &why);
    if (version == 0) return rc;
    s->published = n;
    s->version = version;
    s->apart = rc != TPO_OK;
    if (rc == TPO_OK) printf("stage=%s event=published step=%d version=%llu\n", s->recipe->name, n, (unsigned long long)version);
    fflush(stdout);
    if (rc == TPO_OK) return rc;
    if (why.code == TPO_RESOURCE_EXHAUSTED) {
        tpo_log(TPO_LOG_WARN, "publish_apart", "step=%d version=%llu reason=%s", n, (unsigned long long)version, why.reason);
        return TPO_OK;
    }
    if (err != NULL) *err = why;
    return rc;
}

static int step(struct stage *s, struct tpo_error *err)
{
    struct run *r = s->run;
    const struct tpo_world_batch *batches = NULL;
    struct tpo_step_report report = {0};
    const int n = s->at.step + 1, every = r->options->checkpoint_every;
    const double begun_s = tpo_now_s();
    int rc = tpo_feed_next(s->feed, &batches, err);
    const double drawn_s = tpo_now_s();
    if (rc == TPO_OK) rc = tpo_step_run(&r->crew, s->recipe, n, batches, &report, err);
    if (rc != TPO_OK) return rc;
    s->at.step = n;
    s->recoveries = 0;
    const double stepped_s = tpo_now_s();
    if (every > 0 && n % every == 0 && n < s->recipe->steps) rc = checkpoint(s, err);
    if (rc == TPO_OK) rc = publish(s, false, err);
    const double ended_s = tpo_now_s();
    report.timing.seconds[TPO_PHASE_DATA] = drawn_s - begun_s;
    report.timing.seconds[TPO_PHASE_CHECKPOINT] = ended_s - stepped_s;
    report.timing.wall_s += drawn_s - begun_s + ended_s - stepped_s;
    report.timing.bubble_s += drawn_s - begun_s + ended_s - stepped_s;
    report.reads = tpo_feed_reads(s->feed);
    report.skipped = tpo_feed_skipped(s->feed);
    tpo_run_log_step(r->log, n, &report, r->crew.aborted);
    tpo_events_step(s->events, s->recipe, n, &report, r->crew.aborted);
    return rc;
}

/* --- the end of a stage --------------------------------------------------------------------------------------------------------------- */

/* What the services have learned, into the models of this process, by way of a last checkpoint: the models hold the start of the stage until all
 * of it is here, since a service may still die. What is found may be another step's: s->at stays where the services are. */
static int weights_fetch(struct stage *s, struct tpo_error *err)
{
    struct run *r = s->run;
    int rc = state_write(s, err);
    struct tpo_checkpoint found = s->at;
    if (rc == TPO_OK) rc = tpo_checkpoint_find(s->dir, &found, err);
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++)
        if (found.step != s->at.step || found.has[p] != (r->crew.trainable[p] > 0))
            rc = tpo_fail(err, TPO_INTERNAL, "checkpoint", "%.200s: what was written at step %d is not what is found (step %d)",
                          s->dir, s->at.step, found.step);
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) {
        struct tpo_learner *mirror = &r->mirrors[p];
        struct tpo_begun begun;
        if (!found.has[p]) continue;
        rc = mirror->begin(mirror->self, r->crew.run, &s->recipe->plan, &begun, err);
        if (rc == TPO_OK) rc = tpo_checkpoint_send(&found, p, mirror, err);
        if (rc == TPO_OK) rc = mirror->end(mirror->self, err);
    }
    return rc;
}

/* Over the mesh the folder comes first, so that a run that dies before End finds the services as they were. A run that died as it published the last
 * step publishes it here. */
static int stage_finish(struct stage *s, struct tpo_error *err)
{
    struct run *r = s->run;
    const bool last = s->index + 1 == r->last;
    int rc = s->published < s->recipe->steps || s->apart ? publish(s, last, err) : TPO_OK;
    if (rc == TPO_OK) rc = r->remote ? weights_fetch(s, err) : tpo_crew_end(&r->crew, err);
    if (rc != TPO_OK) return rc;
    tpo_fault_reach(TPO_FAULT_STAGE_END);
    rc = tpo_checkpoint_finish(s->dir, &s->at.of, r->folder, r->options->stream, r->models, TPO_PARTS, err);
    /* Between stages the mesh stays ours: the next Begin ends what was. */
    if (rc == TPO_OK && r->remote && last) tpo_crew_end(&r->crew, NULL);
    s->ended = rc == TPO_OK;
    r->version = s->published == s->recipe->steps ? s->version : 0;
    return rc;
}

/* --- a stage --------------------------------------------------------------------------------------------------------------------------- */

/* A service that was started again serves its folder's weights. It gets what the others serve as soon as the run is there again, not when the
 * next version is due. */
static int rejoin(struct stage *s, struct tpo_error *err)
{
    struct tpo_error why = {0};
    s->apart = s->apart || tpo_crew_serves_apart(&s->run->crew);
    const int rc = s->apart ? publish(s, false, &why) : TPO_OK;
    if (rc == TPO_OK || tpo_recovery_helps(&why)) return TPO_OK; /* what went away is the next step's to find */
    if (err != NULL) *err = why;
    return rc;
}

/* What cannot go on keeps nobody out: the open step is given up, what is done is written, and the services are free. Where that cannot be, as the
 * disk is full or a step is committed here and not there, they keep what they hold, and the same command goes on from it; others wait until the
 * leases end. */
static void leave(struct stage *s)
{
    struct run *r = s->run;
    if (!r->remote || r->crew.torn || tpo_step_give_up(&r->crew, NULL) != TPO_OK) return;
    if (s->at.step > 0 && state_write(s, NULL) != TPO_OK) return;
    if (tpo_held_note(r->held, &r->crew, false, NULL) == TPO_OK) tpo_crew_end(&r->crew, NULL);
}

static void begin_tell(const struct stage *s)
{
    const struct run *r = s->run;
    tpo_run_log_stage(r->log, r->recipe, s->index, s->at.step + 1);
    printf("stage=%s event=begin first_step=%d steps=%d trainable=%d/%d/%d\n", s->recipe->name, s->at.step + 1, s->recipe->steps,
           r->crew.trainable[0], r->crew.trainable[1], r->crew.trainable[2]);
    fflush(stdout);
}

static int recover(struct stage *s, bool fresh, struct tpo_error *err)
{
    int rc = tpo_recovery_run(&s->recovery, fresh, &s->at, err);
    if (rc != TPO_OK) return rc;
    rc = feed_reopen(s, err);
    if (rc == TPO_OK) rc = tpo_identity_keep(s->dir, &s->at.of, err);
    if (rc == TPO_OK) begin_tell(s);
    if (rc == TPO_OK) rc = rejoin(s, err);
    if (rc != TPO_OK) leave(s);
    return rc;
}

/* One step, or the end of the stage; *done once that is reached. A service that went away is waited for, and all go on from where they agree. */
static int advance(struct stage *s, bool *done, struct tpo_error *err)
{
    struct run *r = s->run;
    struct tpo_error why = {0};
    int rc = s->at.step < s->recipe->steps ? step(s, &why) : stage_finish(s, &why);
    *done = s->ended;
    if (rc == TPO_OK) return rc;
    const bool helps = r->remote && tpo_recovery_helps(&why) && !tpo_recovery_stuck(&s->recovery, s->recoveries, &why);
    if (helps && ++s->recoveries <= RECOVERIES_MAX) {
        tpo_log(TPO_LOG_WARN, "step_lost", "step=%d code=%s reason=%s", s->at.step + 1, tpo_status_name(why.code), why.reason);
        tpo_run_log_state(r->log, "waiting", why.message);
        return recover(s, false, err);
    }
    leave(s);
    if (err != NULL) *err = why;
    return rc;
}

static void recovery_init(struct stage *s)
{
    struct run *r = s->run;
    s->recovery = (struct tpo_recovery){.crew = &r->crew,
                                        .held = r->held,
                                        .recipe = r->recipe,
                                        .stage = s->index,
                                        .stage_dir = s->dir,
                                        .stream = r->options->stream,
                                        .models = r->models,
                                        .same_memory = !r->remote,
                                        .config = r->config_hash,
                                        .tokenizer = r->tokens_hash,
                                        .threads = r->options->threads,
                                        .wait_ms = r->options->wait_ms};
}

static int stage_run(struct run *r, int index, bool fresh, struct tpo_error *err)
{
    const struct tpo_recipe_stage *recipe = &r->recipe->stages[index];
    struct stage s = {.run = r, .index = index, .recipe = recipe, .version = r->version};
    bool done = false;
    s.at.recipe = r->recipe;
    s.at.stage = index;
    int rc = tpo_identity_of(&s.at.of, r->recipe, index, err);
    if (rc != TPO_OK) return rc;
    memcpy(s.at.of.config, r->config_hash, sizeof(r->config_hash));
    memcpy(s.at.of.tokenizer, r->tokens_hash, sizeof(r->tokens_hash));
    stage_folder(r, index, s.dir, sizeof(s.dir));
    if (mkdir(s.dir, 0755) != 0 && errno != EEXIST)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s: %s", s.dir, strerror(errno));
    recovery_init(&s);
    s.events = tpo_events_open(s.dir);
    rc = tpo_start_digest(s.at.of.start, r->options->stream, r->models, TPO_PARTS, err);
    if (rc == TPO_OK) rc = recover(&s, fresh, err);
    while (rc == TPO_OK && !done) rc = advance(&s, &done, err);
    tpo_feed_close(s.feed);
    r->mesh.feed = NULL;
    tpo_events_close(s.events);
    return rc;
}

/* --- the run --------------------------------------------------------------------------------------------------------------------------- */

static int mirrors_open(struct run *r, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK && r->remote; p++)
        rc = tpo_learner_open_direct(&r->mirrors[p], r->models[p], r->options->stream, err);
    return rc;
}

static int stages_run(struct run *r, int first, struct tpo_error *err)
{
    char folder[4096], quoted[4200];
    int rc = TPO_OK;
    for (int i = first; i < r->last && rc == TPO_OK; i++) rc = stage_run(r, i, i > first, err);
    if (rc == TPO_OK && stage_model(r, r->last - 1, folder, sizeof(folder)))
        printf("event=done model=%s\n", tpo_log_quote(quoted, sizeof(quoted), folder));
    return rc;
}

/* A stage that ended here is taken as one of this recipe's only if it is. */
static int ended_check(const struct run *r, int stage, struct tpo_error *err)
{
    char dir[3000], folder[4096];
    struct tpo_identity x;
    stage_folder(r, stage, dir, sizeof(dir));
    stage_model(r, stage, folder, sizeof(folder));
    int rc = tpo_identity_of(&x, r->recipe, stage, err);
    if (rc == TPO_OK) rc = tpo_config_hash(x.config, folder, err);
    tpo_config_tokens_hash(x.tokenizer, folder);
    return rc == TPO_OK ? tpo_identity_kept(dir, &x, true, err) : rc;
}

static int run_open(struct run *r, int *first, struct tpo_error *err)
{
    const struct tpo_train_options *o = r->options;
    char folder[4096];
    r->remote = o->mesh[0] != '\0';
    int rc = tpo_recipe_load_with(&r->recipe, o->recipe, o->data[0] != '\0' ? o->data : NULL, err);
    if (rc == TPO_OK) rc = tpo_recipe_files(r->recipe, err);
    if (rc == TPO_OK && o->model[0] != '\0') snprintf(r->recipe->model, sizeof(r->recipe->model), "%s", o->model);
    if (rc == TPO_OK && mkdir(o->out, 0755) != 0 && errno != EEXIST)
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s: %s", o->out, strerror(errno));
    if (rc == TPO_OK) rc = tpo_held_open(&r->held, o->out, err);
    if (rc == TPO_OK) rc = tpo_run_log_open(&r->log, o->out, o->log_every, !o->quiet, err);
    if (rc == TPO_OK && r->remote) rc = tpo_mesh_read(&r->mesh, o->mesh, o->wait_ms, err);
    if (rc != TPO_OK) return rc;
    for (; rc == TPO_OK && *first < r->recipe->n_stages && stage_model(r, *first, folder, sizeof(folder)); ++*first)
        rc = ended_check(r, *first, err);
    if (rc == TPO_OK) rc = models_open(r, *first, err);
    if (rc == TPO_OK) rc = tpo_recipe_groups(r->recipe, *first, r->models, TPO_PARTS, err);
    if (rc == TPO_OK) rc = tpo_feed_check(r->recipe, *first, &r->config, err);
    if (rc == TPO_OK && r->remote) rc = tpo_messages_check(r->recipe, *first, &r->config, r->models[TPO_PART_ENCODER]->params, err);
    if (rc == TPO_OK) rc = mirrors_open(r, err);
    if (rc == TPO_OK) rc = crew_open(r, err);
    const int n = r->recipe->n_stages;
    r->last = o->stop_after > 0 && o->stop_after < n ? o->stop_after : n;
    return rc == TPO_OK ? tpo_crew_check(&r->crew, r->recipe, *first, r->last, r->models, err) : rc;
}

int tpo_train(const struct tpo_train_options *o, struct tpo_error *err)
{
    struct run r = {.options = o};
    struct tpo_error why = {0};
    int first = 0;
    int rc = run_open(&r, &first, &why);
    if (rc == TPO_OK) rc = stages_run(&r, first, &why);
    if (rc == TPO_OK)
        tpo_run_log_state(r.log, "done", "");
    else if (r.log != NULL)
        tpo_run_log_state(r.log, "failed", why.message);
    if (rc != TPO_OK && err != NULL) *err = why;
    run_close(&r);
    return rc;
}
