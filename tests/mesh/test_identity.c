/* Proves what a stage is of: neither its steps, nor its checkpoints, nor its model are taken as another recipe's, plan's or start's. */
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <signal.h>

static const char talk[] = "  - name: talk\n"
                           "    steps: 8\n"
                           "    micro_batches: 2\n"
                           "    lanes: 2\n"
                           "    data:\n"
                           "      - {frames: 1, samples: 2, conversations: 2}\n"
                           "    losses: {language: 1, region: 1}\n"
                           "    groups:\n"
                           "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*.lora_*', 'region_*', 'box_*']}\n";

static const char *const seldom[] = {"--checkpoint-every", "500", NULL};

static void shell(const char *command)
{
    assert_int_equal(system(command), 0);
}

static void refused(const char *recipe, const struct training_mesh *m, const char *out, const char *text, const char *const *more)
{
    char err[64];
    snprintf(err, sizeof(err), "%s.err", out);
    remove(err);
    assert_int_equal(training_wait(training_start(recipe, out, m, more), 60), 1);
    assert_true(training_says(err, "FAILED_PRECONDITION"));
    if (!training_says(err, text)) fail_msg("%s does not say \"%s\"", err, text);
}

static void killed(const char *recipe, const struct training_mesh *m, const char *out, const char *model)
{
    const char *const more[] = {"--checkpoint-every", m == NULL ? "2" : "500", "--fault", "after_commit:5", "--model", model, NULL};
    assert_int_equal(training_wait(training_start(recipe, out, m, more), 60), 128 + SIGKILL);
}

/* --- stages that ended ------------------------------------------------------------------------------------------------------------------- */

static void a_stage_of_another_recipe_is_not_taken(void **state)
{
    (void)state;
    static const struct {
        const char *piece, *instead, *says;
    } cases[] = {{"name: test", "name: less", "is of test/talk, not of less/talk"},
                 {"seed: 3", "seed: 4", "was made with seed 3, not 4"},
                 {"lanes: 2", "lanes: 1", "was made with lanes 2, not 1"},
                 {"optimiser: adamw", "optimiser: adamw, decay: .5", "was made with other groups"},
                 {"language: 1", "language: .5", "was made with other losses"}};
    training_model(0);
    training_recipe("r.yaml", talk);
    training_run("r.yaml", "out", NULL, seldom);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        training_recipe_with("other.yaml", talk, cases[i].piece, cases[i].instead);
        refused("other.yaml", NULL, "out", cases[i].says, seldom);
    }
    training_recipe_with("other.yaml", talk, "rate: 1.0e-3", "rate: 2.0e-3");
    training_run("other.yaml", "out", NULL, seldom);
    shell("rm out/1-talk/stage.json");
    refused("r.yaml", NULL, "out", "made by an older build", seldom);
}

/* It begins where the stage before it ended, whatever --model says: tensors and companions. */
static void a_later_stage_needs_no_model(void **state)
{
    (void)state;
    static const char *const model[] = {"--model", "spaced", NULL}, *const first[] = {"--model", "spaced", "--stop-after", "1",
                                                                                      NULL};
    char text[4096], second[1024];
    training_model(0);
    snprintf(second, sizeof(second), "%s", talk);
    memcpy(strstr(second, "talk"), "tell", 4);
    snprintf(text, sizeof(text), "%s%s", talk, second);
    training_recipe("two.yaml", text);
    shell("cp -r served spaced && echo >>spaced/config.json");
    training_run("two.yaml", "whole", NULL, model);
    training_run("two.yaml", "parts", NULL, first);
    training_run("two.yaml", "parts", NULL, NULL);
    training_same_model("whole", "parts", "2-tell");
    shell("cmp spaced/config.json parts/2-tell/model/config.json && cmp spaced/config.json whole/2-tell/model/config.json");
}

/* --- the start of a stage ----------------------------------------------------------------------------------------------------------------- */

/* What is frozen lies in no shard: a checkpoint fits the weights that its stage began with alone. */
static void another_start_is_refused(void **state)
{
    (void)state;
    static const char *const often[] = {"--checkpoint-every", "2", NULL};
    static const char *const served[] = {"--model", "served", NULL}, *const altered[] = {"--model", "altered", NULL};
    training_model(0);
    training_recipe("r.yaml", talk);
    training_run("r.yaml", "whole", NULL, served);
    training_run("r.yaml", "random", NULL, often);
    assert_true(training_says("random.log", "event=random_start model="));
    assert_false(training_says("whole.log", "event=random_start"));
    killed("r.yaml", NULL, "out", "served");
    refused("r.yaml", NULL, "out", "began with other weights", often);
    shell("rm out/1-talk/stage.json"); /* the manifest tells, too */
    refused("r.yaml", NULL, "out", "step-00000004 began with other weights", often);
    shell("cp -r served altered && rm altered/manifest.json && printf x | "
          "dd of=altered/model.safetensors bs=1 seek=$(($(stat -c %s altered/model.safetensors) - 2)) conv=notrunc 2>dd.log");
    refused("r.yaml", NULL, "out", "began with other weights", altered);
    training_run("r.yaml", "out", NULL, served);
    assert_true(training_says("out.log", "event=restored step=4"));
    training_same_model("whole", "out", "1-talk");
}

/* --- over a mesh -------------------------------------------------------------------------------------------------------------------------- */

/* No checkpoint is written yet: what is committed lies in the services alone, and is not lost by a recipe that is refused. */
static void another_plan_leaves_committed_steps_alone(void **state)
{
    (void)state;
    struct training_mesh m;
    training_model(0);
    training_recipe("r.yaml", talk);
    training_recipe_with("other.yaml", talk, "language: 1", "language: .5");
    training_run("r.yaml", "whole", NULL, seldom);
    training_mesh_start(&m, "served", 1, 2);
    killed("r.yaml", &m, "out", "tiny");
    refused("other.yaml", &m, "out", "was made with other losses", seldom);
    refused("r.yaml", &m, "out", "began with other weights", (const char *const[]){"--model", "served", NULL});
    training_run("r.yaml", "out", &m, seldom);
    assert_true(training_says("out.log", "event=agreed step=5 version=5"));
    assert_true(training_says("out/1-talk/step-00000008/manifest.json", "\"router\": \"cpu\"")); /* its device, as it answered */
    training_same_model("whole", "out", "1-talk");
    training_mesh_stop(&m);
}

/* The services' folder differs from the trainer's in one of the files that make ids of words; a folder without a tokenizer does for those that
 * make none. */
static void a_mesh_with_another_tokenizer_is_refused(void **state)
{
    (void)state;
    static const char *const changes[] = {"printf ' ' >>served/added_tokens.json",
                                          "cp tiny/added_tokens.json served && printf '\\032\\000' >>served/tokenizer.model"};
    struct training_mesh m;
    training_model(0);
    training_recipe("r.yaml", talk);
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        shell(changes[i]);
        training_mesh_start(&m, "served", 1, 2);
        refused("r.yaml", &m, "out", "serves a model of another tokenizer", seldom);
        training_mesh_stop(&m);
    }
    shell("cp tiny/tokenizer.model served");
    training_mesh_start(&m, "served", 1, 2);
    shell("rm served/tokenizer.model");
    training_mesh_renew(&m, TRAINING_ENCODER, 0, NULL);
    training_run("r.yaml", "out", &m, seldom);
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(a_stage_of_another_recipe_is_not_taken), cmocka_unit_test(a_later_stage_needs_no_model),
          cmocka_unit_test(another_start_is_refused), cmocka_unit_test(another_plan_leaves_committed_steps_alone),
          cmocka_unit_test(a_mesh_with_another_tokenizer_is_refused))
