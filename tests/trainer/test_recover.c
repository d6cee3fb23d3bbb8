/* Proves which crews a checkpoint goes on with: teams of the same size, on the same devices; and that replicas of one service compute alike. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "trainer/steps/held.h"
#include "trainer/steps/recover.h"

/* --- a checkpoint and another crew ------------------------------------------------------------------------------------------------------- */

static const char shard[] = "weights";
static struct tpo_recipe recipe = {.n_stages = 1}; /* of a stage without data */

/* A stage whose encoder learns, and ./step-00000002 of it. */
static void checkpoint_put(struct tpo_checkpoint *c, const char *threads, const char *devices)
{
    uint8_t digest[TPO_SHA256_BYTES];
    char hex[TPO_SHA256_HEX];
    *c = (struct tpo_checkpoint){.of = {.run = "test/see", .seed = 3, .lanes = 1, .micro_batches = 1, .start = "start"},
                                 .recipe = &recipe,
                                 .threads = {2, 2, 2},
                                 .devices = {"cpu", "cpu", ""},
                                 .trains = {true, false, false}};
    json_t *j = json_loads(threads, JSON_DECODE_ANY, NULL), *d = json_loads(devices, 0, NULL);
    tpo_sha256(digest, shard, sizeof(shard));
    json_t *manifest = json_pack("{s:i s:o s:o s:{s:i s:i} s:[] s:{s:s}}", "step", 2, "threads", j, "devices", d, "generator",
                                 "seed", 0, "counter", 2, "next_sample", "files", "encoder", tpo_sha256_hex(hex, digest));
    tpo_identity_put(manifest, &c->of);
    assert_int_equal(system("mkdir -p step-00000002"), 0);
    assert_int_equal(json_dump_file(manifest, "step-00000002/manifest.json", 0), 0);
    json_decref(manifest);
    FILE *f = fopen("step-00000002/encoder.safetensors", "w");
    assert_non_null(f);
    assert_int_equal(fwrite(shard, 1, sizeof(shard), f), sizeof(shard));
    fclose(f);
}

static void teams_and_devices_are_those_of_the_checkpoint(void **state)
{
    (void)state;
    static const char all[] = "{\"encoder\": \"cpu\", \"router\": \"cpu\", \"region\": \"cpu\"}";
    static const struct {
        const char *threads, *devices, *says; /* NULL: it is taken */
    } cases[] = {
        {"2", all, NULL},
        {"{\"encoder\": 2, \"router\": 2, \"region\": 2}", all, NULL},
        {"4", all, "was made with a team of 4 threads for encoder, which has 2 now"},
        {"{\"encoder\": 2, \"router\": 7, \"region\": 2}", all, "was made with a team of 7 threads for router, which has 2 now"},
        {"2", "{\"encoder\": \"cuda\", \"router\": \"cpu\"}", "was made with encoder on cuda, which is on cpu now"},
        {"2", "{\"encoder\": \"cpu\", \"router\": \"cpu\", \"region\": \"cuda\"}", NULL}}; /* no region is there now */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_checkpoint c;
        struct tpo_error err = {0};
        checkpoint_put(&c, cases[i].threads, cases[i].devices);
        const int rc = tpo_checkpoint_find(".", &c, &err);
        if (rc != (cases[i].says != NULL ? TPO_FAILED_PRECONDITION : TPO_OK)) fail_msg("case %zu: %d %s", i, rc, err.message);
        if (rc == TPO_OK) assert_int_equal(c.step, 2);
        if (rc == TPO_OK) continue;
        assert_string_equal(err.reason, "checkpoint");
        if (strstr(err.message, cases[i].says) == NULL) fail_msg("case %zu: %s", i, err.message);
    }
}

/* --- replicas ---------------------------------------------------------------------------------------------------------------------------- */

static struct fake {
    const char *device;
    bool ended;
    int begun;
} fakes[2];

static int fake_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    struct fake *f = self;
    (void)run, (void)plan, (void)err;
    f->begun++;
    *out = (struct tpo_begun){.tapes = 2, .trainable = 1, .threads = 2};
    snprintf(out->device, sizeof(out->device), "%s", f->device);
    return TPO_OK;
}

static int fake_end(void *self, struct tpo_error *err)
{
    (void)err;
    ((struct fake *)self)->ended = true;
    return TPO_OK;
}

static int fake_import(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err)
{
    (void)self, (void)version, (void)x;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "lease", "another Begin came");
}

static int fake_open(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    (void)owner, (void)part, (void)err;
    *out = (struct tpo_learner){.self = &fakes[replica], .begin = fake_begin, .end = fake_end, .import_state = fake_import};
    return TPO_OK;
}

/* No file of this process grows, or all may: as a disk that is full. */
static void disk_full(bool full)
{
    struct rlimit l;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = full ? 0 : l.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

/* Two fakes that compute on cpu and on `device`, until they are agreed or no more is tried. */
static int fakes_recover(const char *device, int wait_ms, bool full, struct tpo_error *err)
{
    static const struct tpo_config config;
    const struct tpo_crew_options o = {.config = &config, .n_replicas = {2, 0, 0}, .threaded = true, .open = fake_open};
    struct tpo_recipe *r = calloc(1, sizeof(*r));
    struct tpo_recipe_stage *s = &r->stages[0];
    struct tpo_checkpoint c = {.of = {.run = "test/see"}};
    struct tpo_held *held = NULL;
    struct tpo_crew crew;
    assert_non_null(r);
    s->losses[0] = (struct tpo_loss_weight){"dense", 1};
    s->plan =
        (struct tpo_plan){.lanes = 2, .micro_batches = 2, .groups = s->groups, .n_groups = 1, .losses = s->losses, .n_losses = 1};
    fakes[0] = (struct fake){.device = "cpu"};
    fakes[1] = (struct fake){.device = device};
    assert_int_equal(tpo_held_open(&held, ".", err), TPO_OK);
    assert_int_equal(tpo_crew_open(&crew, &o, err), TPO_OK);
    const struct tpo_recovery recovery = {.crew = &crew,
                                          .held = held,
                                          .recipe = r,
                                          .stage_dir = ".",
                                          .same_memory = wait_ms > 0,
                                          .config = "",
                                          .tokenizer = "",
                                          .threads = 2,
                                          .wait_ms = wait_ms};
    disk_full(full);
    const int rc = tpo_recovery_run(&recovery, false, &c, err);
    disk_full(false);
    tpo_crew_close(&crew);
    tpo_held_close(held);
    free(r);
    return rc;
}

/* And keep nobody out, though the disk may have no room to write that down. */
static void replicas_on_different_devices_are_refused(void **state)
{
    (void)state;
    for (int full = 0; full < 2; full++) {
        struct tpo_error err = {0};
        assert_int_equal(fakes_recover("cuda", 0, full, &err), TPO_FAILED_PRECONDITION);
        assert_string_equal(err.reason, "device");
        assert_non_null(strstr(err.message, "replicas of encoder compute on cpu and cuda"));
        assert_true(fakes[0].ended && fakes[1].ended);
    }
}

/* Each try asks every service and writes run.json to the disk. */
static void what_fails_at_once_is_tried_with_pauses(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    assert_int_equal(fakes_recover("cpu", 3000, false, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "lease");
    assert_true(fakes[0].begun >= 2);
    if (fakes[0].begun > 17) fail_msg("%d tries within 3 s, with pauses of 200 ms", fakes[0].begun);
}

TPO_TESTS(cmocka_unit_test(teams_and_devices_are_those_of_the_checkpoint),
          cmocka_unit_test(replicas_on_different_devices_are_refused), cmocka_unit_test(what_fails_at_once_is_tried_with_pauses))
