/* A recipe trains from annotation files and real media: the rows are those that seed and step name. Bad ones: test_bad_media.c. */
#include "tests/support/training.h"

#include <math.h>
#include <png.h>
#include <signal.h>
#include <unistd.h>

#include "common/sha256.h"
#include "common/text.h"
#include "tests/support/annotated.h"
#include "tests/support/test.h"
#include "trainer/steps/feed.h"
#include "trainer/world/files.h"

#define REFCOCO "source: refcoco, annotations: data/refs.json, media: data/images, split: train, skip_most: .5"

static struct tpo_recipe *recipe_of(const char *name)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    if (tpo_recipe_load(&r, name, &err) != TPO_OK) fail_msg("%s", err.message);
    return r;
}

static struct tpo_feed *feed_of(const struct tpo_recipe *r, int first_step)
{
    static struct tpo_config config;
    struct tpo_feed *f = NULL;
    struct tpo_error err = {0};
    char program[4096];
    snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
    if (tpo_config_load(&config, "tiny", &err) != TPO_OK) fail_msg("%s", err.message);
    const struct tpo_feed_options o = {.recipe = r, .first_step = first_step, .config = &config, .media_program = program};
    if (tpo_feed_open(&f, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    return f;
}

static const struct tpo_world_batch *next_of(struct tpo_feed *f)
{
    const struct tpo_world_batch *b = NULL;
    struct tpo_error err = {0};
    if (tpo_feed_next(f, &b, &err) != TPO_OK) fail_msg("%s: %s", err.reason, err.message);
    return b;
}

/* Everything that a step would see of a batch. */
static void batch_hash(char hex[TPO_SHA256_HEX], const struct tpo_world_batch *b)
{
    uint8_t digest[TPO_SHA256_BYTES];
    struct tpo_text all = {0};
    for (int i = 0; i < b->n; i++) {
        const struct tpo_sample *s = &b->samples[i];
        assert_null(s->media_id);
        tpo_text_printf(&all, "%d %d %d|", s->n_frames, s->height, s->width);
        tpo_text_add(&all, s->pixels, (size_t)s->n_frames * (size_t)s->height * (size_t)s->width * 3);
        for (int k = 0; k < s->n_conversations; k++) {
            const struct tpo_conversation *c = &s->conversations[k];
            tpo_text_printf(&all, "%s|%s|%g", c->turns[0].question, c->turns[0].answer, (double)c->weight_end);
            tpo_text_add(&all, c->boxes, (size_t)c->n_boxes * sizeof(c->boxes[0]));
        }
    }
    assert_false(all.failed);
    tpo_sha256(digest, all.data, all.size);
    tpo_sha256_hex(hex, digest);
    tpo_text_free(&all);
}

/* --- a run --------------------------------------------------------------------------------------------------------------------------------- */

static const char stage_of_all[] =
    "  - name: files\n"
    "    steps: 3\n"
    "    micro_batches: 4\n"
    "    data:\n"
    "      - {share: 2, " REFCOCO ", samples: 2}\n"
    "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 2, conversations: 2, skip_most: "
    ".5}\n"
    "      - {source: videochat2, annotations: data/video_it.json, media: data/videos, frames: 3}\n"
    "      - {source: mvbench, annotations: data/mvbench/moving_direction.json, media: data/videos, skip_most: 0}\n"
    "      - {frames: 1, samples: 1, conversations: 2}\n"
    "    losses: {language: 1, region: 1}\n" ANNOTATED_ALL;

static void a_run_learns_from_files_and_goes_on_to_the_same_bits(void **state)
{
    (void)state;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stage_of_all);
    training_run("r.yaml", "whole", NULL, NULL);
    const char *const fault[] = {"--checkpoint-every", "1", "--fault", "after_commit:2", NULL}, *const every[] = {
                                                                                                    "--checkpoint-every", "1",
                                                                                                    NULL};
    assert_int_equal(training_wait(training_start("r.yaml", "killed", NULL, fault), 60), 128 + SIGKILL);
    training_run("r.yaml", "killed", NULL, every);
    training_same_model("whole", "killed", "1-files");

    FILE *f = fopen("whole.log", "r");
    char line[2048];
    int n = 0;
    double boxes = 0;
    while (fgets(line, sizeof(line), f) != NULL) {
        if (strstr(line, " data_ms=") == NULL) continue;
        n++;
        boxes = annotated_number(line, " boxes=");
        assert_true(isfinite(annotated_number(line, " language=")));
        assert_true(annotated_number(line, " language=") > 0);
        if (strstr(line, " region=") != NULL) assert_true(isfinite(annotated_number(line, " region=")));
        assert_int_equal(annotated_number(line, " skipped="), 0);
        assert_int_equal(annotated_number(line, " aborted="), 0);
    }
    fclose(f);
    assert_int_equal(n, 3);
    assert_true(boxes > 0);
    assert_true(training_says("whole.log", "event=source"));
}

/* The trainer decodes, so services see what they see of the world. */
static void over_a_mesh_it_is_the_same(void **state)
{
    (void)state;
    struct training_mesh m;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stage_of_all);
    training_mesh_start(&m, "served", 1, 2);
    training_run("r.yaml", "mesh", &m, NULL);
    training_mesh_stop(&m);
    training_run("r.yaml", "one", NULL, NULL);
    training_same_lines("one", "mesh");
    training_same_model("one", "mesh", "1-files");
}

/* Adapters and head learn, the encoder does not: its samples name their media. */
static const char stage_on_names[] =
    "  - name: names\n"
    "    steps: 16\n"
    "    micro_batches: 2\n"
    "    data:\n"
    "      - {share: 2, source: videochat2, annotations: data/image_it.json, media: data/images, samples: 2, conversations: 2}\n"
    "      - {source: videochat2, annotations: data/video_it.json, media: data/videos, samples: 2, conversations: 2}\n"
    "      - {source: videochat2, annotations: data/video_it.json, media: data/videos, frames: 3}\n"
    "    losses: {language: 1}\n"
    "    groups:\n"
    "      - {name: lora, optimiser: adamw, rate: 2e-3, tensors: ['lm.*lora_A.*', 'lm.*lora_B.*']}\n";

static int redis_number(const char *command, const char *key)
{
    char text[256], line[256];
    int n = -1;
    snprintf(text, sizeof(text), "redis-cli -s redis.sock %s", command);
    FILE *f = popen(text, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) n = atoi(line + strlen(key));
    pclose(f);
    return n;
}

/* The encoder has none of the media at first and asks for them; what it made of them once it takes from serving's cache. */
static void a_frozen_encoder_takes_what_is_cached(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const same[] = {"--model", "served", NULL};
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", stage_on_names);
    training_run("r.yaml", "one", NULL, same);
    assert_int_equal(
        system("redis-server --port 0 --unixsocket redis.sock --save '' --daemonize yes --dir . --pidfile redis.pid >redis.log "
               "&& until redis-cli -s redis.sock ping; do sleep .1; done >/dev/null 2>&1"),
        0);
    char path[4096], cache[5000];
    assert_non_null(getcwd(path, sizeof(path)));
    snprintf(cache, sizeof(cache), "unix:%s/redis.sock", path);
    setenv("TPO_CACHE", cache, 1);
    training_mesh_start(&m, "served", 1, 2);
    training_run("r.yaml", "mesh", &m, same);
    training_mesh_stop(&m);
    unsetenv("TPO_CACHE");
    const int kept = redis_number("dbsize", ""), hits = redis_number("info stats", "keyspace_hits:");
    assert_int_equal(system("redis-cli -s redis.sock shutdown nosave"), 0);
    training_same_lines("one", "mesh");
    training_same_model("one", "mesh", "1-names");
    assert_int_equal(kept, 8 + 3); /* images and films */
    assert_true(hits > kept);
}

/* --- rows -------------------------------------------------------------------------------------------------------------------------------------- */

static void rows_are_named_by_seed_and_step(void **state)
{
    (void)state;
    enum { STEPS = 6 };
    char first[STEPS][4][TPO_SHA256_HEX], again[TPO_SHA256_HEX];
    annotated_write();
    annotated_text("data/images/000003.png", "no picture");
    training_model(0);
    training_recipe("r.yaml", stage_of_all);
    struct tpo_recipe *r = recipe_of("r.yaml");
    struct tpo_feed *f = feed_of(r, 1);
    int repeated = 0;
    for (int s = 0; s < STEPS; s++) {
        const struct tpo_world_batch *b = next_of(f);
        for (int m = 0; m < 4; m++) batch_hash(first[s][m], &b[m]);
        for (int m = 0; s > 0 && m < 4; m++) repeated += strcmp(first[s][m], first[s - 1][m]) == 0;
    }
    assert_int_equal(repeated, 0);
    assert_true(tpo_feed_skipped(f) > 0);
    tpo_feed_close(f);
    f = feed_of(r, 4);
    for (int s = 3; s < STEPS; s++) {
        const struct tpo_world_batch *b = next_of(f);
        for (int m = 0; m < 4; m++) {
            batch_hash(again, &b[m]);
            assert_string_equal(first[s][m], again);
        }
    }
    tpo_feed_close(f);
    tpo_recipe_close(r);
}

static void png_read(const char *path, uint8_t *pixels)
{
    png_image image = {.version = PNG_IMAGE_VERSION};
    assert_true(png_image_begin_read_from_file(&image, path));
    image.format = PNG_FORMAT_RGB;
    assert_int_equal(image.width * image.height, 48 * 48);
    assert_true(png_image_finish_read(&image, NULL, pixels, 0, NULL));
}

static void an_epoch_shows_every_picture_once_as_it_is(void **state)
{
    (void)state;
    int seen[8] = {0};
    static uint8_t files[8][48 * 48 * 3];
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", "  - name: files\n    steps: 9\n    micro_batches: 2\n    data:\n"
                              "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 2, "
                              "conversations: 3, end: .25}\n"
                              "    losses: {language: 1}\n" ANNOTATED_ALL);
    for (int i = 0; i < 8; i++) {
        char path[64];
        snprintf(path, sizeof(path), "data/images/%06d.png", i);
        png_read(path, files[i]);
    }
    struct tpo_recipe *r = recipe_of("r.yaml");
    struct tpo_feed *f = feed_of(r, 1);
    for (int s = 0; s < 2; s++) {
        const struct tpo_world_batch *b = next_of(f);
        for (int k = 0; k < 4; k++) {
            const struct tpo_sample *sample = &b[k / 2].samples[k % 2];
            assert_int_equal(sample->n_frames, 1);
            assert_in_range(sample->n_conversations, 1, 3);
            assert_float_equal(sample->conversations[0].weight_end, .25F, 0);
            for (int i = 0; i < 8; i++) seen[i] += memcmp(files[i], sample->pixels, sizeof(files[i])) == 0;
        }
    }
    for (int i = 0; i < 8; i++) assert_int_equal(seen[i], 1);
    tpo_feed_close(f);
    tpo_recipe_close(r);
}

/* What is drawn in place of a picture that is not there is another one; nothing else moves. */
static void a_missing_picture_leaves_the_others_in_their_order(void **state)
{
    (void)state;
    char before[8][TPO_SHA256_HEX], after[TPO_SHA256_HEX];
    int moved = 0;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", "  - name: files\n    steps: 9\n    data:\n"
                              "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 1, "
                              "skip_most: .2}\n"
                              "    losses: {language: 1}\n" ANNOTATED_ALL);
    struct tpo_recipe *r = recipe_of("r.yaml");
    struct tpo_feed *f = feed_of(r, 1);
    for (int s = 0; s < 8; s++) batch_hash(before[s], next_of(f));
    tpo_feed_close(f);
    assert_int_equal(unlink("data/images/000005.png"), 0);
    f = feed_of(r, 1);
    for (int s = 0; s < 8; s++) {
        batch_hash(after, next_of(f));
        moved += strcmp(before[s], after) != 0;
    }
    assert_int_equal(moved, 1);
    assert_int_equal(tpo_feed_skipped(f), 1);
    tpo_feed_close(f);
    tpo_recipe_close(r);
}

static void films_are_sampled_as_the_recipe_says(void **state)
{
    (void)state;
    annotated_write();
    training_model(0);
    for (int frames = 0; frames <= 5; frames += frames == 0 ? 3 : 2) {
        char stages[1024], given[32] = "";
        struct tpo_config config;
        struct tpo_error err = {0};
        struct tpo_feed *f = NULL;
        if (frames > 0) snprintf(given, sizeof(given), "frames: %d, ", frames);
        snprintf(stages, sizeof(stages),
                 "  - name: files\n    steps: 9\n    data:\n      - {%ssource: videochat2, annotations: data/video_it.json, media: "
                 "data/videos}\n"
                 "    losses: {language: 1}\n" ANNOTATED_ALL,
                 given);
        training_recipe("r.yaml", stages);
        struct tpo_recipe *r = recipe_of("r.yaml");
        if (frames < 5) {
            f = feed_of(r, 1);
            assert_int_equal(next_of(f)->samples[0].n_frames, frames == 0 ? 4 : frames);
            tpo_feed_close(f);
        } else {
            char program[4096];
            snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
            assert_int_equal(tpo_config_load(&config, "tiny", &err), TPO_OK);
            const struct tpo_feed_options o = {.recipe = r, .first_step = 1, .config = &config, .media_program = program};
            assert_int_equal(tpo_feed_open(&f, &o, &err), TPO_INVALID_ARGUMENT);
            assert_string_equal(err.reason, "frames");
        }
        tpo_recipe_close(r);
    }
}

/* Only the file tells that its rows are films: pictures of that number would fit. */
static void films_that_no_message_of_a_mesh_holds_are_refused(void **state)
{
    (void)state;
    static const char *const kinds[] = {"image", "video"};
    char program[4096];
    struct tpo_config config;
    training_model(0);
    assert_int_equal(system("mkdir m && echo x >m/a"), 0);
    snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
    training_recipe("r.yaml", "  - name: files\n    steps: 9\n    data:\n"
                              "      - {source: videochat2, annotations: rows.json, media: m, samples: 600}\n"
                              "    losses: {language: 1}\n" ANNOTATED_ALL);
    struct tpo_recipe *r = recipe_of("r.yaml");
    struct tpo_error err = {0};
    assert_int_equal(tpo_config_load(&config, "tiny", &err), TPO_OK);
    config.vision_encoder.img_size = 128;
    for (int over_mesh = 0; over_mesh < 2; over_mesh++)
        for (int film = 0; film < 2; film++) {
            struct tpo_feed *f = NULL;
            FILE *rows = fopen("rows.json", "w");
            for (int i = 0; i < 1000; i++)
                fprintf(rows, "%s{\"%s\":\"a\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}", i > 0 ? "," : "[", kinds[film]);
            fputs("]", rows);
            fclose(rows);
            const struct tpo_feed_options o = {
                .recipe = r, .first_step = 1, .config = &config, .over_mesh = over_mesh, .media_program = program};
            const int rc = tpo_feed_open(&f, &o, &err);
            assert_int_equal(rc, over_mesh && film ? TPO_INVALID_ARGUMENT : TPO_OK);
            if (rc != TPO_OK) assert_string_equal(err.reason, "samples");
            tpo_feed_close(f);
        }
    tpo_recipe_close(r);
}

/* --- what is bad ------------------------------------------------------------------------------------------------------------------------------- */

static void refused(const char *data, const char *expected)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    char text[1024];
    snprintf(
        text, sizeof(text),
        "name: x\nmodel: m\nstages:\n  - name: s\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {%s}\n" ANNOTATED_ALL,
        data);
    annotated_text("bad.yaml", text);
    assert_int_equal(tpo_recipe_load(&r, "bad.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "recipe");
    if (strstr(err.message, expected) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.message, expected);
}

static void recipes_with_a_bad_source_are_refused(void **state)
{
    (void)state;
    refused("source: coco, annotations: a, media: m", "bad.yaml:8: \"coco\" is not one of");
    refused("source: refcoco, annotations: a", "bad.yaml:8: a source needs annotations and media");
    refused("source: refcoco, media: m", "bad.yaml:8: a source needs annotations and media");
    refused("source: refcoco, annotations: '', media: m", "bad.yaml:8: a path is needed");
    refused("source: refcoco, annotations: a, media: m, skip_most: -.1", "bad.yaml:8: -.1 is outside");
    refused("source: refcoco, annotations: a, media: m, skip_most: 1.1", "bad.yaml:8: 1.1 is outside");
    refused("source: refcoco, annotations: a, media: m, share: -1", "bad.yaml:8: -1 is outside");
    refused("source: refcoco, annotations: a, media: m, conversations: 0", "bad.yaml:8: 0 is outside");
    refused("source: refcoco, annotations: a, media: m, dense: true", "bad.yaml:8: unknown key \"dense\"");
    refused("source: refcoco, annotations: a, media: m, skip: 1", "bad.yaml:8: unknown key \"skip\"");
    refused("annotations: a, media: m", "bad.yaml:8: unknown key \"annotations\"");
    refused("source: mvbench, annotations: a, media: m, instances: i", "bad.yaml:8: instances and split are refcoco's");
    annotated_text(
        "bad.yaml",
        "name: x\nmodel: m\nstages:\n  - name: s\n    steps: 1\n    losses: {language: 1, slot: .1}\n    data: [{" REFCOCO
        "}]\n" ANNOTATED_ALL);
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    assert_int_equal(tpo_recipe_load(&r, "bad.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "bad.yaml:4: dense and slot need the world's truth"));
}

/* Also of a stage that would come much later. */
static void missing_files_are_found_before_the_first_step(void **state)
{
    (void)state;
    annotated_write();
    training_model(0);
    char stages[2048];
    snprintf(
        stages, sizeof(stages),
        "  - name: now\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {frames: 1, conversations: 2}\n" ANNOTATED_ALL
        "  - name: later\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {" REFCOCO "}\n" ANNOTATED_ALL);
    training_recipe("r.yaml", stages);
    assert_int_equal(rename("data/refs.json", "refs.away"), 0);
    annotated_refused("out", "NOT_FOUND: stage later: data/refs.json cannot be read", "");
    assert_int_equal(access("out/1-now", F_OK), -1);

    /* The boxes lie beside it, though no key names them. */
    assert_int_equal(rename("refs.away", "data/refs.json"), 0);
    assert_int_equal(rename("data/instances.json", "instances.away"), 0);
    annotated_refused("out", "NOT_FOUND: stage later: data/instances.json cannot be read", "");
    assert_int_equal(access("out/1-now", F_OK), -1);
    assert_int_equal(rename("instances.away", "data/instances.json"), 0);

    const char *const data[] = {"--data", "elsewhere", NULL};
    assert_int_equal(training_wait(training_start("r.yaml", "moved", NULL, data), 60), 1);
    assert_true(training_says("moved.err", "NOT_FOUND: stage later: elsewhere/data/refs.json cannot be read"));
}

TPO_TESTS(cmocka_unit_test(a_run_learns_from_files_and_goes_on_to_the_same_bits), cmocka_unit_test(over_a_mesh_it_is_the_same),
          cmocka_unit_test(a_frozen_encoder_takes_what_is_cached), cmocka_unit_test(rows_are_named_by_seed_and_step),
          cmocka_unit_test(an_epoch_shows_every_picture_once_as_it_is),
          cmocka_unit_test(a_missing_picture_leaves_the_others_in_their_order),
          cmocka_unit_test(films_are_sampled_as_the_recipe_says),
          cmocka_unit_test(films_that_no_message_of_a_mesh_holds_are_refused),
          cmocka_unit_test(recipes_with_a_bad_source_are_refused), cmocka_unit_test(missing_files_are_found_before_the_first_step))
