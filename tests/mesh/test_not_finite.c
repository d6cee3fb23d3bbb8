/* Proves that a mesh gives up a step that is not finite everywhere, counts it, and still knows the count and the version after processes were
 * killed: steps and versions are no longer the same number. */
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <jansson.h>
#include <signal.h>

/* Images and, rarely, clips: by these shares and the recipe's seed in steps 4 and 5. */
static const char stages[] = "  - name: talk\n"
                             "    steps: 7\n"
                             "    micro_batches: 2\n"
                             "    lanes: 2\n"
                             "    data:\n"
                             "      - {share: 12, frames: 1, samples: 1, conversations: 1}\n"
                             "      - {share: 1, frames: 4, samples: 1, conversations: 1}\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups:\n"
                             "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";

static const char *const options[] = {"--model", "huge", "--checkpoint-every", "2", NULL};

/* ./huge is ./served with frame positions so large that every pass over a clip overflows. Images have none. */
static void huge_model(void)
{
    uint64_t size = 0;
    json_int_t first = 0, end = 0;
    const float value = 3e38F;
    assert_int_equal(system("cp -r served huge && rm huge/manifest.json"), 0);
    FILE *f = fopen("huge/model.safetensors", "r+b");
    assert_non_null(f);
    assert_int_equal(fread(&size, sizeof(size), 1, f), 1);
    json_t *header = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL);
    assert_int_equal(json_unpack(header, "{s:{s:[I,I]}}", "ext.encoder.frame_position", "data_offsets", &first, &end), 0);
    json_decref(header);
    assert_int_equal(fseek(f, (long)(sizeof(size) + size) + (long)first, SEEK_SET), 0);
    for (; first < end; first += (json_int_t)sizeof(value)) assert_int_equal(fwrite(&value, sizeof(value), 1, f), 1);
    fclose(f);
}

/* OUT.steps: what every step told, once; samples are left out, which a process counts anew. */
static void steps_write(const char *out)
{
    char command[256];
    snprintf(
        command, sizeof(command),
        "sed -nE 's/.*(step=[0-9]+.7) samples=[0-9]+ boxes=[0-9]+ (.* aborted=[0-9]+) .*/\\1 \\2/p' %s.log | sort -u >%s.steps",
        out, out);
    assert_int_equal(system(command), 0);
}

/* No step told anything but what the unkilled run's did, the last one included, and the weights are the same. */
static void whole(const char *out)
{
    char command[256];
    steps_write(out);
    snprintf(command, sizeof(command), "! grep -vxFf whole.steps %s.steps && tail -n 1 whole.steps | grep -qxFf - %s.steps", out,
             out);
    if (system(command) != 0) fail_msg("%s.steps differ from whole.steps", out);
    training_same_model("whole", out, "1-talk");
}

static void prepare(struct training_mesh *m)
{
    training_model(.1);
    huge_model();
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "whole", NULL, options);
    steps_write("whole");
    static const char *const aborted[] = {"3.7 .*aborted=0", "4.7 .*aborted=1", "5.7 .*aborted=2", "7.7 .*aborted=2"};
    for (int i = 0; i < 4; i++) {
        char command[128];
        snprintf(command, sizeof(command), "grep -qx 'step=%s' whole.steps", aborted[i]);
        if (system(command) != 0) fail_msg("no step=%s", aborted[i]);
    }
    training_mesh_start_each(m, "served", (const int[TRAINING_SERVICES]){2, 1, 1}, 2);
}

/* A trainer that was killed in the second step that is given up, and one in the last step, find out from the services, all of which live. */
static void a_trainer_comes_back_after_steps_were_given_up(void **state)
{
    (void)state;
    static const char *const points[] = {"after_norms:5", "after_backward:7", NULL};
    struct training_mesh m;
    prepare(&m);
    training_run("r.yaml", "mesh", &m, options);
    training_same_lines("whole", "mesh");
    whole("mesh");
    for (int i = 0; points[i] != NULL; i++) {
        const char *const fault[] = {"--model", "huge", "--checkpoint-every", "2", "--fault", points[i], NULL};
        char out[64], log[80];
        snprintf(out, sizeof(out), "killed-%d", i);
        snprintf(log, sizeof(log), "%s.log", out);
        assert_int_equal(training_wait(training_start("r.yaml", out, &m, fault), 60), 128 + SIGKILL);
        training_run("r.yaml", out, &m, options);
        assert_true(training_says(log, i == 0 ? "event=agreed step=3 version=3" : "event=agreed step=6 version=4"));
        whole(out);
    }
    training_mesh_stop(&m);
}

/* A service that dies as it gives a step up, or in the last step, sends all back to a checkpoint whose step is not its version. */
static void a_service_comes_back_after_steps_were_given_up(void **state)
{
    (void)state;
    static const struct {
        int service;
        const char *point, *restored;
    } deaths[] = {{TRAINING_ROUTER, "abort:2", "event=restored step=4 version=3 from=checkpoint"},
                  {TRAINING_ENCODER, "norms:7", "event=restored step=6 version=4 from=checkpoint"}};
    struct training_mesh m;
    prepare(&m);
    for (int i = 0; i < 2; i++) {
        char out[64], log[80];
        snprintf(out, sizeof(out), "killed-%d", i);
        snprintf(log, sizeof(log), "%s.log", out);
        training_mesh_renew(&m, deaths[i].service, m.n[deaths[i].service] - 1, deaths[i].point);
        assert_int_equal(training_through("r.yaml", out, &m, options), 1);
        if (!training_says(log, deaths[i].restored)) fail_msg("%s lacks %s", log, deaths[i].restored);
        whole(out);
    }
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(a_trainer_comes_back_after_steps_were_given_up),
          cmocka_unit_test(a_service_comes_back_after_steps_were_given_up))
