/* Proves that a run whose data, or whose model, changed since its stage began or ended is told so, and does not go on from something else. */
#include "tests/support/annotated.h"
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <jansson.h>
#include <signal.h>
#include <sys/wait.h>

#include "trainer/steps/recipe.h"

static const char stages[] = "  - name: files\n"
                             "    steps: 8\n"
                             "    micro_batches: 2\n"
                             "    data:\n"
                             "      - {source: refcoco, annotations: data/refs.json, media: data/images, samples: 2}\n"
                             "      - {share: 2, frames: 1, samples: 2, conversations: 2}\n"
                             "    losses: {language: 1}\n" ANNOTATED_ALL;

static const char *const often[] = {"--checkpoint-every", "2", NULL};

static void shell(const char *command)
{
    assert_int_equal(system(command), 0);
}

static void refused(const char *recipe, const char *out, const char *text)
{
    char err[64];
    snprintf(err, sizeof(err), "%s.err", out);
    remove(err);
    assert_int_equal(training_wait(training_start(recipe, out, NULL, often), 60), 1);
    assert_true(training_says(err, "FAILED_PRECONDITION"));
    if (!training_says(err, text)) fail_msg("%s does not say \"%s\"", err, text);
}

/* whole: a run that was never stopped; killed: one that has done five of its eight steps. */
static void prepare(void)
{
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:5", NULL};
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "whole", NULL, often);
    assert_int_equal(training_wait(training_start("r.yaml", "killed", NULL, fault), 60), 128 + SIGKILL);
}

/* A stage that is done, and one that is not. */
static void other_draws_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *piece, *instead, *says;
    } cases[] = {{"frames: 1, samples: 2", "frames: 1, samples: 4", "entry 2 of data drawn otherwise"},
                 {"frames: 1", "frames: 4", "entry 2 of data drawn otherwise"},
                 {"share: 2", "share: 3", "entry 2 of data drawn otherwise"},
                 {"conversations: 2", "conversations: 2, mix: {'how many': .5}", "entry 2 of data drawn otherwise"},
                 {"source: refcoco", "split: train, source: refcoco", "other rows in entry 1 of data"},
                 {"      - {share: 2, frames: 1, samples: 2, conversations: 2}\n", "", "with 2 entries of data, not 1"}};
    prepare();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        training_recipe_with("other.yaml", stages, cases[i].piece, cases[i].instead);
        refused("other.yaml", "killed", cases[i].says);
        refused("other.yaml", "whole", cases[i].says);
    }
    shell("rm killed/1-files/stage.json");
    training_recipe_with("other.yaml", stages, "share: 2", "share: 3");
    refused("other.yaml", "killed", "step-00000004 was made with entry 2 of data drawn otherwise"); /* the manifest tells, too */
    training_run("r.yaml", "killed", NULL, often);
    assert_true(training_says("killed.log", "event=restored step=4"));
    training_same_model("whole", "killed", "1-files");
}

static void other_annotations_are_refused(void **state)
{
    (void)state;
    static const char *const files[] = {"data/refs.json", "data/instances.json"};
    prepare();
    for (int i = 0; i < 2; i++) {
        char command[256];
        snprintf(command, sizeof(command), "cp %s kept && printf ' ' >>%s", files[i], files[i]);
        shell(command);
        refused("r.yaml", "killed", "other rows in entry 1 of data");
        refused("r.yaml", "whole", "other rows in entry 1 of data");
        snprintf(command, sizeof(command), "mv kept %s", files[i]);
        shell(command);
    }
    training_run("r.yaml", "killed", NULL, often);
    training_same_model("whole", "killed", "1-files");
}

/* Neither where files lie nor how many bad ones are put up with is what a stage is of. */
static void data_may_be_moved(void **state)
{
    (void)state;
    prepare();
    shell("mkdir other && mv data/refs.json other/rows.json && mv data/instances.json other/boxes.json && mv data/images "
          "other/media");
    training_recipe_with("moved.yaml", stages, "annotations: data/refs.json, media: data/images",
                         "annotations: other/rows.json, instances: other/boxes.json, media: other/media, skip_most: .5");
    training_run("moved.yaml", "killed", NULL, often);
    assert_true(training_says("killed.log", "event=restored step=4"));
    training_same_model("whole", "killed", "1-files");
    training_run("moved.yaml", "whole", NULL, often);
}

/* Shapes are the same, hence the weights that it began with: the arithmetic is another. */
static void other_settings_of_the_model_are_refused(void **state)
{
    (void)state;
    prepare();
    shell("cp -r tiny kept && sed -i 's/\"lora_dropout\": 0.0/\"lora_dropout\": 0.5/' tiny/config.json && "
          "! cmp -s kept/config.json tiny/config.json");
    refused("r.yaml", "killed", "was made with another config.json");
    shell("cp kept/config.json tiny && printf ' ' >>tiny/added_tokens.json");
    refused("r.yaml", "killed", "was made with another tokenizer");
    shell("cp kept/added_tokens.json tiny && cp -r whole edited && printf ' ' >>edited/1-files/model/config.json");
    refused("r.yaml", "edited", "was made with another config.json"); /* of a stage that is done */
    training_run("r.yaml", "killed", NULL, often);
    training_same_model("whole", "killed", "1-files");
}

/* A file's entry at a step: what it has given, and what the generator has; and nothing else is gone on from. */
static void a_checkpoint_lies_where_its_step_puts_it(void **state)
{
    (void)state;
    static const char *const keys[] = {"seed", "counter"};
    static const char manifest[] = "killed/1-files/step-00000004/manifest.json";
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    uint64_t drawn[TPO_DATA_MAX];
    prepare();
    assert_int_equal(tpo_recipe_load(&r, "r.yaml", &err), TPO_OK);
    tpo_recipe_drawn(r, 0, 4, drawn);
    assert_int_equal(drawn[0] + drawn[1], 8);
    tpo_recipe_close(r);
    json_t *j = json_load_file(manifest, 0, NULL), *next = json_object_get(j, "next_sample");
    for (size_t i = 0; i < 2; i++) assert_int_equal(json_integer_value(json_array_get(next, i)), 2 * drawn[i]);
    for (int i = 0; i < 3; i++) {
        json_t *other = json_deep_copy(j);
        if (i < 2)
            json_object_set_new(json_object_get(other, "generator"), keys[i], json_integer(5));
        else
            json_array_set_new(json_object_get(other, "next_sample"), 0, json_integer(1));
        assert_int_equal(json_dump_file(other, manifest, 0), 0);
        json_decref(other);
        refused("r.yaml", "killed", "is not what the seed gives at step 4");
    }
    assert_int_equal(json_dump_file(j, manifest, 0), 0);
    json_decref(j);
    training_run("r.yaml", "killed", NULL, often);
    training_same_model("whole", "killed", "1-files");
}

/* While a run is at work: rows that are drawn from then on, and the file as services are recovered. */
static void annotations_that_change_end_the_run(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const stop[] = {"--fault", "after_commit:1:stop", NULL};
    int status = 0;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stages);
    shell("cp -r data whole");
    pid_t pid = training_start("r.yaml", "cut", NULL, stop);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    shell("truncate -s 0 data/refs.json");
    kill(pid, SIGCONT);
    assert_int_equal(training_wait(pid, 60), 1);
    assert_true(training_says("cut.err", "DATA_LOSS: data/refs.json changed during the run"));

    shell("rm -r data && mv whole data");
    training_mesh_start(&m, "served", 1, 2);
    pid = training_start("r.yaml", "replaced", &m, stop);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    shell("(cat data/refs.json; echo) >new && mv new data/refs.json");
    training_mesh_renew(&m, TRAINING_ENCODER, 0, NULL);
    kill(pid, SIGCONT);
    assert_int_equal(training_wait(pid, 60), 1);
    assert_true(training_says("replaced.err", "DATA_LOSS: data/refs.json changed during the run"));
    training_mesh_stop(&m);
}

/* One bit of it: neither a later start of this run nor another run begins with it. */
static void an_altered_model_is_not_begun_with(void **state)
{
    (void)state;
    static const char *const whole[] = {"--model", "whole/1-files/model", NULL}, *const copied[] = {"--model", "copied", NULL};
    static const char says[] = "DATA_LOSS: whole/1-files/model/model.safetensors is not what its stage ended with";
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "whole", NULL, often);
    training_run("r.yaml", "whole", NULL, often);
    training_run("r.yaml", "sound", NULL, whole);
    shell("printf '\\001' | dd of=whole/1-files/model/model.safetensors bs=1 seek=20000 conv=notrunc 2>dd.log");
    assert_int_equal(training_wait(training_start("r.yaml", "whole", NULL, often), 60), 1);
    assert_true(training_says("whole.err", says));
    assert_int_equal(training_wait(training_start("r.yaml", "other", NULL, whole), 60), 1);
    assert_true(training_says("other.err", says));
    shell("cp -r whole/1-files/model copied"); /* nobody knows how it was */
    training_run("r.yaml", "fine", NULL, copied);
}

TPO_TESTS(cmocka_unit_test(other_draws_are_refused), cmocka_unit_test(other_annotations_are_refused),
          cmocka_unit_test(data_may_be_moved), cmocka_unit_test(other_settings_of_the_model_are_refused),
          cmocka_unit_test(a_checkpoint_lies_where_its_step_puts_it), cmocka_unit_test(annotations_that_change_end_the_run),
          cmocka_unit_test(an_altered_model_is_not_begun_with))
