/* A recipe trains from annotation files and real media: the rows are those that seed and step name, bad ones are passed over up to a share. */
#include "tests/support/training.h"

#include <math.h>
#include <png.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/sha256.h"
#include "common/text.h"
#include "tests/support/test.h"
#include "trainer/data/source.h"
#include "trainer/steps/feed.h"
#include "trainer/world/files.h"

#define GROUPS                                                                                                                     \
    "    groups:\n"                                                                                                                \
    "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n"
#define REFCOCO "source: refcoco, annotations: data/refs.json, media: data/images, split: train, skip_most: .5"

/* data/: 8 images of 48 pixels, as wide as the model's, and 3 films of 6 frames, with all annotation files. */
static void data_write_as(int zoom)
{
    struct tpo_error err = {0};
    const struct tpo_world_export e = {.split = TPO_WORLD_TRAIN,
                                       .seed = 9,
                                       .n_images = 8,
                                       .n_clips = 3,
                                       .n_frames = 6,
                                       .side = 48,
                                       .zoom = zoom,
                                       .sentences = 4,
                                       .out = "data"};
    if (tpo_world_export(&e, &err) != TPO_OK) fail_msg("%s", err.message);
}

static void data_write(void)
{
    data_write_as(1);
}

static void text_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

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

static double number_after(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    if (at == NULL) fail_msg("%s is not in %s", key, line);
    return strtod(at + strlen(key), NULL);
}

/* How many rows had been passed over at a step; a log tells of it once. */
static int skipped_at(const char *log, int step)
{
    char line[2048];
    int n = -1;
    FILE *f = fopen(log, "r");
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL)
        if (strstr(line, " data_ms=") != NULL && (int)number_after(line, " step=") == step)
            n = (int)number_after(line, " skipped=");
    fclose(f);
    if (n < 0) fail_msg("%s: no step %d", log, step);
    return n;
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
    "    losses: {language: 1, region: 1}\n" GROUPS;

static void a_run_learns_from_files_and_goes_on_to_the_same_bits(void **state)
{
    (void)state;
    data_write();
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
        boxes = number_after(line, " boxes=");
        assert_true(isfinite(number_after(line, " language=")));
        assert_true(number_after(line, " language=") > 0);
        if (strstr(line, " region=") != NULL) assert_true(isfinite(number_after(line, " region=")));
        assert_int_equal(number_after(line, " skipped="), 0);
        assert_int_equal(number_after(line, " aborted="), 0);
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
    data_write();
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
    data_write();
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

/* The encoder refuses media that the trainer reads: too large for it, or not decoded in its time. They come as pixels, and the run is that of one process. */
static void media_that_only_the_encoder_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *setting, *value, *reason;
    } cases[] = {{"TPO_MEDIA_FILE_BYTES", "20000", "media_too_large"}, {"TPO_MEDIA_TIMEOUT", "10ms", "media_timeout"}};
    const char *const same[] = {"--model", "served", NULL};
    data_write_as(32);
    training_model(0);
    training_recipe("r.yaml", stage_of_names);
    training_run("r.yaml", "one", NULL, same);
    for (int i = 0; i < 2; i++) {
        struct training_mesh m;
        char out[32], log[64], said[64];
        snprintf(out, sizeof(out), "mesh-%d", i);
        snprintf(log, sizeof(log), "%s.log", out);
        snprintf(said, sizeof(said), "stage=encoder reason=%s", cases[i].reason);
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

/* Pictures that are drawn ahead, by name, go away before the encoder has asked for them: they are passed over, in their turn. */
static void a_medium_that_goes_away_after_its_draw_is_passed_over(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const stop[] = {"--model", "served", "--fault", "after_commit:1:stop", NULL};
    int status = 0;
    data_write();
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

/* --- rows -------------------------------------------------------------------------------------------------------------------------------------- */

static void rows_are_named_by_seed_and_step(void **state)
{
    (void)state;
    enum { STEPS = 6 };
    char first[STEPS][4][TPO_SHA256_HEX], again[TPO_SHA256_HEX];
    data_write();
    text_write("data/images/000003.png", "no picture");
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
    data_write();
    training_model(0);
    training_recipe("r.yaml", "  - name: files\n    steps: 9\n    micro_batches: 2\n    data:\n"
                              "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 2, "
                              "conversations: 3, end: .25}\n"
                              "    losses: {language: 1}\n" GROUPS);
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
    data_write();
    training_model(0);
    training_recipe("r.yaml", "  - name: files\n    steps: 9\n    data:\n"
                              "      - {source: videochat2, annotations: data/image_it.json, media: data/images, samples: 1, "
                              "skip_most: .2}\n"
                              "    losses: {language: 1}\n" GROUPS);
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
    data_write();
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
                 "    losses: {language: 1}\n" GROUPS,
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
                              "    losses: {language: 1}\n" GROUPS);
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

static void run_refused(const char *out, const char *expected, const char *more)
{
    char err[64], log[64];
    assert_int_equal(training_wait(training_start("r.yaml", out, NULL, NULL), 60), 1);
    snprintf(err, sizeof(err), "%s.err", out);
    snprintf(log, sizeof(log), "%s.log", out);
    if (!training_says(err, expected) || !training_says(err, more)) fail_msg("%s: not \"%s\" with \"%s\"", err, expected, more);
}

static void bad_media_are_passed_over_then_stop_the_run(void **state)
{
    (void)state;
    char stage[2048];
    static const char format[] =
        "  - name: files\n    steps: 6\n    data:\n"
        "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: %s, samples: 2}\n"
        "    losses: {language: 1}\n" GROUPS;
    data_write();
    training_model(0);
    text_write("data/images/000003.png", "no picture");
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
    run_refused("stopped", "INVALID_ARGUMENT: 2 of 8 rows are bad, 1 for their media: ", "000003.png: ");
    snprintf(stage, sizeof(stage), format, "0");
    training_recipe("r.yaml", stage);
    run_refused("begun", "INVALID_ARGUMENT: 1 of 8 rows are bad, most often \"missing media\"", "000005.png");

    for (int i = 0; i < 8; i++) {
        char path[64];
        snprintf(path, sizeof(path), "data/images/%06d.png", i);
        text_write(path, "no picture");
    }
    snprintf(stage, sizeof(stage), format, "1");
    training_recipe("r.yaml", stage);
    run_refused("none", "INVALID_ARGUMENT: 64 rows drawn for one sample are bad: ", ".png: ");
}

/* Six steps of two pictures each, of 8 of which two are broken: which are drawn when is the seed's. */
static void two_are_broken(const char *skip_most)
{
    char stage[2048];
    snprintf(stage, sizeof(stage),
             "  - name: files\n    steps: 6\n    data:\n"
             "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: %s, samples: 2}\n"
             "    losses: {language: 1}\n" GROUPS,
             skip_most);
    data_write();
    training_model(0);
    training_recipe("r.yaml", stage);
    text_write("data/images/000003.png", "no picture");
    text_write("data/images/000006.png", "no picture");
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
        if (strstr(line, " data_ms=") != NULL) step = (int)number_after(line, " step=");
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
    data_write();
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

/* No picture of two megapixels is decoded in a millisecond. To pass over it would be a matter of the machine. */
static void a_file_that_is_never_done_ends_the_run(void **state)
{
    (void)state;
    struct filling f;
    tpo_media_t *media = NULL;
    data_write_as(32);
    training_model(0);
    filling_open(&f, &media, 1);
    fill(&f);
    assert_int_equal(f.rc, TPO_FAILED_PRECONDITION);
    assert_string_equal(f.err.reason, "media_slow");
    filling_close(&f, media);
}

static void refused(const char *data, const char *expected)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    char text[1024];
    snprintf(text, sizeof(text),
             "name: x\nmodel: m\nstages:\n  - name: s\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {%s}\n" GROUPS,
             data);
    text_write("bad.yaml", text);
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
    text_write("bad.yaml",
               "name: x\nmodel: m\nstages:\n  - name: s\n    steps: 1\n    losses: {language: 1, slot: .1}\n    data: [{" REFCOCO
               "}]\n" GROUPS);
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    assert_int_equal(tpo_recipe_load(&r, "bad.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "bad.yaml:4: dense and slot need the world's truth"));
}

/* Also of a stage that would come much later. */
static void missing_files_are_found_before_the_first_step(void **state)
{
    (void)state;
    data_write();
    training_model(0);
    char stages[2048];
    snprintf(stages, sizeof(stages),
             "  - name: now\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {frames: 1, conversations: 2}\n" GROUPS
             "  - name: later\n    steps: 1\n    losses: {language: 1}\n    data:\n      - {" REFCOCO "}\n" GROUPS);
    training_recipe("r.yaml", stages);
    assert_int_equal(rename("data/refs.json", "refs.away"), 0);
    run_refused("out", "NOT_FOUND: stage later: data/refs.json cannot be read", "");
    assert_int_equal(access("out/1-now", F_OK), -1);

    const char *const data[] = {"--data", "elsewhere", NULL};
    assert_int_equal(rename("refs.away", "data/refs.json"), 0);
    assert_int_equal(training_wait(training_start("r.yaml", "moved", NULL, data), 60), 1);
    assert_true(training_says("moved.err", "NOT_FOUND: stage later: elsewhere/data/refs.json cannot be read"));
}

TPO_TESTS(cmocka_unit_test(a_run_learns_from_files_and_goes_on_to_the_same_bits), cmocka_unit_test(over_a_mesh_it_is_the_same),
          cmocka_unit_test(a_frozen_encoder_takes_what_is_cached), cmocka_unit_test(media_that_only_the_encoder_refuses),
          cmocka_unit_test(a_medium_that_goes_away_after_its_draw_is_passed_over),
          cmocka_unit_test(rows_are_named_by_seed_and_step), cmocka_unit_test(an_epoch_shows_every_picture_once_as_it_is),
          cmocka_unit_test(a_missing_picture_leaves_the_others_in_their_order),
          cmocka_unit_test(films_are_sampled_as_the_recipe_says),
          cmocka_unit_test(films_that_no_message_of_a_mesh_holds_are_refused),
          cmocka_unit_test(bad_media_are_passed_over_then_stop_the_run),
          cmocka_unit_test(a_run_with_bad_media_goes_on_to_the_same_bits_and_counts),
          cmocka_unit_test(a_run_past_its_share_of_bad_media_stops_at_the_same_step),
          cmocka_unit_test(a_busy_decoder_is_waited_for), cmocka_unit_test(a_file_that_is_never_done_ends_the_run),
          cmocka_unit_test(recipes_with_a_bad_source_are_refused), cmocka_unit_test(missing_files_are_found_before_the_first_step))
