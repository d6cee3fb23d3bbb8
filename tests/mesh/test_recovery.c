/* Proves that a run over a mesh outlives its processes: each is killed at each named point of a step and started again, and the weights are those
 * of a run that nobody killed. And what is refused: damaged checkpoints, full disks, second trainers, other models. */
#include "tests/support/http.h"
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Two short stages: the encoder alone, then all; so every point is reached, and a stage begins where another ended. */
static const char stages[] = "  - name: see\n"
                             "    steps: 3\n"
                             "    micro_batches: 2\n"
                             "    lanes: 2\n"
                             "    data:\n"
                             "      - {frames: 1, samples: 2, conversations: 0, dense: true}\n"
                             "    losses: {dense: 1}\n"
                             "    groups:\n"
                             "      - {name: rest, optimiser: adamw, rate: 2.0e-3, tensors: ['vision_*', 'ext.encoder.*']}\n"
                             "  - name: talk\n"
                             "    steps: 5\n"
                             "    micro_batches: 2\n"
                             "    lanes: 2\n"
                             "    data:\n"
                             "      - {frames: 1, samples: 2, conversations: 3}\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups:\n"
                             "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";

static const char *const often[] = {"--checkpoint-every", "2", NULL};

/* The recipe, its unkilled run "whole", and a mesh of n replicas each. */
static void prepare(struct training_mesh *m, int n)
{
    training_model(.1);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "whole", NULL, often);
    if (n > 0) training_mesh_start(m, "served", n, 2);
}

static void whole(const char *out)
{
    training_same_model("whole", out, "1-see");
    training_same_model("whole", out, "2-talk");
}

/* --- services ------------------------------------------------------------------------------------------------------------------------------ */

/* Every point of a service (fault.h) is tried at each of the three; publish has a part of its own below. None is left out: also a service that learns
 * nothing in a stage begins, imports, prepares and commits. Which time it is counts: the first stage is the encoder's alone. */
static void services_killed(struct training_mesh *m, int service, const char *const *points)
{
    static int runs;
    for (int i = 0; points[i] != NULL; i++) {
        char out[64];
        snprintf(out, sizeof(out), "killed-%d", runs++);
        training_mesh_renew(m, service, m->n[service] - 1, points[i]);
        const int died = training_through("r.yaml", out, m, often);
        if (died != 1) fail_msg("%s: %d processes died there", points[i], died);
        whole(out);
    }
}

static void service_killed(int service, const char *const *points)
{
    struct training_mesh m;
    prepare(&m, 1);
    services_killed(&m, service, points);
    training_mesh_stop(&m);
}

static void encoder_killed(void **state)
{
    (void)state;
    static const char *const points[] = {"begin:2",          "import:3", "forward_before:3", "forward_after:9", "backward_before:8",
                                         "backward_after:4", NULL};
    service_killed(TRAINING_ENCODER, points);
}

static void encoder_killed_late_in_a_step(void **state)
{
    (void)state;
    static const char *const points[] = {
        "norms:2", "prepare_before:3", "prepare_after:7", "commit_before:2", "commit_after:6", "export:5", NULL};
    service_killed(TRAINING_ENCODER, points);
}

static void router_killed(void **state)
{
    (void)state;
    static const char *const points[] = {"begin:2",          "import:7", "forward_before:1", "forward_after:5", "backward_before:4",
                                         "backward_after:6", NULL};
    service_killed(TRAINING_ROUTER, points);
}

static void router_killed_late_in_a_step(void **state)
{
    (void)state;
    static const char *const points[] = {
        "norms:6", "prepare_before:2", "prepare_after:1", "commit_before:5", "commit_after:8", "export:9", NULL};
    service_killed(TRAINING_ROUTER, points);
}

static void region_killed(void **state)
{
    (void)state;
    static const char *const points[] = {"begin:1",          "import:2", "forward_before:3", "forward_after:1", "backward_before:2",
                                         "backward_after:5", NULL};
    service_killed(TRAINING_REGION, points);
}

static void region_killed_late_in_a_step(void **state)
{
    (void)state;
    static const char *const points[] = {
        "norms:4", "prepare_before:4", "prepare_after:5", "commit_before:6", "commit_after:4", "export:2", NULL};
    service_killed(TRAINING_REGION, points);
}

/* Where sums go from replica to replica, and some of what they share besides. */
static void replicas_of_router_killed(void **state)
{
    (void)state;
    static const char *const points[] = {"gather:2", "scatter:3", "backward_after:2", "commit_after:3", NULL};
    struct training_mesh m;
    prepare(&m, 2);
    services_killed(&m, TRAINING_ROUTER, points);
    training_mesh_stop(&m);
}

static void replicas_of_encoder_and_region_killed(void **state)
{
    (void)state;
    static const char *const encoder[] = {"gather:1", "scatter:5", NULL}, *const region[] = {"gather:4", "scatter:2", NULL};
    struct training_mesh m;
    prepare(&m, 2);
    services_killed(&m, TRAINING_ENCODER, encoder);
    services_killed(&m, TRAINING_REGION, region);
    training_mesh_stop(&m);
}

/* Abort reaches services as a stage begins, and when a trainer comes back to a step it had begun: here the second of the second stage. */
static void killed_at_abort(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m, 1);
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_backward:5", NULL};
    for (int service = 0; service < TRAINING_SERVICES; service++) {
        char out[64];
        snprintf(out, sizeof(out), "killed-%d", service);
        training_mesh_renew(&m, service, 0, "abort:2");
        assert_int_equal(training_wait(training_start("r.yaml", out, &m, fault), 60), 128 + SIGKILL);
        assert_false(training_mesh_died(&m, service, 0));
        assert_int_equal(training_through("r.yaml", out, &m, often), 1);
        whole(out);
    }
    training_mesh_stop(&m);
}

/* --- publishing -------------------------------------------------------------------------------------------------------------------------------- */

static const char *const publishing[] = {"--checkpoint-every", "2", "--publish-every", "2", NULL};

/* The number of the last stage's last step. */
static long last_published(const char *out)
{
    char command[256], line[32] = "";
    snprintf(command, sizeof(command),
             "grep -o 'stage=talk event=published step=5 version=[0-9]*' %s.log | tail -n 1 | sed 's/.*=//'", out);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof(line), f));
    pclose(f);
    return atol(line);
}

/* A gateway before the mesh; ./door is its run directory. */
static pid_t door_open(const struct training_mesh *m)
{
    char command[8192], ports[64] = "";
    pid_t pid = 0;
    snprintf(command, sizeof(command),
             "mkdir -p door; rm -f door/*; (exec %s/tpo-gateway --http 127.0.0.1:0 --grpc 127.0.0.1:0 --port-file door/ports "
             "--media-dir door-media "
             "--version-poll 50ms --encoder 127.0.0.1:%d --router 127.0.0.1:%d --head region=127.0.0.1:%d >door.log 2>&1) & echo "
             "$! >door.pid",
             tpo_test_build(), m->ports[TRAINING_ENCODER][0], m->ports[TRAINING_ROUTER][0], m->ports[TRAINING_REGION][0]);
    assert_int_equal(system(command), 0);
    while (access("door/ports", R_OK) != 0) usleep(5000);
    FILE *f = fopen("door/ports", "r");
    assert_non_null(fgets(ports, sizeof(ports), f));
    fclose(f);
    f = fopen("door/http", "w");
    fprintf(f, "127.0.0.1:%d\n", atoi(ports));
    fclose(f);
    f = fopen("door.pid", "r");
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    fclose(f);
    return pid;
}

/* The version that encoder, router and region answered from; -1 while the mesh finds out. Two in one answer end the case. */
static long version_served(const char *id)
{
    char body[512];
    struct tpo_text out = {0};
    size_t i;
    json_t *stage;
    int n = 0;
    long version = -1;
    snprintf(
        body, sizeof(body),
        "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"Where?\"}],\"task\":\"region\",\"maxNewTokens\":4}",
        id);
    const long status = http_post("door", "/v1/perceive", body, strlen(body), &out);
    if (status != 200 && status != 503) fail_msg("HTTP %ld %s", status, out.data);
    json_t *root = json_loads(out.data, 0, NULL);
    json_array_foreach(json_object_get(root, "stages"), i, stage)
    {
        const char *name = json_string_value(json_object_get(stage, "name")),
                   *number = json_string_value(json_object_get(stage, "version"));
        if (status != 200 || strcmp(name, "gateway") == 0) continue;
        const long one = number != NULL ? atol(number) : 0;
        if (n++ > 0 && one != version) fail_msg("two versions in one answer: %s", out.data);
        version = one;
    }
    if (status == 200 && n != TRAINING_SERVICES) fail_msg("%d services answered: %s", n, out.data);
    json_decref(root);
    tpo_text_free(&out);
    return version;
}

/* All of the mesh serves what was published last. */
static void serves(const struct training_mesh *m, long version)
{
    char id[65];
    const pid_t pid = door_open(m);
    long served = -1;
    assert_true(version > 0);
    http_upload_sample("door", "crowd.png", id);
    for (int tries = 0; served != version; tries++, usleep(5000)) {
        served = version_served(id);
        if (tries == 2000) fail_msg("version %ld is served, not %ld", served, version);
    }
    kill(pid, SIGKILL);
}

/* The first publish, one in the middle of a stage and the last one, before and after others have the version. */
static void services_killed_as_they_publish(int service, const char *const *points)
{
    struct training_mesh m;
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    prepare(&m, 1);
    for (int i = 0; points[i] != NULL; i++) {
        char out[64];
        snprintf(out, sizeof(out), "killed-%d", i);
        training_mesh_renew(&m, service, 0, points[i]);
        const int died = training_through("r.yaml", out, &m, publishing);
        if (died != 1) fail_msg("%s: %d processes died there", points[i], died);
        whole(out);
        serves(&m, last_published(out));
    }
    training_mesh_stop(&m);
}

static void encoder_killed_as_it_publishes(void **state)
{
    (void)state;
    static const char *const points[] = {"publish:1", "publish:5", NULL};
    services_killed_as_they_publish(TRAINING_ENCODER, points);
}

static void router_killed_as_it_publishes(void **state)
{
    (void)state;
    static const char *const points[] = {"publish:1", "publish:3", NULL};
    services_killed_as_they_publish(TRAINING_ROUTER, points);
}

/* Some have the version, others not: in the middle of a stage, and at its end, where no later step would publish. */
static void trainer_killed_as_it_publishes(void **state)
{
    (void)state;
    static const char *const points[] = {"mid_publish:2", "mid_publish:13", NULL};
    struct training_mesh m;
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    prepare(&m, 1);
    for (int i = 0; points[i] != NULL; i++) {
        const char *const fault[] = {"--checkpoint-every", "2", "--publish-every", "2", "--fault", points[i], NULL};
        char out[64];
        snprintf(out, sizeof(out), "killed-%d", i);
        assert_int_equal(training_wait(training_start("r.yaml", out, &m, fault), 60), 128 + SIGKILL);
        assert_int_equal(training_through("r.yaml", out, &m, publishing), 0);
        whole(out);
        serves(&m, last_published(out));
    }
    training_mesh_stop(&m);
}

static void region_killed_as_it_publishes(void **state)
{
    (void)state;
    static const char *const points[] = {"publish:2", "publish:5", NULL};
    services_killed_as_they_publish(TRAINING_REGION, points);
}

/* How often a step's version of the last stage was given out; with `numbers` under how many numbers. */
static int published(const char *log, int step, bool numbers)
{
    char command[256], line[32] = "";
    snprintf(command, sizeof(command), "grep -o 'stage=talk event=published step=%d version=[0-9]*' %s %s | wc -l", step, log,
             numbers ? "| sort -u" : "");
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof(line), f));
    pclose(f);
    return atoi(line);
}

/* A router that dies and comes back holds the folder's weights alone. It does not wait for the next version: what the others serve is given to it
 * where the run comes to that step again, and where none was published in this stage yet, what the stage before left, before the first step. */
static void a_router_that_comes_back_serves_with_the_others(void **state)
{
    (void)state;
    static const struct {
        const char *point, *publish_every;         /* of the router's forwards, two a step */
        int twice, once;                           /* steps whose version is given out so often, under one number; 0: none */
    } cases[] = {{"forward_before:5", "2", 2, 4},  /* the checkpoint that all go back to is of the step that is served */
                 {"forward_before:7", "1", 3, 2},  /* or of the one before: serving does not go back */
                 {"forward_before:2", "9", 0, 0}}; /* or it is of the end of the stage before */
    struct training_mesh m;
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    prepare(&m, 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *const more[] = {"--checkpoint-every", "2", "--publish-every", cases[i].publish_every, NULL};
        char out[64], log[80], command[256];
        snprintf(out, sizeof(out), "killed-%zu", i);
        snprintf(log, sizeof(log), "%s.log", out);
        training_mesh_renew(&m, TRAINING_ROUTER, 0, cases[i].point);
        assert_int_equal(training_through("r.yaml", out, &m, more), 1);
        whole(out);
        assert_int_equal(published(log, cases[i].once, false), 1);
        if (cases[i].twice == 0) {
            snprintf(
                command, sizeof(command),
                "grep -oE '(see event=published step=3|talk event=published step=0) version=[0-9]+' %s | sed 's/.*=//' | uniq -d | "
                "grep -q .",
                log);
            assert_int_equal(system(command), 0);
            continue;
        }
        assert_int_equal(published(log, cases[i].twice, false), 2);
        assert_int_equal(published(log, cases[i].twice, true), 1);
        serves(&m, last_published(out));
    }
    training_mesh_stop(&m);
}

/* --- the trainer ------------------------------------------------------------------------------------------------------------------------------ */

static void trainer_killed_at(int replicas, const char *const *points)
{
    struct training_mesh m;
    prepare(&m, replicas);
    for (int i = 0; points[i] != NULL; i++) {
        const char *const fault[] = {"--checkpoint-every", "2", "--fault", points[i], NULL};
        char out[64];
        snprintf(out, sizeof(out), "killed-%d", i);
        const int status = training_wait(training_start("r.yaml", out, &m, fault), 60);
        if (status != 128 + SIGKILL) fail_msg("%s: the trainer ended with %d", points[i], status);
        assert_int_equal(training_through("r.yaml", out, &m, often), 0);
        whole(out);
    }
    training_mesh_stop(&m);
}

static void trainer_killed(void **state)
{
    (void)state;
    static const char *const points[] = {
        "after_forward:2", "after_backward:4", "after_norms:5", "mid_prepare:7", "after_prepare:6", "mid_commit:13", NULL};
    trainer_killed_at(1, points);
}

static void trainer_killed_between_steps(void **state)
{
    (void)state;
    static const char *const points[] = {"after_commit:3",   "shard_written:1", "shard_written:4", "before_manifest:2",
                                         "after_manifest:1", "stage_end:1",     "stage_end:2",     NULL};
    trainer_killed_at(1, points);
}

static void trainer_of_replicas_killed(void **state)
{
    (void)state;
    static const char *const points[] = {"after_backward:5", "mid_prepare:3", "mid_commit:4", NULL};
    trainer_killed_at(2, points);
}

static void replicas_swap(struct training_mesh *m, int service)
{
    const int port = m->ports[service][0];
    m->ports[service][0] = m->ports[service][1];
    m->ports[service][1] = port;
}

/* The trainer that comes back names the replicas in another order, so that each has another's lanes; the trainer after it has the first order
 * again. */
static void replicas_are_named_in_another_order(void **state)
{
    (void)state;
    const char *const once[] = {"--checkpoint-every", "2", "--fault", "after_commit:6", NULL}, *const twice[] = {
                                                                                                   "--checkpoint-every", "2",
                                                                                                   "--fault", "after_backward:2",
                                                                                                   NULL};
    struct training_mesh m, swapped;
    prepare(&m, 2);
    swapped = m;
    replicas_swap(&swapped, TRAINING_ENCODER);
    replicas_swap(&swapped, TRAINING_ROUTER);
    assert_int_equal(training_wait(training_start("r.yaml", "killed", &m, once), 60), 128 + SIGKILL);
    assert_int_equal(training_wait(training_start("r.yaml", "killed", &swapped, twice), 60), 128 + SIGKILL);
    assert_true(training_says("killed.log", "event=restored step=2 version=2 from=checkpoint"));
    training_run("r.yaml", "killed", &m, often);
    whole("killed");
    training_mesh_stop(&m);
}

/* A step is committed somewhere and prepared elsewhere; the trainer and one of those who prepared die. Nobody can commit it everywhere any more. */
static void a_service_dies_while_others_hold_a_prepared_step(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m, 1);
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "mid_commit:17", NULL};
    assert_int_equal(training_wait(training_start("r.yaml", "killed", &m, fault), 60), 128 + SIGKILL);
    training_mesh_renew(&m, TRAINING_REGION, 0, NULL);
    training_run("r.yaml", "killed", &m, often);
    assert_true(training_says("killed.log", "from=checkpoint"));
    whole("killed");
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(encoder_killed), cmocka_unit_test(encoder_killed_late_in_a_step), cmocka_unit_test(router_killed),
          cmocka_unit_test(router_killed_late_in_a_step), cmocka_unit_test(region_killed),
          cmocka_unit_test(region_killed_late_in_a_step), cmocka_unit_test(replicas_of_router_killed),
          cmocka_unit_test(replicas_of_encoder_and_region_killed), cmocka_unit_test(killed_at_abort),
          cmocka_unit_test(encoder_killed_as_it_publishes), cmocka_unit_test(router_killed_as_it_publishes),
          cmocka_unit_test(region_killed_as_it_publishes), cmocka_unit_test(a_router_that_comes_back_serves_with_the_others),
          cmocka_unit_test(trainer_killed_as_it_publishes), cmocka_unit_test(trainer_killed),
          cmocka_unit_test(trainer_killed_between_steps), cmocka_unit_test(trainer_of_replicas_killed),
          cmocka_unit_test(replicas_are_named_in_another_order), cmocka_unit_test(a_service_dies_while_others_hold_a_prepared_step))
