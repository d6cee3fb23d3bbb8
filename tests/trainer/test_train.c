/* Short real runs of tpo-trainer: it learns, and a killed run goes on to the same bits. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels/stream.h"
#include "services/encoder/encoder.h"
#include "services/host/learner_state.h"
#include "services/region/region.h"
#include "services/router/router.h"
#include "trainer/steps/recipe.h"

extern char **environ;

/* `stages` under a recipe of the small model, in this case's own directory. */
static void recipe_write(const char *name, const char *stages)
{
    char target[4096], text[4096];
    snprintf(target, sizeof(target), "%s/trainer/recipes/plain", tpo_test_source());
    if (access("plain", F_OK) != 0) assert_int_equal(symlink(target, "plain"), 0);
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    snprintf(text, sizeof(text), "name: test\nseed: 3\nmodel: plain\nstages:\n%s", stages);
    fputs(text, f);
    fclose(f);
}

static pid_t train(const char *recipe, const char *out, const char *every, const char *log)
{
    char program[4096];
    snprintf(program, sizeof(program), "%s/tpo-trainer", tpo_test_build());
    char *argv[] = {program, "train", (char *)recipe, "--out", (char *)out, "--checkpoint-every", (char *)every, "--log-every",
                    "1",     NULL};
    posix_spawn_file_actions_t files;
    pid_t pid;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    assert_int_equal(posix_spawn(&pid, program, &files, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

static int wait_for(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static char *file_read(const char *path, size_t *size)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("%s is missing", path);
    fstat(fileno(f), &st);
    char *bytes = malloc((size_t)st.st_size + 1);
    *size = fread(bytes, 1, (size_t)st.st_size, f);
    bytes[*size] = '\0';
    fclose(f);
    return bytes;
}

/* Mean of " NAME=x" over lines first..last (from 1) that hold it. */
static double mean_of(const char *log, const char *name, int first, int last)
{
    size_t size;
    char *text = file_read(log, &size), key[40];
    double sum = 0;
    int line = 0, n = 0;
    snprintf(key, sizeof(key), " %s=", name);
    for (char *at = strtok(text, "\n"); at != NULL; at = strtok(NULL, "\n")) {
        const char *found = strstr(at, key);
        if (found == NULL) continue;
        line++;
        if (line < first || line > last) continue;
        sum += strtod(found + strlen(key), NULL);
        n++;
    }
    free(text);
    if (n != last - first + 1) fail_msg("%s: %d lines with %s, wanted %d to %d", log, line, name, first, last);
    return sum / n;
}

static const char encoder_stage[] =
    "  - name: see\n"
    "    steps: %d\n"
    "    warmup: %d\n"
    "    micro_batches: 2\n"
    "    lanes: 2\n"
    "    data:\n"
    "      - {frames: 1, samples: %d, conversations: 0, dense: true}\n"
    "    losses: {dense: 1}\n"
    "    groups:\n"
    "      - {name: qkv, optimiser: muon, rate: 8.0e-3, split: 3, clipped: false, tensors: ['*qkv.weight']}\n"
    "      - {name: hidden, optimiser: muon, rate: 8.0e-3, clipped: false, tensors: ['*.blocks.*proj.weight', '*.fc*.weight']}\n"
    "      - {name: rest, optimiser: adamw, rate: 2.0e-3, tensors: ['vision_*', 'ext.encoder.*']}\n";

static const char chat_stage[] = "  - name: talk\n"
                                 "    steps: 4\n"
                                 "    data:\n"
                                 "      - {share: 2, frames: 1, samples: 2, conversations: 3, aids: all, slots: true}\n"
                                 "      - {share: 1, frames: 4, samples: 1, conversations: 3, aids: all, slots: true}\n"
                                 "    losses: {language: 1, region: 1.5, attention: 1, slot: .3}\n"
                                 "    groups:\n"
                                 "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";

static void a_short_run_learns(void **state)
{
    (void)state;
    char stage[4096];
    snprintf(stage, sizeof(stage), encoder_stage, 60, 5, 4);
    recipe_write("r.yaml", stage);
    assert_int_equal(wait_for(train("r.yaml", "out", "0", "log")), 0);
    const double first = mean_of("log", "dense", 1, 5), last = mean_of("log", "dense", 56, 60);
    if (!(last < .6 * first)) fail_msg("dense loss %g at first, %g at last", first, last);
}

static void chat_stages_lower_every_loss(void **state)
{
    (void)state;
    recipe_write("r.yaml", "  - name: talk\n"
                           "    steps: 40\n"
                           "    warmup: 4\n"
                           "    data:\n"
                           "      - {frames: 1, samples: 2, conversations: 6, aids: all, slots: true}\n"
                           "    losses: {language: 1, region: 1.5, attention: 1, slot: .3}\n"
                           "    groups:\n"
                           "      - {name: all, optimiser: adamw, rate: 2.0e-3, betas: [.9, .98], tensors: ['*']}\n");
    assert_int_equal(wait_for(train("r.yaml", "out", "0", "log")), 0);
    static const char *const losses[] = {"language", "region", "attention", "slot"};
    for (int i = 0; i < 4; i++) {
        const double first = mean_of("log", losses[i], 1, 4), last = mean_of("log", losses[i], 37, 40);
        if (!(last < .9 * first)) fail_msg("%s loss %g at first, %g at last", losses[i], first, last);
    }
}

static void same_file(const char *path_a, const char *path_b)
{
    size_t size_a, size_b;
    char *a = file_read(path_a, &size_a), *b = file_read(path_b, &size_b);
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    free(a);
    free(b);
}

static void killed_and_resumed_is_uninterrupted(void **state)
{
    (void)state;
    char stages[4096];
    const int n = snprintf(stages, sizeof(stages), encoder_stage, 8, 5, 2);
    snprintf(stages + n, sizeof(stages) - (size_t)n, "%s", chat_stage);
    recipe_write("r.yaml", stages);
    assert_int_equal(wait_for(train("r.yaml", "whole", "2", "log.whole")), 0);

    /* Killed as soon as each stage has a checkpoint, at whatever step that finds it. */
    static const char *const seen[] = {"killed/1-see/step-00000004", "killed/2-talk/step-00000002"};
    for (int i = 0; i < 2; i++) {
        const pid_t pid = train("r.yaml", "killed", "2", "log.killed");
        const struct timespec nap = {.tv_nsec = 2000000};
        int status;
        while (access(seen[i], F_OK) != 0 && waitpid(pid, &status, WNOHANG) == 0) nanosleep(&nap, NULL);
        kill(pid, SIGKILL);
        wait_for(pid);
    }
    assert_int_equal(wait_for(train("r.yaml", "killed", "2", "log.killed")), 0);

    static const char *const files[] = {"1-see/model/model.safetensors", "2-talk/model/model.safetensors"};
    for (int i = 0; i < 2; i++) {
        char whole[256], killed[256];
        snprintf(whole, sizeof(whole), "whole/%s", files[i]);
        snprintf(killed, sizeof(killed), "killed/%s", files[i]);
        same_file(whole, killed);
    }
}

/* A recipe's model that holds weights is where its first stage begins: at rate 0 it ends there, too. */
static void a_model_with_weights_is_where_a_run_begins(void **state)
{
    (void)state;
    char stage[4096];
    snprintf(stage, sizeof(stage), encoder_stage, 2, 2, 1);
    recipe_write("r.yaml", stage);
    assert_int_equal(wait_for(train("r.yaml", "first", "0", "log")), 0);
    assert_int_equal(symlink("first/1-see/model", "given"), 0);
    FILE *f = fopen("again.yaml", "w");
    fputs("name: again\nseed: 8\nmodel: given\nstages:\n  - name: see\n    steps: 1\n    data:\n      - {frames: 1, conversations: "
          "0, dense: true}\n"
          "    losses: {dense: 1}\n    groups:\n      - {name: all, rate: 0, tensors: ['*']}\n",
          f);
    fclose(f);
    assert_int_equal(wait_for(train("again.yaml", "second", "0", "log")), 0);
    same_file("first/1-see/model/model.safetensors", "second/1-see/model/model.safetensors");
}

static void refused(const char *text, const char *expected)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    FILE *f = fopen("bad.yaml", "w");
    fputs(text, f);
    fclose(f);
    assert_int_equal(tpo_recipe_load(&r, "bad.yaml", &err), TPO_INVALID_ARGUMENT);
    if (strstr(err.message, expected) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.message, expected);
}

static void broken_recipes_are_refused_by_line(void **state)
{
    (void)state;
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    assert_int_equal(tpo_recipe_load(&r, "absent.yaml", &err), TPO_NOT_FOUND);
    refused("", "empty");
    refused("name: [", "bad.yaml:");
    refused("name: x\nmodel: m\n", "bad.yaml:1: a recipe needs name, model and stages");
    refused("name: x\nname: y\n", "bad.yaml:2: key \"name\" is here twice");
    refused("name: x\ncolour: y\n", "bad.yaml:2: unknown key \"colour\"");
    refused("name: ../x\n", "bad.yaml:1:");
    refused("name: x\nseed: many\n", "bad.yaml:2: \"many\" is not a number");
    refused("name: x\nseed: 1.5\n", "bad.yaml:2: \"1.5\" is not a whole number");
    refused("name: x\nseed: -1\n", "bad.yaml:2: -1 is outside");
    refused("name: x\nmodel: m\nstages: 3\n", "bad.yaml:3: a list is needed");
    refused("name: x\nmodel: m\nstages:\n  - {name: s}\n", "bad.yaml:4: a stage needs");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    steps: 0\n", "bad.yaml:5: 0 is outside");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    losses: {rgion: 1}\n", "bad.yaml:5: unknown key \"rgion\"");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    data:\n      - {frames: 1, keep: some}\n",
            "bad.yaml:6: \"some\" is not one of");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    data:\n      - {mix: {\"attribut box\": 1}}\n",
            "bad.yaml:6: unknown key");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    groups:\n      - {name: g, rate: -1, tensors: [a]}\n",
            "bad.yaml:6: -1 is outside");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    groups:\n      - {name: g, tensors: [a]}\n",
            "bad.yaml:6: this group has no rate");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    groups:\n      - {name: g, rate: 1}\n",
            "bad.yaml:6: this group names no tensors");
}

static void a_recipe_extends_another(void **state)
{
    (void)state;
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    recipe_write("base.yaml", "  - name: see\n    steps: 7\n    warmup: 3\n    data:\n      - {frames: 1, samples: 2, dense: "
                              "true}\n    losses: {dense: 1}\n"
                              "    groups:\n      - {name: g, rate: .5, tensors: [abc]}\n"
                              "  - name: talk\n    steps: 9\n    data:\n      - {frames: 4}\n    losses: {slot: 1, language: 2}\n"
                              "    groups:\n      - {name: h, rate: .25, tensors: [def, ghi]}\n");
    FILE *f = fopen("more.yaml", "w");
    fputs("name: more\nextends: base.yaml\nstages:\n  - name: talk\n    steps: 4\n    losses: {language: 3}\n"
          "    data:\n      - {frames: 1, without: [noun, told]}\n",
          f);
    fclose(f);
    if (tpo_recipe_load(&r, "more.yaml", &err) != TPO_OK) fail_msg("%s", err.message);
    assert_string_equal(r->name, "more");
    assert_string_equal(r->model, "plain");
    assert_int_equal(r->seed, 3);
    assert_int_equal(r->n_stages, 1);
    const struct tpo_recipe_stage *s = &r->stages[0];
    assert_int_equal(s->steps, 4);
    assert_int_equal(s->plan.n_losses, 1);
    assert_ptr_equal(s->plan.losses, s->losses);
    assert_float_equal(tpo_recipe_loss(s, "language"), 3, 0);
    assert_float_equal(tpo_recipe_loss(s, "slot"), 0, 0);
    assert_int_equal(s->plan.n_groups, 1);
    assert_float_equal(s->rates[0], .25f, 0);
    assert_string_equal(s->plan.groups[0].patterns[1], "ghi");
    assert_int_equal(s->n_data, 1);
    assert_int_equal(s->data[0].draw.without, TPO_WORLD_AID_NOUN | TPO_WORLD_AID_TOLD);
    tpo_recipe_close(r);

    refused("name: x\nextends: more.yaml\nstages:\n  - name: talk\n",
            "more.yaml:2: a recipe that is extended can't extend another");
    refused("name: x\nextends: bad.yaml\nstages:\n  - name: talk\n", "bad.yaml:2: a recipe that is extended can't extend another");
    refused("name: x\nextends: base.yaml\nstages:\n  - name: walk\n", "bad.yaml:4: a stage needs");
    refused("name: x\nextends: base.yaml\n", "a recipe needs name, model and stages");
    refused("name: x\nextends: [base.yaml]\n", "bad.yaml:2: a single value");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    data:\n      - {without: [verb]}\n",
            "bad.yaml:6: \"verb\" is not one of");
    refused("name: x\nmodel: m\nstages:\n  - name: s\n    data:\n      - {outermost: 1.5}\n", "bad.yaml:6: 1.5 is outside");
    f = fopen("lost.yaml", "w");
    fputs("name: x\nextends: nowhere.yaml\nstages:\n  - name: s\n", f);
    fclose(f);
    assert_int_equal(tpo_recipe_load(&r, "lost.yaml", &err), TPO_NOT_FOUND);
}

/* The tensors of all services of a config, as recipes' patterns see them. */
struct schema {
    struct tpo_params services[3];
};

static void schema_open(struct schema *s, const char *folder)
{
    struct tpo_config config;
    struct tpo_error err = {0};
    if (tpo_config_load(&config, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    *s = (struct schema){0};
    tpo_encoder_schema(&s->services[0], &config, 1);
    tpo_router_schema(&s->services[1], &config, 1);
    tpo_region_schema(&s->services[2], &config);
}

static void schema_free(struct schema *s)
{
    for (int i = 0; i < 3; i++) tpo_params_free(&s->services[i], NULL);
}

static bool group_matches(const struct tpo_group *g, const char *name)
{
    bool any = false;
    for (int i = 0; i < g->n_patterns; i++) any = any || tpo_pattern_match(g->patterns[i], name);
    return any;
}

/* Elements that a group of a stage trains. */
static int64_t group_size(const struct schema *s, const struct tpo_recipe_stage *stage, int group)
{
    int64_t n = 0;
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < s->services[i].n; k++) {
            const struct tpo_param *p = s->services[i].items[k];
            int owner = 0;
            while (owner < stage->plan.n_groups && !group_matches(&stage->groups[owner], p->name)) owner++;
            if (owner == group && !p->ignored) n += p->size;
        }
    return n;
}

static bool pattern_names(const struct schema *s, const char *pattern)
{
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < s->services[i].n; k++)
            if (!s->services[i].items[k]->ignored && tpo_pattern_match(pattern, s->services[i].items[k]->name)) return true;
    return false;
}

static void recipe_check(const char *path)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    struct schema schema;
    if (tpo_recipe_load(&r, path, &err) != TPO_OK) fail_msg("%s", err.message);
    schema_open(&schema, r->model);
    for (int i = 0; i < r->n_stages; i++) {
        const struct tpo_recipe_stage *s = &r->stages[i];
        for (int g = 0; g < s->plan.n_groups; g++) {
            if (group_size(&schema, s, g) == 0) fail_msg("%s: group %s of %s trains nothing", path, s->groups[g].name, s->name);
            for (int k = 0; k < s->groups[g].n_patterns; k++)
                if (!pattern_names(&schema, s->groups[g].patterns[k]))
                    fail_msg("%s: %s names no tensor", path, s->groups[g].patterns[k]);
        }
    }
    schema_free(&schema);
    tpo_recipe_close(r);
}

static int n_recipes;
static int on_file(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st, (void)where;
    const size_t n = strlen(path);
    if (type == FTW_F && n > 5 && strcmp(path + n - 5, ".yaml") == 0) {
        recipe_check(path);
        n_recipes++;
    }
    return 0;
}

static void our_recipes_name_tensors_of_their_model(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof(path), "%s/trainer/recipes", tpo_test_source());
    assert_int_equal(nftw(path, on_file, 16, FTW_PHYS), 0);
    assert_true(n_recipes >= 16);
}

/* Table 16 in numbers: parameters that learn (of its Q-Former's 182,121,216 the 80,522,496 of tables and layers for text, which no
 * path reads, stay as they are), samples of a step, rates. */
static void the_papers_recipes_are_table_16(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        int stage, batch, steps, warmup;
        int n_groups;
        int64_t sizes[5];
        float rates[5];
    } rows[] = {
        {"stage1", 0, 128, 391, 78, 1, {42520688}, {2e-5F}},
        {"stage2-region", 0, 128, 4219, 844, 3, {42520688, 4096, 8398852}, {2e-5F, 1e-4F, 1e-4F}},
        {"stage3", 0, 256, 1563, 313, 5, {42520688, 290479104, 104822272, 4096, 16801796}, {2e-5F, 2e-5F, 2e-5F, 2e-5F, 2e-5F}},
        {"stage3", 1, 256, 39844, 7969, 5, {42520688, 290479104, 104822272, 4096, 16801796}, {2e-5F, 2e-5F, 2e-5F, 2e-5F, 2e-5F}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct tpo_recipe *r = NULL;
        struct tpo_error err = {0};
        struct schema schema;
        char path[4096];
        snprintf(path, sizeof(path), "%s/trainer/recipes/paper/%s.yaml", tpo_test_source(), rows[i].file);
        if (tpo_recipe_load(&r, path, &err) != TPO_OK) fail_msg("%s", err.message);
        schema_open(&schema, r->model);
        const struct tpo_recipe_stage *s = &r->stages[rows[i].stage];
        assert_int_equal(s->steps, rows[i].steps);
        assert_int_equal(s->warmup, rows[i].warmup);
        assert_int_equal(s->plan.n_groups, rows[i].n_groups);
        for (int k = 0; k < s->n_data; k++) assert_int_equal(s->data[k].samples * s->plan.micro_batches, rows[i].batch);
        for (int g = 0; g < s->plan.n_groups; g++) {
            assert_int_equal(group_size(&schema, s, g), rows[i].sizes[g]);
            assert_float_equal(s->rates[g], rows[i].rates[g], 0);
            assert_int_equal(s->groups[g].optimiser, TPO_ADAMW);
            assert_float_equal(s->groups[g].weight_decay, .02F, 0);
        }
        schema_free(&schema);
        tpo_recipe_close(r);
    }
}

static void rates_warm_up_and_fall_to_the_floor(void **state)
{
    (void)state;
    const struct tpo_recipe_stage s = {.steps = 100, .warmup = 10, .floor = .1f};
    assert_float_equal(tpo_recipe_rate(&s, 1), .1f, 1e-6f);
    assert_float_equal(tpo_recipe_rate(&s, 10), 1, 1e-6f);
    assert_float_equal(tpo_recipe_rate(&s, 55), .55f, 1e-6f);
    assert_float_equal(tpo_recipe_rate(&s, 100), .1f, 1e-6f);
}

/* --device counts without --mesh: a GPU that is not there is told, and nothing computes elsewhere instead. */
static void a_device_that_is_missing_is_told(void **state)
{
    (void)state;
    struct tpo_stream *s = NULL;
    char stages[2048], command[4200];
    size_t size;
    if (tpo_stream_open(&s, "cuda", 1, NULL) == TPO_OK) {
        tpo_stream_close(s);
        skip();
    }
    snprintf(stages, sizeof(stages), encoder_stage, 1, 1, 1);
    recipe_write("device.yaml", stages);
    snprintf(command, sizeof(command), "%s/tpo-trainer train device.yaml --out device --device cuda 2> device.err",
             tpo_test_build());
    assert_int_equal(WEXITSTATUS(system(command)), 1);
    char *text = file_read("device.err", &size);
    if (strstr(text, "UNIMPLEMENTED") == NULL) fail_msg("%s", text);
    assert_int_equal(access("device/1-see", F_OK), -1);
    free(text);
}

TPO_TESTS(cmocka_unit_test(a_short_run_learns), cmocka_unit_test(chat_stages_lower_every_loss),
          cmocka_unit_test(killed_and_resumed_is_uninterrupted), cmocka_unit_test(a_model_with_weights_is_where_a_run_begins),
          cmocka_unit_test(broken_recipes_are_refused_by_line), cmocka_unit_test(a_recipe_extends_another),
          cmocka_unit_test(our_recipes_name_tensors_of_their_model), cmocka_unit_test(the_papers_recipes_are_table_16),
          cmocka_unit_test(rates_warm_up_and_fall_to_the_floor), cmocka_unit_test(a_device_that_is_missing_is_told))
