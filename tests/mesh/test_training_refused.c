/* Proves what a run refuses or survives besides kills: damaged checkpoints, a full disk, another model, too few lanes. */
#include "tests/mesh/refused.h"

#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* --- files ------------------------------------------------------------------------------------------------------------------------------ */

static void damaged_checkpoints_are_refused_by_their_hash(void **state)
{
    (void)state;
    static const char *const damage[] = {
        "printf x | dd of=%s/1-talk/step-00000006/router.safetensors bs=1 seek=40000 conv=notrunc 2>dd.log",
        "truncate -s -1 %s/1-talk/step-00000006/region.safetensors", "rm %s/1-talk/step-00000006/encoder.safetensors",
        "truncate -s 40 %s/1-talk/step-00000006/manifest.json", "rm %s/1-talk/step-00000006/manifest.json"};
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:7", NULL};
    prepare(NULL);
    assert_int_equal(training_wait(training_start("r.yaml", "killed", NULL, fault), 60), 128 + SIGKILL);
    for (int i = 0; i < 5; i++) {
        char command[256], out[32], log[64];
        snprintf(out, sizeof(out), "damaged-%d", i);
        snprintf(log, sizeof(log), "%s.log", out);
        snprintf(command, sizeof(command), "cp -r killed %s", out);
        shell(command);
        snprintf(command, sizeof(command), damage[i], out);
        shell(command);
        training_run("r.yaml", out, NULL, often);
        assert_true(training_says(log, "event=checkpoint_refused"));
        assert_true(training_says(log, "event=restored step=4"));
        training_same_model("whole", out, "1-talk");
    }
}

/* The manifest without one of its shards, or with one more: the others are sound. */
static void shards_say(const char *out, const char *part, bool more)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/1-talk/step-00000004/manifest.json", out);
    json_t *j = json_load_file(path, 0, NULL), *files = json_object_get(j, "files");
    assert_non_null(files);
    if (more)
        json_object_set(files, part, json_object_get(files, "encoder"));
    else
        json_object_del(files, part);
    assert_int_equal(json_dump_file(j, path, 0), 0);
    json_decref(j);
}

/* Of the newest checkpoint, as it was before it told so. */
static void plan_forget(const char *out)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/1-talk/step-00000004/manifest.json", out);
    json_t *j = json_load_file(path, 0, NULL);
    assert_int_equal(json_object_del(j, "groups") | json_object_del(j, "losses"), 0);
    assert_int_equal(json_dump_file(j, path, 0), 0);
    json_decref(j);
}

/* What a checkpoint holds fits neither other tensors nor other optimisers; its rate and length are not in it, nor in which order the recipe names
 * the losses. */
static void checkpoints_of_another_plan_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *out, *piece, *instead, *says;
    } cases[] = {{"tensors", "['*']", "['*.weight']", "other groups"},
                 {"optimiser", "optimiser: adamw", "optimiser: adamw, decay: .5", "other groups"},
                 {"losses", "language: 1", "language: .5", "other losses"},
                 {"fewer", "region: 1", "slot: 0", "other losses"}};
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:5", NULL};
    prepare(NULL);
    assert_int_equal(training_wait(training_start("r.yaml", "killed", NULL, fault), 60), 128 + SIGKILL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        training_recipe_with("other.yaml", stages, cases[i].piece, cases[i].instead);
        recipe_refused("other.yaml", NULL, "killed", cases[i].says, often);
    }
    training_recipe_with("other.yaml", stages, "rate: 1.0e-3", "rate: 2.0e-3");
    shell("cp -r killed faster && cp -r killed lacks && cp -r killed older && cp -r killed turned");
    plan_forget("older");
    refused(NULL, "older", "made by an older build", often);
    training_run("other.yaml", "faster", NULL, often);
    assert_true(training_says("faster.log", "event=restored step=4"));
    training_recipe_with("other.yaml", stages, "language: 1, region: 1", "region: 1, language: 1");
    training_run("other.yaml", "turned", NULL, often);
    assert_true(training_says("turned.log", "event=restored step=4"));
    training_same_model("whole", "turned", "1-talk");
    shards_say("lacks", "router", false);
    refused(NULL, "lacks", "lacks a shard of router", often);
    training_run("r.yaml", "killed", NULL, often);
    training_same_model("whole", "killed", "1-talk");
    training_recipe_with("r.yaml", stages, "['*']", "['vision_*']");
    assert_int_equal(training_wait(training_start("r.yaml", "seeing", NULL, fault), 60), 128 + SIGKILL);
    shell("cd seeing/1-talk/step-00000004 && cp encoder.safetensors region.safetensors");
    shards_say("seeing", "region", true);
    refused(NULL, "seeing", "has a shard of region", often);
}

/* The model that a recipe names lacks one file, or all. */
static void a_recipe_without_its_model_is_refused(void **state)
{
    (void)state;
    static const char *const files[] = {"tiny/config.json", "tiny/added_tokens.json", "tiny/tokenizer.model", "tiny"};
    training_model(0);
    training_recipe("r.yaml", stages);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char command[256], out[32];
        snprintf(out, sizeof(out), "lacks-%zu", i);
        snprintf(command, sizeof(command), "mv %s away", files[i]);
        shell(command);
        refused(NULL, out, i == 3 ? "tiny/config.json" : files[i], NULL);
        snprintf(command, sizeof(command), "mv away %s", files[i]);
        shell(command);
    }
}

/* Folders of later steps that are not this run's, or are broken: they cost neither its own checkpoints nor its end. */
static void later_folders_of_others_are_left_alone(void **state)
{
    (void)state;
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:5", NULL};
    struct training_mesh m;
    prepare(&m);
    for (int over_mesh = 0; over_mesh < 2; over_mesh++) {
        const char *out = over_mesh ? "meshed" : "alone";
        char command[256], log[64];
        snprintf(command, sizeof(command), "mkdir -p %s/1-talk/step-00000900 %s/1-talk/step-00000800", out, out);
        shell(command);
        assert_int_equal(training_wait(training_start("r.yaml", out, over_mesh ? &m : NULL, fault), 60), 128 + SIGKILL);
        snprintf(command, sizeof(command), "test -f %s/1-talk/step-00000004/manifest.json && test -d %s/1-talk/step-00000800", out,
                 out);
        shell(command);
        training_run("r.yaml", out, over_mesh ? &m : NULL, often);
        snprintf(log, sizeof(log), "%s.log", out);
        if (!over_mesh) assert_true(training_says(log, "event=restored step=4"));
        training_same_model("whole", out, "1-talk");
    }
    training_mesh_stop(&m);
}

/* A later folder of this very run, which holds an earlier step: the stage cannot end with it, and what it has done is written under its own step. */
static void a_step_that_is_not_found_spoils_no_other(void **state)
{
    (void)state;
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:7", NULL};
    struct training_mesh m;
    prepare(&m);
    assert_int_equal(training_wait(training_start("r.yaml", "moved", &m, fault), 60), 128 + SIGKILL);
    shell("cp -r moved/1-talk/step-00000006 kept && cp -r kept moved/1-talk/step-00000900");
    refused(&m, "moved", "written at step 8 is not what is found (step 6)", often);
    shell("diff -r kept moved/1-talk/step-00000006 && rm -r moved/1-talk/step-00000900");
    training_run("r.yaml", "moved", &m, often);
    assert_true(training_says("moved.log", "event=restored step=8"));
    training_same_model("whole", "moved", "1-talk");
    training_mesh_stop(&m);
}

/* Files may not grow past what anything but a shard needs. */
static void a_full_disk_leaves_the_checkpoint_before(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_manifest:1", NULL};
    struct rlimit before, small;
    prepare(&m);
    assert_int_equal(training_wait(training_start("r.yaml", "full", &m, fault), 60), 128 + SIGKILL);
    shell("cp -r full/1-talk/step-00000002 kept");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 32768;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const pid_t pid = training_start("r.yaml", "full", &m, often);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(training_wait(pid, 60), 1);
    assert_true(training_says("full.log", "event=checkpoint_failed step=4 reason=disk_full"));
    assert_true(training_says("full.log", "step=8/8"));
    assert_true(training_says("full.err", "RESOURCE_EXHAUSTED"));
    shell("diff -r kept full/1-talk/step-00000002");
    training_run("r.yaml", "full", &m, often);
    training_same_model("whole", "full", "1-talk");
    training_mesh_stop(&m);
}

/* --- other meshes --------------------------------------------------------------------------------------------------------------------------- */

static void other_models_and_addresses_are_refused(void **state)
{
    (void)state;
    struct training_mesh m;
    char program[4096], mesh[256];
    training_model(0);
    training_recipe("r.yaml", stages);
    shell("mv served other && mv tiny old");
    training_model(.5); /* another config.json */
    training_mesh_start(&m, "other", 1, 2);
    refused(&m, "model", "another config.json: start the services on the folder that the run begins with", often);
    snprintf(program, sizeof(program), "encoder=127.0.0.1:%d,router=127.0.0.1:%d,region=127.0.0.1:%d", m.ports[1][0], m.ports[0][0],
             m.ports[2][0]);
    refused(NULL, "stage", "what was named as", (const char *const[]){"--mesh", program, NULL});
    snprintf(mesh, sizeof(mesh), "127.0.0.1:%d", m.ports[0][0]);
    refused(NULL, "few", "needs a router, and none was named", (const char *const[]){"--mesh", mesh, NULL});
    refused(NULL, "twice", "named twice", (const char *const[]){"--mesh", "encoder=a:1,router=a:1", NULL});
    refused(NULL, "word", "none of encoder, router, region", (const char *const[]){"--mesh", "encoder=a:1,head=b:1", NULL});
    refused(NULL, "port", "no HOST:PORT", (const char *const[]){"--mesh", "encoder=a", NULL});
    refused(NULL, "dir", "holds no mesh", (const char *const[]){"--mesh", "other", NULL});
    refused(NULL, "away", "UNAVAILABLE",
            (const char *const[]){"--mesh", "encoder=127.0.0.1:1,router=127.0.0.1:2,region=127.0.0.1:3", "--wait", "300", NULL});
    training_mesh_stop(&m);
}

/* A Forward that takes longer than calls may: no step of it is ever done. */
static void calls_that_are_always_late_end_the_run(void **state)
{
    (void)state;
    struct training_mesh m;
    training_model(0);
    training_recipe("r.yaml", "  - name: talk\n"
                              "    steps: 1\n"
                              "    data:\n"
                              "      - {frames: 1, samples: 256, conversations: 32}\n"
                              "    losses: {language: 1}\n"
                              "    groups:\n"
                              "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n");
    training_mesh_start(&m, "served", 1, 1);
    refused(&m, "late", "within 300 ms (--call-timeout), twice in a row", (const char *const[]){"--call-timeout", "300ms", NULL});
    training_run("r.yaml", "late", &m, NULL);
    training_mesh_stop(&m);
}

/* The text differs, the process does not; nothing is written or tried again for it. */
static void one_process_under_two_names_is_refused(void **state)
{
    (void)state;
    struct training_mesh m;
    char mesh[256];
    training_model(0);
    training_recipe("r.yaml", stages);
    training_mesh_start(&m, "served", 1, 2);
    snprintf(mesh, sizeof(mesh), "encoder=127.0.0.1:%d,localhost:%d,router=127.0.0.1:%d,region=127.0.0.1:%d", m.ports[0][0],
             m.ports[0][0], m.ports[1][0], m.ports[2][0]);
    refused(NULL, "names", "replicas 0 and 1 of encoder are one process", (const char *const[]){"--mesh", mesh, NULL});
    training_run("r.yaml", "right", &m, often); /* and keeps nobody out */
    training_mesh_stop(&m);
}

#define LANES(name, micro_batches, lanes)                                                                                          \
    "  - {name: " name ", steps: 2, micro_batches: " micro_batches ", lanes: " lanes ", losses: {language: 1}, "                   \
    "data: [{frames: 1, samples: 2, conversations: 2}], groups: [{name: all, rate: 1.0e-3, tensors: ['*']}]}\n"

/* Of a later stage, too, before the first one is trained. */
static void fewer_lanes_than_replicas_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *stages, *says;
    } cases[] = {{LANES("talk", "2", "1"), "stage talk has 1 lanes, fewer than the 2 replicas of encoder"},
                 {LANES("talk", "2", "2") LANES("later", "2", "1"), "stage later has 1 lanes, fewer than the 2 replicas"},
                 {LANES("talk", "2", "2") LANES("later", "1", "2"), "stage later has 1 micro-batches, fewer than 2 replicas"}};
    struct training_mesh m;
    training_model(0);
    training_mesh_start(&m, "served", 2, 2);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char out[16], log[32];
        snprintf(out, sizeof(out), "lanes-%zu", i);
        snprintf(log, sizeof(log), "%s.log", out);
        training_recipe("r.yaml", cases[i].stages);
        refused(&m, out, cases[i].says, often);
        assert_false(training_says(log, "event=begin"));
    }
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(damaged_checkpoints_are_refused_by_their_hash), cmocka_unit_test(later_folders_of_others_are_left_alone),
          cmocka_unit_test(checkpoints_of_another_plan_are_refused), cmocka_unit_test(a_step_that_is_not_found_spoils_no_other),
          cmocka_unit_test(a_recipe_without_its_model_is_refused), cmocka_unit_test(a_full_disk_leaves_the_checkpoint_before),
          cmocka_unit_test(other_models_and_addresses_are_refused), cmocka_unit_test(one_process_under_two_names_is_refused),
          cmocka_unit_test(calls_that_are_always_late_end_the_run), cmocka_unit_test(fewer_lanes_than_replicas_are_refused))
