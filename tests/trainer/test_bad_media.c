/* Proves that bad media are passed over, counted and remembered, in one process as over a mesh, and that no row is bad for what the machine does. */
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/annotated.h"
#include "tests/support/test.h"
#include "tests/support/training.h"
#include "trainer/data/source.h"

/* How many rows had been passed over at a step; a log tells of it once. */
static int skipped_at(const char *log, int step)
{
    char line[2048];
    int n = -1;
    FILE *f = fopen(log, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL)
        if (strstr(line, " data_ms=") != NULL && (int)annotated_number(line, " step=") == step)
            n = (int)annotated_number(line, " skipped=");
    fclose(f);
    if (n < 0) fail_msg("%s: no step %d", log, step);
    return n;
}

/* --- one process -------------------------------------------------------------------------------------------------------------------------------- */

static void bad_media_are_passed_over_then_stop_the_run(void **state)
{
    (void)state;
    char stage[2048];
    static const char format[] =
        "  - name: files\n    steps: 6\n    data:\n"
        "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: %s, samples: 2}\n"
        "    losses: {language: 1}\n" ANNOTATED_ALL;
    annotated_write();
    training_model(0);
    annotated_text("data/images/000003.png", "no picture");
    assert_int_equal(unlink("data/images/000005.png"), 0);

    snprintf(stage, sizeof(stage), format, ".25");
    training_recipe("r.yaml", stage);
    training_run("r.yaml", "passed", NULL, NULL);
    assert_true(training_says("passed.log", "step=6/6 samples=12 boxes=0 skipped=2 "));
    assert_true(training_says("passed.log", ": missing media: 000005.png\""));
    assert_true(training_says("passed.log", ": 000003.png: it is none of"));
    assert_true(training_says("passed.log", "rows=8 left_out=0 skipped=1 faults=\"missing media: 1\""));

    snprintf(stage, sizeof(stage), format, ".2");
    training_recipe("r.yaml", stage);
    annotated_refused("stopped", "INVALID_ARGUMENT: 2 of 8 rows are bad, 1 for their media: ", "000003.png: ");
    snprintf(stage, sizeof(stage), format, "0");
    training_recipe("r.yaml", stage);
    annotated_refused("begun", "INVALID_ARGUMENT: 1 of 8 rows are bad, most often \"missing media\"", "000005.png");

    for (int i = 0; i < 8; i++) {
        char path[64];
        snprintf(path, sizeof(path), "data/images/%06d.png", i);
        annotated_text(path, "no picture");
    }
    snprintf(stage, sizeof(stage), format, "1");
    training_recipe("r.yaml", stage);
    annotated_refused("none", "INVALID_ARGUMENT: 64 rows drawn for one sample are bad: ", ".png: ");
}

/* One picture in 4000 rows: a sample's 64 draws meet none but missing ones, which were found when the file was read. */
static void a_file_of_missing_media_names_one_of_its_rows(void **state)
{
    (void)state;
    annotated_write();
    training_model(0);
    FILE *f = fopen("data/image_it.json", "w");
    assert_non_null(f);
    fputs("[{\"image\":\"000001.png\",\"QA\":[{\"q\":\"What?\",\"a\":\"red\"}]}", f);
    for (int i = 0; i < 3999; i++) fputs(",\n{\"image\":\"none.png\",\"QA\":[{\"q\":\"What?\",\"a\":\"red\"}]}", f);
    fputs("]\n", f);
    fclose(f);
    training_recipe("r.yaml", "  - name: files\n    steps: 6\n    data:\n"
                              "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: 1}\n"
                              "    losses: {language: 1}\n" ANNOTATED_ALL);
    annotated_refused("none", "64 rows drawn for one sample are bad: data/image_it.json:", ": its medium is missing");
}

/* Six steps of two pictures each, of 8 of which two are broken: which are drawn when is the seed's. */
static void two_are_broken(const char *skip_most)
{
    char stage[2048];
    snprintf(stage, sizeof(stage),
             "  - name: files\n    steps: 6\n    data:\n"
             "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: %s, samples: 2}\n"
             "    losses: {language: 1}\n" ANNOTATED_ALL,
             skip_most);
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stage);
    annotated_text("data/images/000003.png", "no picture");
    annotated_text("data/images/000006.png", "no picture");
}

/* What is drawn once more by a run that goes on is the same, and as many rows are counted, wherever it was cut. */
static void a_run_with_bad_media_goes_on_to_the_same_bits_and_counts(void **state)
{
    (void)state;
    const char *const every[] = {"--checkpoint-every", "1", NULL};
    two_are_broken(".25");
    training_run("r.yaml", "whole", NULL, every);
    assert_int_equal(skipped_at("whole.log", 6), 2);
    for (int n = 1; n < 6; n++) {
        char out[32], log[64], point[32];
        snprintf(out, sizeof(out), "killed-%d", n);
        snprintf(log, sizeof(log), "%s.log", out);
        snprintf(point, sizeof(point), "after_commit:%d", n);
        const char *const fault[] = {"--checkpoint-every", "1", "--fault", point, NULL};
        assert_int_equal(training_wait(training_start("r.yaml", out, NULL, fault), 60), 128 + SIGKILL);
        training_run("r.yaml", out, NULL, every);
        training_same_model("whole", out, "1-files");
        for (int step = n + 1; step <= 6; step++) assert_int_equal(skipped_at(log, step), skipped_at("whole.log", step));
    }
}

/* The last step that a log tells of. */
static int last_step(const char *log)
{
    char line[2048];
    int step = 0;
    FILE *f = fopen(log, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL)
        if (strstr(line, " data_ms=") != NULL) step = (int)annotated_number(line, " step=");
    fclose(f);
    return step;
}

/* What stops a run stops it at the same step if it was cut before: the rows that the run before it met count. */
static void a_run_past_its_share_of_bad_media_stops_at_the_same_step(void **state)
{
    (void)state;
    const char *const every[] = {"--checkpoint-every", "1", NULL};
    two_are_broken(".2");
    assert_int_equal(training_wait(training_start("r.yaml", "whole", NULL, every), 60), 1);
    const int stopped = last_step("whole.log");
    assert_in_range(stopped, 1, 5);
    for (int n = 1; n <= stopped; n++) {
        char out[32], log[64], err[64], point[32];
        snprintf(out, sizeof(out), "killed-%d", n);
        snprintf(log, sizeof(log), "%s.log", out);
        snprintf(err, sizeof(err), "%s.err", out);
        snprintf(point, sizeof(point), "after_commit:%d", n);
        const char *const fault[] = {"--checkpoint-every", "1", "--fault", point, NULL};
        assert_int_equal(training_wait(training_start("r.yaml", out, NULL, fault), 60), 128 + SIGKILL);
        for (int again = 0; again < 2; again++) {
            assert_int_equal(training_wait(training_start("r.yaml", out, NULL, every), 60), 1);
            if (n < stopped) assert_int_equal(last_step(log), stopped);
            assert_true(training_says(err, "INVALID_ARGUMENT: 2 of 8 rows are bad, 2 for their media: "));
        }
    }
}

/* --- the machine -------------------------------------------------------------------------------------------------------------------------------- */

struct filling {
    struct tpo_source *source;
    struct tpo_world_batch batch;
    struct tpo_error err;
    int rc;
};

static void *fill(void *arg)
{
    struct filling *f = arg;
    f->rc = tpo_source_fill(f->source, &f->batch, 0, 2, &f->err);
    return NULL;
}

/* A source of data/image_it.json whose only decoder is given so long for one try. */
static void filling_open(struct filling *f, tpo_media_t **media, int timeout_ms)
{
    static struct tpo_config config;
    char program[4096];
    struct tpo_error err = {0};
    snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
    assert_int_equal(tpo_config_load(&config, "tiny", &err), TPO_OK);
    const struct tpo_media_options decoder = {.program = program, .timeout_ms = timeout_ms};
    assert_int_equal(tpo_media_open(media, &decoder, &err), TPO_OK);
    const struct tpo_source_options o = {
        .rows = {.source = TPO_ANNOTATIONS_VIDEOCHAT2, .annotations = "data/image_it.json", .media = "data/images", .skip_most = 1},
        .config = &config,
        .media = *media,
        .threads = 1,
        .n_conversations = 1};
    *f = (struct filling){0};
    assert_int_equal(tpo_source_open(&f->source, &o, &err), TPO_OK);
}

static void filling_close(struct filling *f, tpo_media_t *media)
{
    assert_int_equal(tpo_source_skipped(f->source), 0);
    tpo_source_close(f->source);
    tpo_world_batch_free(&f->batch);
    tpo_media_close(media);
}

/* The only decoder is in use for more tries than a slow file gets: rows wait for it. */
static void a_busy_decoder_is_waited_for(void **state)
{
    (void)state;
    struct filling f;
    struct tpo_error err = {0};
    tpo_media_t *media = NULL;
    tpo_media_file_t *file = NULL;
    pthread_t thread;
    annotated_write();
    training_model(0);
    filling_open(&f, &media, 500);
    assert_int_equal(tpo_media_file_open(media, &file, "data/images/000000.png", 20000, &err), TPO_OK);
    assert_int_equal(pthread_create(&thread, NULL, fill, &f), 0);
    usleep(3200000);
    tpo_media_file_close(file);
    pthread_join(thread, NULL);
    if (f.rc != TPO_OK) fail_msg("%s: %s", f.err.reason, f.err.message);
    filling_close(&f, media);
}

static void no_more_files_is_no_fault_of_a_row(void **state)
{
    (void)state;
    struct filling f;
    struct rlimit before, none;
    tpo_media_t *media = NULL;
    annotated_write();
    training_model(0);
    filling_open(&f, &media, 20000);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    fill(&f);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(f.rc, TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(f.err.reason, "files");
    filling_close(&f, media);
}

/* No picture of two megapixels is decoded in a millisecond. To pass over it would be a matter of the machine. */
static void a_file_that_is_never_done_ends_the_run(void **state)
{
    (void)state;
    struct filling f;
    tpo_media_t *media = NULL;
    annotated_write_as(32);
    training_model(0);
    filling_open(&f, &media, 1);
    fill(&f);
    assert_int_equal(f.rc, TPO_FAILED_PRECONDITION);
    assert_string_equal(f.err.reason, "media_slow");
    filling_close(&f, media);
}

/* --- over a mesh -------------------------------------------------------------------------------------------------------------------------------- */

/* An epoch and a half of the pictures. */
static const char stage_of_names[] =
    "  - name: names\n"
    "    steps: 6\n"
    "    data:\n"
    "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 2, conversations: 2, skip_most: "
    ".2}\n"
    "    losses: {language: 1}\n"
    "    groups:\n"
    "      - {name: lora, optimiser: adamw, rate: 2e-3, tensors: ['lm.*lora_A.*', 'lm.*lora_B.*']}\n";

/* The encoder refuses media that the trainer reads: too large for it, or not decoded in its time. They come as pixels, and the run is that of one
 * process. */
static void media_that_only_the_encoder_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *setting, *value, *reason;
    } cases[] = {{"TPO_MEDIA_FILE_BYTES", "20000", "media_too_large"}, {"TPO_MEDIA_TIMEOUT", "10ms", "media_timeout"}};
    const char *const same[] = {"--model", "served", NULL};
    annotated_write_as(32);
    training_model(0);
    training_recipe("r.yaml", stage_of_names);
    training_run("r.yaml", "one", NULL, same);
    for (int i = 0; i < 2; i++) {
        struct training_mesh m;
        char out[32], log[64], said[64];
        snprintf(out, sizeof(out), "mesh-%d", i);
        snprintf(log, sizeof(log), "%s.log", out);
        snprintf(said, sizeof(said), "service=encoder reason=%s", cases[i].reason);
        assert_int_equal(system("rm -rf media-0"), 0);
        setenv(cases[i].setting, cases[i].value, 1);
        training_mesh_start(&m, "served", 1, 2);
        unsetenv(cases[i].setting);
        training_run("r.yaml", out, &m, same);
        training_mesh_stop(&m);
        assert_true(training_says(log, "event=media_as_pixels"));
        if (!training_says(log, said)) fail_msg("%s does not say %s", log, said);
        assert_false(training_says(log, "event=step_lost"));
        training_same_lines("one", out);
        training_same_model("one", out, "1-names");
    }
}

/* One picture has more pixels than the encoder decodes: it alone comes as pixels, those beside it by name. Ten epochs: whoever walks with it asks
 * once. */
static void what_comes_as_pixels_is_the_one_that_is_refused(void **state)
{
    (void)state;
    struct training_mesh m;
    char stage[1024];
    const char *steps = strchr(stage_of_names, '6');
    const char *const same[] = {"--model", "served", NULL};
    annotated_write_as(2);
    assert_int_equal(system("mv data/images/000003.png large.png && rm -r data"), 0);
    annotated_write();
    assert_int_equal(rename("large.png", "data/images/000003.png"), 0);
    training_model(0);
    snprintf(stage, sizeof(stage), "%.*s40%s", (int)(steps - stage_of_names), stage_of_names, steps + 1);
    training_recipe("r.yaml", stage);
    training_run("r.yaml", "one", NULL, same);
    setenv("TPO_MEDIA_PIXELS", "4096", 1);
    training_mesh_start(&m, "served", 1, 2);
    unsetenv("TPO_MEDIA_PIXELS");
    training_run("r.yaml", "mesh", &m, same);
    training_mesh_stop(&m);
    assert_true(training_says("mesh.log", "event=media_as_pixels"));
    assert_int_equal(system("test $(grep -o 'media_as_pixels id=[0-9a-f]*' mesh.log | sort -u | wc -l) = 1"), 0);
    assert_int_equal(system("test $(grep -c media_as_pixels mesh.log) -le 4"), 0);
    training_same_lines("one", "mesh");
    training_same_model("one", "mesh", "1-names");
}

/* Pictures that are drawn ahead, by name, go away before the encoder has asked for them: they are passed over, in their turn. */
static void a_medium_that_goes_away_after_its_draw_is_passed_over(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const stop[] = {"--model", "served", "--fault", "after_commit:1:stop", NULL};
    int status = 0;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stage_of_names);
    training_mesh_start(&m, "served", 1, 2);
    const pid_t pid = training_start("r.yaml", "mesh", &m, stop);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    assert_int_equal(system("for f in data/images/*; do test -e media-0/$(sha256sum <$f | cut -c1-64) || { rm $f; break; }; done"),
                     0);
    kill(pid, SIGCONT);
    if (training_wait(pid, 60) != 0) fail_msg("the run ended");
    assert_int_equal(skipped_at("mesh.log", 6), 1);
    assert_true(training_says("mesh.log", "missing media"));
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(bad_media_are_passed_over_then_stop_the_run),
          cmocka_unit_test(a_file_of_missing_media_names_one_of_its_rows),
          cmocka_unit_test(a_run_with_bad_media_goes_on_to_the_same_bits_and_counts),
          cmocka_unit_test(a_run_past_its_share_of_bad_media_stops_at_the_same_step),
          cmocka_unit_test(a_busy_decoder_is_waited_for), cmocka_unit_test(no_more_files_is_no_fault_of_a_row),
          cmocka_unit_test(a_file_that_is_never_done_ends_the_run), cmocka_unit_test(media_that_only_the_encoder_refuses),
          cmocka_unit_test(what_comes_as_pixels_is_the_one_that_is_refused),
          cmocka_unit_test(a_medium_that_goes_away_after_its_draw_is_passed_over))
