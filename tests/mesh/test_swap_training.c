/* Proves that what a trainer learns goes into a mesh that serves meanwhile: a real run that publishes every step over two replicas of each service,
 * whose steps are long, and clients that ask all the time. No request fails, each answer is of one version that was published, versions rise for
 * every client, and answers are given in the midst of a step. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "tests/mesh/swap.h"
#include "tests/support/mesh.h"
#include "tests/support/training.h"

#define STEPS   6
#define CLIENTS 3
#define MEDIA   4 /* so that either encoder gets some */
#define SEEN    64

static const char stages[] = "  - name: all\n"
                             "    steps: 6\n"
                             "    micro_batches: 64\n"
                             "    lanes: 2\n"
                             "    data: [{frames: 1, samples: 8, conversations: 4}]\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups: [{name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}]\n";

static char media[MEDIA][65];
static _Atomic int stopping, step, failed, answered, within;

/* --- what clients see ---------------------------------------------------------------------------------------------------------------- */

struct client {
    pthread_t thread;
    int number, n_versions, n_instances;
    long versions[SEEN];
    char instances[SEEN][64];
};

static void instances_keep(struct client *c, const json_t *answer)
{
    size_t i;
    const json_t *stage;
    json_array_foreach(json_object_get(answer, "stages"), i, stage)
    {
        const char *text = mesh_text(stage, "instance");
        int k = 0;
        while (k < c->n_instances && strcmp(c->instances[k], text) != 0) k++;
        if (k == c->n_instances && k < SEEN) snprintf(c->instances[c->n_instances++], sizeof(c->instances[0]), "%s", text);
    }
}

/* One answer, which a head has a part in. */
static struct heard question(struct client *c, int n)
{
    struct heard h = {0};
    char body[512];
    snprintf(body, sizeof(body),
             "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"Where is the ball?\"}],\"task\":\"region\","
             "\"maxNewTokens\":8}",
             media[n % MEDIA]);
    struct http_answer a = http_send("run", "/v1/perceive", body, strlen(body), 0);
    json_t *root = json_loads(a.body.data, 0, NULL);
    h.status = a.status;
    hear(&h, root);
    for (int i = 0; i < 3 && h.version >= 0; i++)
        if (mesh_stage(root, (const char *const[]){"encoder", "router", "region"}[i]) == NULL) h.version = -3;
    instances_keep(c, root);
    snprintf(h.why, sizeof(h.why), "%.500s", a.body.data);
    json_decref(root);
    http_free(&a);
    return h;
}

static void *run_client(void *arg)
{
    struct client *c = arg;
    for (int n = c->number; !stopping; n++) {
        const int before = step;
        const struct heard h = question(c, n);
        const long last = c->n_versions > 0 ? c->versions[c->n_versions - 1] : 0;
        answered++;
        if (before > 0 && step == before) within++;
        if (h.status == 200 && h.version >= last) {
            if (h.version > last && c->n_versions < SEEN) c->versions[c->n_versions++] = h.version;
        } else if (failed++ == 0)
            fprintf(stderr, "HTTP %ld, version %ld after %ld: %s\n", h.status, h.version, last, h.why);
    }
    return NULL;
}

/* --- what the trainer does ----------------------------------------------------------------------------------------------------------- */

/* Steps that the trainer has told of, and one: that which is under way. */
static int steps_told(void)
{
    char line[4096];
    int n = 0;
    FILE *f = fopen("out.log", "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        if (strstr(line, "event=begin") != NULL) n = 1;
        if (strstr(line, " bubble=") != NULL) n++;
    }
    if (f != NULL) fclose(f);
    return n;
}

static void trainer_watch(pid_t pid)
{
    int status = 0;
    const double until_s = tpo_now_s() + tpo_test_limit_s(60);
    for (; waitpid(pid, &status, WNOHANG) == 0; usleep(5000)) {
        step = steps_told();
        if (tpo_now_s() < until_s) continue;
        kill(pid, SIGKILL);
        fail_msg("the run did not end: %d steps", (int)step);
    }
    if (status != 0) {
        shell("cat out.err");
        fail_msg("the run ended with %d", status);
    }
}

static bool was_published(long version)
{
    char text[64];
    snprintf(text, sizeof(text), "version=%ld\n", version);
    return training_says("out.log", text);
}

/* --- the case ------------------------------------------------------------------------------------------------------------------------ */

static void mesh_start(void)
{
    setenv("TPO_VERSION_HOLD", "300ms", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    setenv("TPO_THREADS", "1", 1);
    training_model(0);
    training_recipe("r.yaml", stages);
    up("served", "run", "--train --redis=no --replicas encoder=2 --replicas router=2 --replicas region=2");
    unsetenv("TPO_THREADS");
    for (int i = 0; i < MEDIA; i++) mesh_upload("crowd.png", i, media[i]);
}

/* The last version reaches the clients within a poll of the gateway. */
static void last_version_wait(struct client *c)
{
    const double until_s = tpo_now_s() + tpo_test_limit_s(10);
    while (tpo_now_s() < until_s) {
        const struct heard h = question(c, 0);
        if (h.status == 200 && h.version > 0 && was_published(h.version)) {
            char text[64];
            snprintf(text, sizeof(text), "event=published step=%d version=%ld", STEPS, h.version);
            if (training_says("out.log", text)) return;
        }
        usleep(20000);
    }
    fail_msg("nobody was answered from the last version");
}

static void a_run_publishes_into_a_mesh_that_serves(void **state)
{
    (void)state;
    static struct client clients[CLIENTS], late;
    int most = 0;
    mesh_start();
    for (int i = 0; i < CLIENTS; i++) {
        clients[i].number = i;
        pthread_create(&clients[i].thread, NULL, run_client, &clients[i]);
    }
    trainer_watch(training_start("r.yaml", "out", NULL, (const char *const[]){"--mesh", "run", "--publish-every", "1", NULL}));
    last_version_wait(&late);
    stopping = 1;
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i].thread, NULL);
    for (int i = 0; i < CLIENTS; i++) {
        for (int k = 0; k < clients[i].n_versions; k++)
            if (!was_published(clients[i].versions[k])) fail_msg("version %ld was never published", clients[i].versions[k]);
        if (clients[i].n_versions > most) most = clients[i].n_versions;
    }
    fprintf(stderr, "requests=%d failed=%d within_a_step=%d versions=%d instances=%d\n", (int)answered, (int)failed, (int)within,
            most, clients[0].n_instances);
    assert_int_equal(failed, 0);
    assert_true(most >= 3);
    assert_true(within >= STEPS);
    assert_true(clients[0].n_instances >= 5); /* the gateway, both routers, an encoder and a head at least */
}

TPO_TESTS(cmocka_unit_test_teardown(a_run_publishes_into_a_mesh_that_serves, tear_down))
