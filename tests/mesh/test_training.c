/* Proves that a mesh trains as one process does: weights and losses bit for bit, with one and with two replicas of each service. The services
 * serve other weights than those the run starts from, so that nothing is right by chance. */
#include "tests/support/test.h"
#include "tests/support/training.h"

/* The paper's stage 2 as a recipe does it: adapters, vector and region head; the encoder is frozen. */
static const char stage_two[] =
    "  - name: stage-2\n"
    "    steps: 50\n"
    "    warmup: 5\n"
    "    micro_batches: 2\n"
    "    lanes: 2\n"
    "    data:\n"
    "      - {share: 3, frames: 1, samples: 2, conversations: 3}\n"
    "      - {share: 1, frames: 4, samples: 1, conversations: 2}\n"
    "    losses: {language: 1, region: 1}\n"
    "    groups:\n"
    "      - {name: lora, optimiser: adamw, rate: 2e-3, decay: .02, tensors: ['lm.*lora_A.*', 'lm.*lora_B.*']}\n"
    "      - {name: vector, optimiser: adamw, rate: 2e-3, tensors: [box_token, 'loc_decoder.*.bias']}\n"
    "      - {name: region, optimiser: adamw, rate: 2e-3, decay: .02, tensors: ['loc_decoder.*.weight']}\n";

/* Encoder and connector learn, Muon and AdamW, several groups; then all does. The second stage starts from the first. */
static const char from_below[] =
    "  - name: connector\n"
    "    steps: 12\n"
    "    warmup: 3\n"
    "    micro_batches: 4\n"
    "    lanes: %d\n"
    "    data:\n"
    "      - {share: 1, frames: 1, samples: 2, conversations: 2, dense: true, slots: true}\n"
    "      - {share: 1, frames: 4, samples: 1, conversations: 2, dense: true, slots: true}\n"
    "    losses: {dense: 1, language: 1, slot: .3}\n"
    "    groups:\n"
    "      - {name: qkv, optimiser: muon, rate: 5e-3, split: 3, clipped: false, tensors: ['*.blocks.*qkv.weight']}\n"
    "      - {name: hidden, optimiser: muon, rate: 5e-3, clipped: false, tensors: ['*.blocks.*proj.weight', '*.fc*.weight', "
    "'qformer.*dense.weight']}\n"
    "      - {name: rest, optimiser: adamw, rate: 2e-3, tensors: ['vision_*', 'ext.*', 'qformer.*', query_tokens, "
    "'project_up.*']}\n"
    "  - name: all\n"
    "    steps: 8\n"
    "    micro_batches: 4\n"
    "    lanes: %d\n"
    "    data:\n"
    "      - {frames: 1, samples: 2, conversations: 3}\n"
    "    losses: {language: 1, region: 1.5}\n"
    "    groups:\n"
    "      - {name: all, optimiser: adamw, rate: 1e-3, tensors: ['*']}\n";

/* What a stage leaves behind. */
struct made {
    const char *folder; /* NULL ends a list */
    int steps;
};

/* `last` is what is said when the last step of all is published. */
static void equals_one_process(const char *stages, double dropout, const struct made *made, const char *last)
{
    /* Versions are held for a while: most steps' turns pass, but the end of the run waits for its own. */
    setenv("TPO_VERSION_HOLD", "2s", 1);
    static const char *const outs[] = {"", "mesh-1", "mesh-2"}, *const publish[] = {"--publish-every", "6", NULL};
    training_model(dropout);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "one", NULL, NULL);
    for (int n = 1; n <= 2; n++) {
        struct training_mesh m;
        training_mesh_start(&m, "served", n, 2);
        training_run("r.yaml", outs[n], &m, publish);
        training_mesh_stop(&m);
        /* What went into serving on the way changed nothing. */
        assert_true(training_says(n == 1 ? "mesh-1.log" : "mesh-2.log", "event=published step=6"));
        assert_true(training_says(n == 1 ? "mesh-1.log" : "mesh-2.log", last));
        training_same_lines("one", outs[n]);
        for (int i = 0; made[i].folder != NULL; i++) {
            training_same_bits("one", outs[n], made[i].folder, made[i].steps);
            training_same_model("one", outs[n], made[i].folder);
        }
    }
}

static void fifty_steps_of_stage_two(void **state)
{
    (void)state;
    static const struct made made[] = {{"1-stage-2", 50}, {NULL, 0}};
    equals_one_process(stage_two, 0, made, "stage=stage-2 event=published step=50");
}

static void twenty_steps_of_everything_with_dropout(void **state)
{
    (void)state;
    static const struct made made[] = {{"1-connector", 12}, {"2-all", 8}, {NULL, 0}};
    char stages[4096];
    snprintf(stages, sizeof(stages), from_below, 2, 4);
    equals_one_process(stages, .1, made, "stage=all event=published step=8");
}

/* Services of which one has more replicas than another keeps tapes. */
static void replicas_of_unequal_number(void **state)
{
    (void)state;
    static const char stages[] = "  - name: all\n"
                                 "    steps: 3\n"
                                 "    micro_batches: 16\n"
                                 "    lanes: 8\n"
                                 "    data:\n"
                                 "      - {frames: 1, samples: 1, conversations: 2}\n"
                                 "    losses: {language: 1, region: 1}\n"
                                 "    groups:\n"
                                 "      - {name: all, optimiser: adamw, rate: 1e-3, tensors: ['*']}\n";
    static const int each[][TRAINING_SERVICES] = {{1, 1, 8}, {8, 2, 1}};
    static const char *const outs[] = {"mesh-1", "mesh-2"};
    training_model(.1);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "one", NULL, NULL);
    for (int i = 0; i < 2; i++) {
        struct training_mesh m;
        training_mesh_start_each(&m, "served", each[i], 2);
        training_run("r.yaml", outs[i], &m, NULL);
        training_mesh_stop(&m);
        training_same_bits("one", outs[i], "1-all", 3);
        training_same_model("one", outs[i], "1-all");
    }
}

/* Dropout is on: without it other weights come out. */
static void dropout_is_not_idle(void **state)
{
    (void)state;
    char stages[4096];
    snprintf(stages, sizeof(stages), from_below, 1, 1);
    training_model(.1);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "with", NULL, (const char *const[]){"--stop-after", "1", NULL});
    assert_int_equal(system("rm -r tiny served"), 0);
    training_model(0);
    training_run("r.yaml", "without", NULL, (const char *const[]){"--stop-after", "1", NULL});
    assert_int_not_equal(system("cmp -s with/1-connector/model/model.safetensors without/1-connector/model/model.safetensors"), 0);
}

/* Two stages; the mesh of the second serves what the first made, but for the region head. What it holds is
 * not sent, and the result is the same. */
static void what_services_hold_is_not_sent(void **state)
{
    (void)state;
    char stages[4096];
    struct training_mesh m;
    snprintf(stages, sizeof(stages), from_below, 1, 1);
    training_model(0);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "one", NULL, NULL);
    assert_int_equal(
        system("mkdir -p mesh/1-connector && cp -r one/1-connector/model one/1-connector/stage.json mesh/1-connector/"), 0);
    training_export("one/1-connector/model", "held", "f32"); /* all but the heads of the aids, which learned here */
    training_mesh_start(&m, "held", 1, 2);
    m.model = "served";
    training_mesh_renew(&m, TRAINING_REGION, 0, NULL);
    training_run("r.yaml", "mesh", &m, NULL);
    training_mesh_stop(&m);
    training_same_bits("one", "mesh", "2-all", 8);
    training_same_model("one", "mesh", "2-all");
    assert_int_equal(system("grep -q 'of=encoder tensors=[0-9][0-9] sent=[1-9]$' mesh.log"), 0);
    assert_int_equal(system("grep -q 'of=router tensors=[0-9][0-9] sent=[1-9]$' mesh.log"), 0);
    assert_int_equal(system("grep -q 'of=region tensors=4 sent=[1-4]$' mesh.log"), 0);
}

/* The router keeps its older version for long; the encoder and the region head, who drop theirs at once, have taken the next one by then. */
static void a_service_without_room_for_a_version_ends_no_run(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const publishing[] = {"--publish-every", "1", "--wait", "50ms", NULL};
    training_model(0);
    training_recipe("r.yaml", "  - name: talk\n"
                              "    steps: 4\n"
                              "    data: [{frames: 1, samples: 2, conversations: 2}]\n"
                              "    losses: {language: 1, region: 1}\n"
                              "    groups: [{name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}]\n");
    training_run("r.yaml", "whole", NULL, NULL);
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    training_mesh_start(&m, "served", 1, 2);
    setenv("TPO_VERSION_HOLD", "10m", 1);
    training_mesh_renew(&m, TRAINING_ROUTER, 0, NULL);
    unsetenv("TPO_VERSION_HOLD");
    const int status = training_wait(training_start("r.yaml", "mesh", &m, publishing), 60);
    if (status != 0) fail_msg("the run ended with %d", status);
    assert_true(training_says("mesh.log", "event=published step=1"));
    assert_true(training_says("mesh.log", "event=publish_apart step=2"));
    assert_true(training_says("mesh.log", "event=publish_apart step=4"));
    training_same_lines("whole", "mesh");
    training_same_model("whole", "mesh", "1-talk");
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(fifty_steps_of_stage_two), cmocka_unit_test(twenty_steps_of_everything_with_dropout),
          cmocka_unit_test(replicas_of_unequal_number), cmocka_unit_test(dropout_is_not_idle),
          cmocka_unit_test(what_services_hold_is_not_sent), cmocka_unit_test(a_service_without_room_for_a_version_ends_no_run))
