/* Annotation files of each source become samples; every kind of bad row is counted by its reason, and too many of them stop the run. */
#include "tests/support/test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "trainer/data/annotations.h"

static char said[4096];
static const char *const tokens[] = {"<boxes>", "<box_begin>", NULL};

static void on_bad(void *owner, const char *text)
{
    (void)owner;
    snprintf(said + strlen(said), sizeof(said) - strlen(said), "%s\n", text);
}

static void file_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int opened(struct tpo_annotations **a, enum tpo_annotation_source source, const char *rows, double skip_most,
                  struct tpo_error *err)
{
    said[0] = '\0';
    mkdir("media", 0755);
    file_write("media/a.png", "x");
    file_write("media/b.png", "x");
    file_write("rows.json", rows);
    return tpo_annotations_open(a,
                                &(struct tpo_annotations_options){.source = source,
                                                                  .annotations = "rows.json",
                                                                  .media = "media",
                                                                  .skip_most = skip_most,
                                                                  .seed = 5,
                                                                  .tokens = tokens,
                                                                  .on_bad = on_bad},
                                err);
}

#define REF(ann, file) "{\"ann_id\":" #ann ",\"image_id\":1,\"file_name\":\"" file "\",\"sentences\":[{\"sent\":\"the red star\"}]}"
static const char instances[] =
    "{\"images\":[{\"id\":1,\"width\":200,\"height\":100}],\"annotations\":["
    "{\"id\":1,\"image_id\":1,\"bbox\":[50,25,100,50]},{\"id\":2,\"image_id\":1,\"bbox\":[150,25,100,50]},"
    "{\"id\":3,\"image_id\":1,\"bbox\":[50,25,-10,50]},{\"id\":4,\"image_id\":1,\"bbox\":[null,25,10,50]},"
    "{\"id\":5,\"image_id\":9,\"bbox\":[0,0,10,50]}]}";

static void each_source_makes_samples(void **state)
{
    (void)state;
    static const float box[4] = {.25F, .25F, .75F, .75F};
    struct tpo_annotations *a = NULL;
    struct tpo_arena arena;
    struct tpo_sample s;
    struct tpo_error err;
    tpo_arena_init(&arena, 4096, 0);
    file_write("instances.json", instances);
    assert_int_equal(opened(&a, TPO_ANNOTATIONS_REFCOCO, "[" REF(1, "a.png") "]", 0, &err), TPO_OK);
    assert_int_equal(tpo_annotations_row(a, &arena, 0, &s, &err), TPO_OK);
    assert_string_equal(s.media_id, "a.png");
    assert_string_equal(s.conversations[0].turns[0].question, "Where is the red star?");
    assert_string_equal(s.conversations[0].turns[0].answer, "<box_begin><boxes>");
    assert_int_equal(s.conversations[0].n_boxes, 1);
    assert_memory_equal(s.conversations[0].boxes[0], box, sizeof(box));
    tpo_annotations_close(a);

    const char *chat = "[{\"image\":\"a.png\",\"QA\":[{\"i\":\"Look.\",\"q\":\"What?\",\"a\":\"red\"},{\"i\":\"\",\"q\":\"How "
                       "[many]?\",\"a\":\"3\"}]}]";
    assert_int_equal(opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, chat, 0, &err), TPO_OK);
    assert_int_equal(tpo_annotations_row(a, &arena, 0, &s, &err), TPO_OK);
    assert_int_equal(s.n_conversations, 2);
    assert_string_equal(s.conversations[0].turns[0].question, "Look. What?");
    assert_string_equal(s.conversations[1].turns[0].question, "How [many]?");
    tpo_annotations_close(a);

    const char *choice =
        "[{\"video\":\"b.png\",\"question\":\"What colour?\",\"candidates\":[\"red\",\"blue\"],\"answer\":\"blue\"}]";
    assert_int_equal(opened(&a, TPO_ANNOTATIONS_MVBENCH, choice, 0, &err), TPO_OK);
    assert_int_equal(tpo_annotations_row(a, &arena, 0, &s, &err), TPO_OK);
    assert_string_equal(s.conversations[0].turns[0].question, "What colour? (A) red (B) blue");
    assert_string_equal(s.conversations[0].turns[0].answer, "(B)");
    tpo_annotations_close(a);
    tpo_arena_free(&arena);
}

/* As RefCOCO has it: the row's own file_name is nobody's, and the rows for scores are in the same file. */
static void refcoco_takes_the_images_name_and_one_split(void **state)
{
    (void)state;
    struct tpo_annotations *a = NULL;
    struct tpo_arena arena;
    struct tpo_sample s;
    struct tpo_error err;
    tpo_arena_init(&arena, 4096, 0);
    mkdir("media", 0755);
    file_write("media/a.png", "x");
    file_write("instances.json", "{\"images\":[{\"id\":1,\"width\":200,\"height\":100,\"file_name\":\"a.png\"}],"
                                 "\"annotations\":[{\"id\":1,\"image_id\":1,\"bbox\":[50,25,100,50]}]}");
    file_write("rows.json", "[{\"ann_id\":1,\"file_name\":\"a_16.png\",\"split\":\"train\",\"sentences\":[{\"sent\":\"one\"}]},"
                            "{\"ann_id\":1,\"file_name\":\"a_17.png\",\"split\":\"testA\",\"sentences\":[{\"sent\":\"two\"}]},"
                            "{\"ann_id\":1,\"file_name\":\"a_18.png\",\"sentences\":[{\"sent\":\"three\"}]}]");
    struct tpo_annotations_options o = {
        .source = TPO_ANNOTATIONS_REFCOCO, .annotations = "rows.json", .media = "media", .split = "train", .skip_most = .5};
    if (tpo_annotations_open(&a, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(tpo_annotations_rows(a), 1);
    assert_int_equal(tpo_annotations_left_out(a), 1);
    assert_int_equal(tpo_annotations_bad(a, TPO_FAULT_ROW_BROKEN), 1);
    assert_int_equal(tpo_annotations_row(a, &arena, 0, &s, &err), TPO_OK);
    assert_string_equal(s.media_id, "a.png");
    assert_string_equal(s.conversations[0].turns[0].question, "Where is one?");
    tpo_annotations_close(a);
    o.split = "val";
    o.skip_most = 1;
    assert_int_equal(tpo_annotations_open(&a, &o, &err), TPO_INVALID_ARGUMENT);
    o.split = NULL;
    assert_int_equal(tpo_annotations_open(&a, &o, &err), TPO_OK);
    assert_int_equal(tpo_annotations_rows(a), 3);
    tpo_annotations_close(a);
    tpo_arena_free(&arena);
}

/* A missing number is not 0. */
static void what_has_no_id_is_nobodys(void **state)
{
    (void)state;
    struct tpo_annotations *a = NULL;
    struct tpo_error err;
    file_write("instances.json", "{\"images\":[{\"width\":200,\"height\":100,\"file_name\":\"b.png\"},"
                                 "{\"id\":1,\"width\":200,\"height\":100}],\"annotations\":["
                                 "{\"image_id\":1,\"bbox\":[50,25,100,50]},{\"id\":2,\"bbox\":[50,25,100,50]},"
                                 "{\"id\":3,\"image_id\":\"1\",\"bbox\":[50,25,100,50]},"
                                 "{\"id\":4,\"image_id\":1,\"bbox\":[50,25,100,50]}]}");
    const char *rows = "[" REF(0, "a.png") "," REF(2, "a.png") "," REF(3, "a.png") "," REF(4, "a.png") "]";
    if (opened(&a, TPO_ANNOTATIONS_REFCOCO, rows, .75, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(tpo_annotations_bad(a, TPO_FAULT_ROW_BROKEN), 1);
    assert_int_equal(tpo_annotations_bad(a, TPO_FAULT_ROW_BOX), 2);
    assert_int_equal(tpo_annotations_rows(a), 1);
    tpo_annotations_close(a);
}

static void bad_rows_are_counted_by_reason(void **state)
{
    (void)state;
    static const struct {
        enum tpo_annotation_source source;
        const char *row, *why;
        enum tpo_annotation_fault fault;
    } rows[] = {
        {TPO_ANNOTATIONS_REFCOCO, REF(2, "a.png"), "outside", TPO_FAULT_ROW_BOX},
        {TPO_ANNOTATIONS_REFCOCO, REF(3, "a.png"), "inverted", TPO_FAULT_ROW_BOX},
        {TPO_ANNOTATIONS_REFCOCO, REF(4, "a.png"), "finite", TPO_FAULT_ROW_BOX},
        {TPO_ANNOTATIONS_REFCOCO, REF(5, "a.png"), "no size", TPO_FAULT_ROW_BOX},
        {TPO_ANNOTATIONS_REFCOCO, REF(77, "a.png"), "not in instances", TPO_FAULT_ROW_BROKEN},
        {TPO_ANNOTATIONS_REFCOCO, REF(1, "none.png"), "none.png", TPO_FAULT_ROW_MEDIA},
        {TPO_ANNOTATIONS_REFCOCO, REF(1, "../rows.json"), "../rows.json", TPO_FAULT_ROW_MEDIA},
        {TPO_ANNOTATIONS_REFCOCO, "{\"ann_id\":1,\"file_name\":\"a.png\",\"sentences\":[]}", "nothing", TPO_FAULT_ROW_EMPTY},
        {TPO_ANNOTATIONS_REFCOCO, "17", "expected near", TPO_FAULT_ROW_BROKEN},
        {TPO_ANNOTATIONS_REFCOCO, "{\"bbox\":NaN}", "rows.json:2", TPO_FAULT_ROW_BROKEN},
        {TPO_ANNOTATIONS_VIDEOCHAT2, "{\"video\":\"a.png\"}", "QA", TPO_FAULT_ROW_BROKEN},
        {TPO_ANNOTATIONS_VIDEOCHAT2, "{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"\"}]}", "nothing", TPO_FAULT_ROW_EMPTY},
        {TPO_ANNOTATIONS_VIDEOCHAT2, "{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"at <boxes>\"}]}", "holds a task token",
         TPO_FAULT_ROW_TOKEN},
        {TPO_ANNOTATIONS_VIDEOCHAT2, "{\"video\":\".\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}", "missing media: .",
         TPO_FAULT_ROW_MEDIA},
        {TPO_ANNOTATIONS_MVBENCH, "{\"video\":\"a.png\",\"question\":\"x\",\"candidates\":[\"y\"],\"answer\":\"z\"}", "candidates",
         TPO_FAULT_ROW_ANSWER},
    };
    static const char *const good[] = {REF(1, "a.png"), "{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}",
                                       "{\"video\":\"a.png\",\"question\":\"x\",\"candidates\":[\"y\"],\"answer\":\"y\"}"};
    struct tpo_error err;
    file_write("instances.json", instances);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct tpo_annotations *a = NULL;
        char text[1024];
        snprintf(text, sizeof(text), "[%s,\n%s]", good[rows[i].source], rows[i].row);
        if (opened(&a, rows[i].source, text, .5, &err) != TPO_OK) fail_msg("row %zu: %s", i, err.message);
        const bool missing = rows[i].fault == TPO_FAULT_ROW_MEDIA;
        if (tpo_annotations_rows(a) != 1 + missing || (missing && !tpo_annotations_missing(a, 1)) || tpo_annotations_missing(a, 0))
            fail_msg("row %zu: %lld rows", i, (long long)tpo_annotations_rows(a));
        if (tpo_annotations_bad(a, rows[i].fault) != 1) fail_msg("row %zu: said %s", i, said);
        if (strstr(said, rows[i].why) == NULL || strstr(said, "rows.json:2: ") == NULL) fail_msg("row %zu: said %s", i, said);
        tpo_annotations_close(a);
        assert_int_equal(opened(&a, rows[i].source, text, .49, &err), TPO_INVALID_ARGUMENT);
        if (strstr(err.message, tpo_annotation_fault_name(rows[i].fault)) == NULL) fail_msg("row %zu: %s", i, err.message);
    }
}

/* What the system would not open is not there, even where its beginning is. */
static void a_path_that_is_too_long_names_nothing(void **state)
{
    (void)state;
    char text[8192], *at = text + sprintf(text, "[{\"video\":\"./a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]},{\"video\":\"");
    for (int i = 0; i < 2042; i++) at += sprintf(at, "./");
    strcpy(at, "a.png?\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}]"); /* "media/" and all but the last letter are 4,095 bytes */
    struct tpo_annotations *a = NULL;
    struct tpo_error err;
    if (opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, text, .5, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_false(tpo_annotations_missing(a, 0));
    assert_true(tpo_annotations_missing(a, 1));
    tpo_annotations_close(a);
}

static void files_that_are_no_list_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "{}", "[", "[]", "[{\"a\":1}", "hello"};
    struct tpo_annotations *a = NULL;
    struct tpo_error err;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, texts[i], 1, &err) != TPO_INVALID_ARGUMENT)
            fail_msg("\"%s\" was taken", texts[i]);
    struct tpo_annotations_options o = {.source = TPO_ANNOTATIONS_VIDEOCHAT2, .annotations = "none.json", .media = "media"};
    assert_int_equal(tpo_annotations_open(&a, &o, &err), TPO_NOT_FOUND);
    o = (struct tpo_annotations_options){.source = TPO_ANNOTATIONS_VIDEOCHAT2, .annotations = "rows.json", .media = "nowhere"};
    assert_int_equal(tpo_annotations_open(&a, &o, &err), TPO_NOT_FOUND);
}

/* Two files that were joined would be one, and the second's rows gone. */
static void what_stands_behind_the_list_is_refused(void **state)
{
    (void)state;
#define ROWS "[{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}]"
    static const char *const behind[] = {"\n" ROWS, "\n,", " \n]", "\n\x01"};
    struct tpo_annotations *a = NULL;
    struct tpo_error err;
    char text[512];
    for (size_t i = 0; i < sizeof(behind) / sizeof(behind[0]); i++) {
        snprintf(text, sizeof(text), ROWS "%s", behind[i]);
        if (opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, text, 1, &err) != TPO_INVALID_ARGUMENT) fail_msg("\"%s\" was taken", text);
        if (strstr(err.message, "rows.json:2: something stands behind") == NULL) fail_msg("%s", err.message);
    }
    assert_int_equal(opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, "\n" ROWS " \r\n\t\n", 0, &err), TPO_OK);
    tpo_annotations_close(a);
}

static void every_epoch_takes_every_row_once(void **state)
{
    (void)state;
    enum { N = 37 };
    char text[8192] = "[";
    int64_t orders[2][N];
    struct tpo_annotations *a = NULL;
    struct tpo_error err;
    for (int i = 0; i < N; i++)
        strcat(text, i > 0 ? "," : ""), strcat(text, "{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}");
    strcat(text, "]");
    assert_int_equal(opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, text, 0, &err), TPO_OK);
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        bool seen[N] = {false};
        for (uint64_t i = 0; i < N; i++) {
            const int64_t row = orders[epoch][i] = tpo_annotations_pick(a, epoch * N + i);
            assert_in_range(row, 0, N - 1);
            assert_false(seen[row]);
            seen[row] = true;
            assert_int_equal(row, tpo_annotations_pick(a, epoch * N + i));
        }
    }
    assert_memory_not_equal(orders[0], orders[1], sizeof(orders[0]));
    tpo_annotations_close(a);
}

/* In place, since who replaces a file leaves the one that was opened as it was. */
static void a_file_that_changes_is_told(void **state)
{
    (void)state;
    static const char *const changes[] = {"truncate -s 0 rows.json", "truncate -s 70 rows.json",
                                          "printf z | dd of=rows.json bs=1 seek=38 conv=notrunc 2>dd.log",
                                          "cp rows.json new && mv new rows.json && truncate -s 0 rows.json"};
    for (int i = 0; i < 4; i++) {
        struct tpo_annotations *a = NULL;
        struct tpo_arena arena;
        struct tpo_sample s;
        struct tpo_error err = {0};
        tpo_arena_init(&arena, 4096, 0);
        const char *row = "{\"video\":\"a.png\",\"QA\":[{\"q\":\"x\",\"a\":\"y\"}]}";
        char text[256];
        snprintf(text, sizeof(text), "[%s,%s]", row, row);
        if (opened(&a, TPO_ANNOTATIONS_VIDEOCHAT2, text, 0, &err) != TPO_OK) fail_msg("%s", err.message);
        assert_int_equal(system(changes[i]), 0);
        const int rows[] = {tpo_annotations_row(a, &arena, 0, &s, &err), tpo_annotations_row(a, &arena, 1, &s, &err)};
        assert_int_equal(rows[0], i == 0 || i == 2 ? TPO_DATA_LOSS : TPO_OK);
        assert_int_equal(rows[1], i < 2 ? TPO_DATA_LOSS : TPO_OK);
        if (i < 3) assert_string_equal(err.reason, "annotations");
        tpo_annotations_close(a);
        tpo_arena_free(&arena);
    }
}

TPO_TESTS(cmocka_unit_test(each_source_makes_samples), cmocka_unit_test(refcoco_takes_the_images_name_and_one_split),
          cmocka_unit_test(what_has_no_id_is_nobodys), cmocka_unit_test(bad_rows_are_counted_by_reason),
          cmocka_unit_test(a_path_that_is_too_long_names_nothing), cmocka_unit_test(files_that_are_no_list_are_refused),
          cmocka_unit_test(what_stands_behind_the_list_is_refused), cmocka_unit_test(every_epoch_takes_every_row_once),
          cmocka_unit_test(a_file_that_changes_is_told))
