/* The scores: the small model in models/ sees, another scene's pixels don't help it, and random weights know nothing. */
#include "tests/support/test.h"

#include <jansson.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "trainer/eval/eval.h"
#include "trainer/model_folder.h"

static struct tpo_stream *stream;

static struct tpo_asker *model_open(const char *folder)
{
    struct tpo_asker *a = NULL;
    struct tpo_error err = {0};
    if (tpo_stream_open(&stream, "cpu", 1, &err) != TPO_OK) fail_msg("%s", err.message);
    if (tpo_asker_open(&a, stream, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    return a;
}

static void model_close(struct tpo_asker *a)
{
    tpo_asker_close(a);
    tpo_stream_close(stream);
}

static int eval_run(const char *arguments)
{
    char command[9000];
    snprintf(command, sizeof(command), "%s/tpo-trainer eval %s/models/small %s >out 2>err", tpo_test_build(), tpo_test_source(),
             arguments);
    return WEXITSTATUS(system(command));
}

static struct tpo_eval_row row_of(struct tpo_asker *a, enum tpo_world_kind kind, int frames, int n)
{
    struct tpo_eval_row row;
    struct tpo_error err = {0};
    if (tpo_eval_row(a, &row, TPO_WORLD_HELD_OUT, kind, frames, TPO_WORLD_TRAINED_PHRASING, n, true, &err) != TPO_OK)
        fail_msg("%s", err.message);
    assert_int_equal(row.seen.n, n);
    assert_int_equal(row.blind.n, n);
    return row;
}

/* What no score is published of: clips of 4 frames. */
static void short_clips_are_seen(void **state)
{
    (void)state;
    static const struct {
        enum tpo_world_kind kind;
        int frames;
        double least, blind;
    } bars[] = {{TPO_KIND_ATTRIBUTE_BOX, 4, .85, .2}, {TPO_KIND_COUNT, 4, .75, .5}, {TPO_KIND_DIRECTION, 4, .85, .5}};
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    struct tpo_asker *a = model_open(folder);
    for (size_t i = 0; i < sizeof(bars) / sizeof(bars[0]); i++) {
        const struct tpo_eval_row row = row_of(a, bars[i].kind, bars[i].frames, 40);
        const double seen = tpo_score_value(&row.seen, bars[i].kind), blind = tpo_score_value(&row.blind, bars[i].kind);
        if (!(seen >= bars[i].least) || !(blind <= bars[i].blind))
            fail_msg("%s, %d frames: %.3f seen, %.3f blind", tpo_world_kind_name(bars[i].kind), bars[i].frames, seen, blind);
        assert_true(row.seen.routed >= 38);
    }
    model_close(a);
}

/* A share of `n` may miss that of many by chance alone, on a CPU whose sums have another order: by three deviations. */
static double least_of(double published, double n)
{
    return published - 3 * sqrt(fmax(published * (1 - published), .02) / n);
}

static void check_share(const char *what, const char *kind, double got, double published, double n)
{
    if (!(got >= least_of(published, n))) fail_msg("%s, %s: %.3f of %g, published %.3f", what, kind, got, n, published);
}

/* Every kind of one table, as the file in models/ has them. */
static void check_scores(const char *what, json_t *got, json_t *published)
{
    const char *kind;
    json_t *row;
    assert_int_equal(json_object_size(got), json_object_size(published));
    json_object_foreach(published, kind, row)
    {
        json_t *theirs = json_object_get(row, "seen"), *ours = json_object_get(json_object_get(got, kind), "seen");
        const double n = json_number_value(json_object_get(ours, "n")), hard = json_number_value(json_object_get(ours, "hard"));
        assert_true(n >= 40);
        check_share(what, kind, json_number_value(json_object_get(ours, "score")),
                    json_number_value(json_object_get(theirs, "score")), n);
        if (json_object_get(theirs, "hard") == NULL) continue;
        assert_true(hard > 20);
        check_share(what, "hard relations", json_number_value(json_object_get(ours, "hard_right")) / hard,
                    json_number_value(json_object_get(theirs, "hard_right")) / json_number_value(json_object_get(theirs, "hard")),
                    hard);
    }
}

static void the_small_model_scores_what_is_published(void **state)
{
    (void)state;
    static const char *const tables[][2] = {
        {"held_out", "image"}, {"held_out", "clip"}, {"new_pairs", "image"}, {"new_pairs", "clip"}};
    char path[4096];
    assert_int_equal(eval_run("--n 40 --out ."), 0);
    snprintf(path, sizeof(path), "%s/models/small/scores.json", tpo_test_source());
    json_t *got = json_load_file("scores.json", 0, NULL), *published = json_load_file(path, 0, NULL);
    assert_non_null(got);
    assert_non_null(published);
    for (int i = 0; i < 4; i++)
        check_scores(tables[i][0], json_object_get(json_object_get(got, tables[i][0]), tables[i][1]),
                     json_object_get(json_object_get(published, tables[i][0]), tables[i][1]));
    json_t *routing = json_object_get(got, "routing");
    assert_true(json_number_value(json_object_get(routing, "trained")) >= .99);
    assert_true(json_number_value(json_object_get(routing, "unseen")) >= .99);
    json_decref(got);
    json_decref(published);
}

static void answers_do_not_depend_on_company(void **state)
{
    (void)state;
    enum { N = 12 };
    static struct tpo_world_item items[N];
    static struct tpo_asker_answer together[N], alone;
    char folder[4096];
    struct tpo_error err = {0};
    struct tpo_world *w = NULL;
    struct tpo_arena arena;
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    struct tpo_asker *a = model_open(folder);
    const struct tpo_world_options options = {.split = TPO_WORLD_HELD_OUT, .seed = tpo_world_first_seed(TPO_WORLD_HELD_OUT) + 9};
    tpo_arena_init(&arena, 1 << 20, 0);
    assert_int_equal(tpo_world_open(&w, &options, &err), TPO_OK);
    for (int i = 0; i < N; i++)
        assert_int_equal(tpo_world_item(w, &arena, i % TPO_KIND_DIRECTION, 1, TPO_WORLD_ANY_PHRASING, (uint64_t)i, &items[i], &err),
                         TPO_OK);
    assert_int_equal(tpo_asker_run(a, items, N, together, NULL, &err), TPO_OK);
    for (int i = 0; i < N; i++) {
        assert_int_equal(tpo_asker_run(a, &items[i], 1, &alone, NULL, &err), TPO_OK);
        assert_string_equal(alone.text, together[i].text);
        assert_int_equal(alone.called, together[i].called);
        assert_memory_equal(alone.box, together[i].box, sizeof(alone.box));
    }
    tpo_arena_free(&arena);
    tpo_world_close(w);
    model_close(a);
}

static void random_weights_know_nothing(void **state)
{
    (void)state;
    static struct tpo_eval e;
    char from[4096];
    struct tpo_error err = {0};
    snprintf(from, sizeof(from), "%s/models/small", tpo_test_source());
    if (tpo_model_folder_write("random", from, 1, 7, TPO_F32, &err) != TPO_OK) fail_msg("%s", err.message);
    struct tpo_asker *a = model_open("random");
    e.split = TPO_WORLD_HELD_OUT;
    e.n = 6;
    e.frames = tpo_asker_frames(a);
    assert_int_equal(e.frames, 8);
    e.scored[0][TPO_KIND_ATTRIBUTE_BOX] = row_of(a, TPO_KIND_ATTRIBUTE_BOX, 1, 6);
    e.scored[0][TPO_KIND_COUNT] = row_of(a, TPO_KIND_COUNT, 1, 6);
    assert_int_equal(e.scored[0][TPO_KIND_ATTRIBUTE_BOX].seen.right, 0);
    assert_true(isnan(tpo_score_value(&e.unseen[0][0], TPO_KIND_ATTRIBUTE_BOX)));
    assert_int_equal(tpo_eval_write_markdown(&e, "scores.md"), 0);
    assert_int_equal(tpo_eval_write_json(&e, "scores.json"), 0);
    json_t *j = json_load_file("scores.json", 0, NULL);
    json_t *box = json_object_get(json_object_get(json_object_get(j, "held_out"), "image"), "attribute box");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(box, "seen"), "n")), 6);
    assert_true(json_is_null(json_object_get(json_object_get(j, "routing"), "unseen")));
    json_decref(j);
    model_close(a);
    memset(&e, 0, sizeof(e)); /* nothing asked: no number, and still JSON */
    assert_int_equal(tpo_eval_write_json(&e, "none.json"), 0);
    j = json_load_file("none.json", 0, NULL);
    assert_true(json_is_null(json_object_get(json_object_get(j, "routing"), "trained")));
    json_decref(j);
}

/* A last picture left over by the chunks would have no other to be asked about. */
static void a_blind_answer_is_never_about_its_own_picture(void **state)
{
    (void)state;
    struct tpo_world_item item = {0};
    struct tpo_asker_answer seen, blind;
    struct tpo_error err = {0};
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    struct tpo_asker *a = model_open(folder);
    assert_int_equal(tpo_asker_run(a, &item, 1, &seen, &blind, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "items");
    row_of(a, TPO_KIND_EXIST, 1, 101);
    model_close(a);
}

static json_t *scores_of(const char *arguments)
{
    char with_out[400];
    snprintf(with_out, sizeof(with_out), "--n 2 --images --out . %s", arguments);
    assert_int_equal(eval_run(with_out), 0);
    json_t *j = json_load_file("scores.json", 0, NULL);
    assert_non_null(j);
    return j;
}

static json_t *kind_of(json_t *scores, const char *split, const char *kind)
{
    return json_object_get(json_object_get(json_object_get(scores, split), "image"), kind);
}

/* Choices have scenes of their own, and a description no new pairs. */
static void each_split_is_scored_alone_or_with_all(void **state)
{
    (void)state;
    json_t *all = scores_of("--kinds 'how many,description'");
    assert_non_null(kind_of(all, "held_out", "description"));
    assert_null(kind_of(all, "new_pairs", "description"));
    assert_non_null(kind_of(all, "new_pairs", "how many"));
    assert_int_equal(system("grep -q 'Scores on held-out scenes' scores.md && "
                            "grep -Eq '^\\| description \\|[^|]+\\|[^|]+\\| - \\| - \\|' scores.md"),
                     0);
    json_decref(all);
    json_t *held_out = scores_of("--split held-out --kinds 'how many'");
    assert_non_null(kind_of(held_out, "held_out", "how many"));
    assert_null(kind_of(held_out, "new_pairs", "how many"));
    json_decref(held_out);
    json_t *validation = scores_of("--split validation --kinds 'how many'");
    assert_non_null(kind_of(validation, "validation", "how many"));
    assert_null(json_object_get(validation, "held_out"));
    assert_null(kind_of(validation, "new_pairs", "how many"));
    assert_int_equal(system("grep -q 'Scores on validation scenes' scores.md"), 0);
    json_decref(validation);
    assert_int_equal(eval_run("--n 2 --split train"), 2);
}

/* What is there stays; what cannot be written is told before the first question. */
static void an_out_that_cannot_be_written_is_told_first(void **state)
{
    (void)state;
    assert_int_equal(eval_run("--n 2 --images --out absent --kinds 'how many'"), 1);
    assert_int_equal(system("test ! -s out && grep -q 'absent/scores.md: No such file' err"), 0);
    assert_int_equal(system("mkdir -p half/scores.json && echo kept >half/scores.md"), 0);
    assert_int_equal(eval_run("--n 2 --images --out half --kinds 'how many'"), 1);
    assert_int_equal(system("test ! -s out && grep -q 'half/scores.json' err && grep -q kept half/scores.md"), 0);
}

/* Every value of the file that comes after its header, all bits set: NaN. */
static void poison(const char *path)
{
    uint64_t header;
    struct stat st;
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fread(&header, sizeof(header), 1, f), 1);
    assert_int_equal(fstat(fileno(f), &st), 0);
    assert_int_equal(fseek(f, (long)(8 + header), SEEK_SET), 0);
    for (long left = (long)st.st_size - (long)(8 + header); left > 0; left--) fputc(0xff, f);
    assert_int_equal(fclose(f), 0);
}

static void a_model_of_nan_is_an_error(void **state)
{
    (void)state;
    char from[4096], command[4200];
    struct tpo_eval_row row;
    struct tpo_error err = {0};
    snprintf(from, sizeof(from), "%s/models/small", tpo_test_source());
    if (tpo_model_folder_write("nan", from, 1, 7, TPO_F32, &err) != TPO_OK) fail_msg("%s", err.message);
    poison("nan/model.safetensors");
    struct tpo_asker *a = model_open("nan");
    assert_int_not_equal(tpo_eval_row(a, &row, TPO_WORLD_HELD_OUT, TPO_KIND_COUNT, 1, TPO_WORLD_TRAINED_PHRASING, 2, true, &err),
                         TPO_OK);
    assert_true(err.message[0] != '\0');
    model_close(a);
    snprintf(command, sizeof(command), "%s/tpo-trainer eval nan --n 2 --images --kinds 'how many' --out . >out 2>err",
             tpo_test_build());
    assert_int_equal(WEXITSTATUS(system(command)), 1);
    assert_int_equal(access("scores.json", F_OK), -1);
}

/* A model of 16 frames: the worlds' clips have 8 at most, which it takes where its positions are stretched; told before anything is asked. */
static void clips_the_model_cannot_take_are_told_first(void **state)
{
    (void)state;
    char command[4400];
    struct tpo_error err = {0};
    for (int stretched = 0; stretched < 2; stretched++) {
        snprintf(
            command, sizeof(command),
            "rm -rf from long && mkdir from && cp %s/models/small/*.json %s/models/small/tokenizer.model from && "
            "sed -i 's/\"num_frames\": 8/\"num_frames\": 16/; s/\"ext_position\": true/\"ext_position\": %s/' from/config.json",
            tpo_test_source(), tpo_test_source(), stretched ? "true" : "false");
        assert_int_equal(system(command), 0);
        if (tpo_model_folder_write("long", "from", 1, 7, TPO_F32, &err) != TPO_OK) fail_msg("%s", err.message);
        struct tpo_asker *a = model_open("long");
        assert_int_equal(tpo_asker_frames(a), 8);
        assert_int_equal(tpo_asker_takes(a, 1, &err), TPO_OK);
        assert_int_equal(tpo_asker_takes(a, 8, &err), stretched ? TPO_OK : TPO_INVALID_ARGUMENT);
        if (!stretched) assert_string_equal(err.reason, "frame_count");
        model_close(a);
        if (stretched) continue;
        snprintf(command, sizeof(command), "%s/tpo-trainer eval long --n 2 --kinds 'how many' >out 2>err", tpo_test_build());
        assert_int_equal(WEXITSTATUS(system(command)), 1);
        assert_int_equal(system("grep -q 'a clip of 8 frames' err"), 0);
    }
}

TPO_TESTS(cmocka_unit_test(the_small_model_scores_what_is_published), cmocka_unit_test(short_clips_are_seen),
          cmocka_unit_test(answers_do_not_depend_on_company), cmocka_unit_test(random_weights_know_nothing),
          cmocka_unit_test(a_model_of_nan_is_an_error), cmocka_unit_test(a_blind_answer_is_never_about_its_own_picture),
          cmocka_unit_test(each_split_is_scored_alone_or_with_all), cmocka_unit_test(an_out_that_cannot_be_written_is_told_first),
          cmocka_unit_test(clips_the_model_cannot_take_are_told_first))
