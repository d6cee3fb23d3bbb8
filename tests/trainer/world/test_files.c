/* Files: what `tpo world` writes can be read by others, and says what the scenes say. */
#include <jansson.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"
#include "trainer/world/files.h"

static struct tpo_world *open_world(void)
{
    struct tpo_world *w = NULL;
    assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){TPO_WORLD_TRAIN, 0, 0}, NULL), TPO_OK);
    return w;
}

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (root == NULL) fail_msg("%s: %s", path, error.text);
    return root;
}

static double mean_difference(const uint8_t *a, const uint8_t *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += abs(a[i] - b[i]);
    return sum / (double)n;
}

static void videos_decode_to_their_frames(void **state)
{
    (void)state;
    struct tpo_world *w = open_world();
    struct tpo_arena arena;
    struct tpo_view v;
    struct tpo_error err = {0};
    static uint8_t decoded[9 * 96 * 96 * 3];
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int n_frames = 2; n_frames <= 8; n_frames += 6) {
        assert_int_equal(tpo_view_alloc(&v, w, &arena, n_frames), TPO_OK);
        tpo_view_make(&v, w, TPO_VIEW_CLIPS, 5, 0, 4);
        if (tpo_world_mp4("clip.mp4", v.scene.pixels, n_frames, 96, 4, &err) != TPO_OK) fail_msg("%s", err.message);
        FILE *f = popen("ffmpeg -nostdin -loglevel error -i clip.mp4 -f rawvideo -pix_fmt rgb24 -", "r");
        assert_non_null(f);
        size_t frame = 96 * 96 * 3, n = fread(decoded, 1, sizeof(decoded), f);
        assert_int_equal(pclose(f), 0);
        assert_int_equal(n, frame * (size_t)n_frames);
        for (int t = 0; t < n_frames; t++) {
            double own = mean_difference(decoded + frame * (size_t)t, v.scene.pixels + frame * (size_t)t, frame);
            if (own > 8) fail_msg("frame %d differs by %.2f of 255 on average", t, own);
        }
    }
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static void a_video_that_cannot_be_written_is_an_error(void **state)
{
    (void)state;
    static uint8_t pixels[2 * 48 * 48 * 3];
    struct tpo_error err = {0};
    assert_int_not_equal(tpo_world_mp4("no/such/folder/clip.mp4", pixels, 2, 48, 4, &err), TPO_OK);
    assert_string_equal(err.reason, "ffmpeg");
    assert_int_not_equal(tpo_world_png("no/such/folder/a.png", pixels, 48, &err), TPO_OK);
    setenv("PATH", "/nowhere", 1);
    assert_int_equal(tpo_world_mp4("clip.mp4", pixels, 2, 48, 4, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "no_ffmpeg");
}

static void export(const char *out, const char *images, const char *clips)
{
    const char *argv[] = {"world", "--out", out, "--images", images, "--clips", clips, "--seed=3", "--frames", "5"};
    assert_int_equal(tpo_world_main(10, (char **)argv), 0);
}

/* Boxes and masks of instances.json are those of the scene, and each reference names one of them. */
static void check_references(struct tpo_world *w, struct tpo_view *v)
{
    json_t *instances = load("out/instances.json"), *refs = load("out/refs.json"), *a, *r;
    size_t i;
    assert_int_equal(json_array_size(json_object_get(instances, "images")), 12);
    assert_int_equal(json_array_size(json_object_get(instances, "categories")), 6);
    json_array_foreach(json_object_get(instances, "annotations"), i, a)
    {
        int image = (int)json_integer_value(json_object_get(a, "image_id")), box[4], area = 0, inside = 0;
        int object = (int)json_integer_value(json_object_get(a, "id")) - image * TPO_WORLD_OBJECTS_MAX;
        tpo_view_make(v, w, TPO_VIEW_FILES, (uint64_t)image, 0, 4);
        assert_int_equal(oracle_box(&v->scene, object, 0, box), json_integer_value(json_object_get(a, "area")));
        json_t *bbox = json_object_get(a, "bbox"), *counts = json_object_get(json_object_get(a, "segmentation"), "counts"), *count;
        size_t k;
        for (int c = 0; c < 4; c++)
            assert_int_equal(json_integer_value(json_array_get(bbox, (size_t)c)), box[c] - (c > 1 ? box[c - 2] : 0));
        json_array_foreach(counts, k, count)
        {
            if (k % 2) inside += (int)json_integer_value(count);
            area += (int)json_integer_value(count);
        }
        assert_int_equal(area, 96 * 96);
        assert_int_equal(inside, json_integer_value(json_object_get(a, "area")));
    }
    assert_true(json_array_size(refs) > 40);
    json_array_foreach(refs, i, r)
    {
        int image = (int)json_integer_value(json_object_get(r, "image_id"));
        int object = (int)json_integer_value(json_object_get(r, "ann_id")) - image * TPO_WORLD_OBJECTS_MAX;
        const char *sent = json_string_value(json_object_get(json_array_get(json_object_get(r, "sentences"), 0), "sent"));
        struct oracle_noun n;
        tpo_view_make(v, w, TPO_VIEW_FILES, (uint64_t)image, 0, 4);
        assert_non_null(oracle_read(sent + 4, &v->scene, &n));
        assert_true(n.set >> object & 1);
        assert_string_equal(json_string_value(json_object_get(r, "split")), "train");
    }
    json_decref(instances);
    json_decref(refs);
}

static void check_talks(const char *path, const char *key, const char *folder, size_t n)
{
    json_t *root = load(path), *row;
    size_t i;
    assert_int_equal(json_array_size(root), n);
    json_array_foreach(root, i, row)
    {
        char media[256];
        struct stat st;
        snprintf(media, sizeof(media), "out/%s/%s", folder, json_string_value(json_object_get(row, key)));
        assert_int_equal(stat(media, &st), 0);
        json_t *first = json_array_get(json_object_get(row, "QA"), 0);
        assert_non_null(json_string_value(json_object_get(first, "i")));
        assert_non_null(json_string_value(json_object_get(first, "q")));
        assert_non_null(json_string_value(json_object_get(first, "a")));
    }
    json_decref(root);
}

static void check_task(const char *path)
{
    json_t *root = load(path), *row, *candidate;
    size_t i, k;
    assert_true(json_array_size(root) > 0);
    json_array_foreach(root, i, row)
    {
        int found = 0;
        const char *answer = json_string_value(json_object_get(row, "answer"));
        json_array_foreach(json_object_get(row, "candidates"), k, candidate) found +=
            strcmp(json_string_value(candidate), answer) == 0;
        assert_int_equal(found, 1);
    }
    json_decref(root);
}

static void annotation_files_tell_the_truth(void **state)
{
    (void)state;
    struct tpo_world *w = NULL;
    struct tpo_arena arena;
    struct tpo_view v;
    tpo_arena_init(&arena, 1 << 20, 0);
    export("out", "12", "3");
    assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){TPO_WORLD_TRAIN, 3, 0}, NULL), TPO_OK);
    assert_int_equal(tpo_view_alloc(&v, w, &arena, 1), TPO_OK);
    check_references(w, &v);
    check_talks("out/image_it.json", "image", "images", 12);
    check_talks("out/video_it.json", "video", "videos", 3);
    check_task("out/mvbench/moving_direction.json");
    check_task("out/mvbench/object_count.json");
    check_task("out/mvbench/object_attribute.json");
    check_task("out/mvbench/object_existence.json");
    png_image png = {.version = PNG_IMAGE_VERSION};
    static uint8_t pixels[96 * 96 * 3];
    tpo_view_make(&v, w, TPO_VIEW_FILES, 7, 0, 4);
    assert_true(png_image_begin_read_from_file(&png, "out/images/000007.png"));
    png.format = PNG_FORMAT_RGB;
    assert_true(png_image_finish_read(&png, NULL, pixels, 0, NULL));
    assert_memory_equal(pixels, v.scene.pixels, sizeof(pixels));
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static void zoom_repeats_pixels_and_scales_boxes(void **state)
{
    (void)state;
    static const uint8_t small[2 * 2 * 3] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    uint8_t *big = tpo_world_zoom(small, 1, 2, 3);
    assert_non_null(big);
    for (int y = 0; y < 6; y++) {
        for (int x = 0; x < 18; x++) assert_int_equal(big[y * 18 + x], small[y / 3 * 6 + x / 9 * 3 + x % 3]);
    }
    free(big);
    for (int zoom = 1; zoom <= 2; zoom++) {
        const char *argv[] = {"world", "--out", zoom == 1 ? "a" : "b", "--images", "2", "--zoom", zoom == 1 ? "1" : "2"};
        assert_int_equal(tpo_world_main(7, (char **)argv), 0);
    }
    json_t *a = load("a/instances.json"), *b = load("b/instances.json");
    json_t *first = json_array_get(json_object_get(a, "annotations"), 0),
           *second = json_array_get(json_object_get(b, "annotations"), 0);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(2 * json_integer_value(json_array_get(json_object_get(first, "bbox"), i)),
                         json_integer_value(json_array_get(json_object_get(second, "bbox"), i)));
    }
    assert_int_equal(4 * json_integer_value(json_object_get(first, "area")), json_integer_value(json_object_get(second, "area")));
    assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(b, "images"), 0), "width")), 192);
    json_decref(a);
    json_decref(b);
}

static void the_command_refuses_nonsense(void **state)
{
    (void)state;
    static const char *const wrong[][3] = {
        {"--split", "x", "--show=1"},  {"--size", "47", "--show=1"},    {"--frames", "9", "--out=o"},
        {"--images", "-1", "--out=o"}, {"--nonsense", "1", "--show=1"}, {"--seed", "1x", "--show=1"},
        {"word", "1", "--show=1"},     {"--seed", "1", "--show"},       {"--seed", "1", "--images=2"}};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const char *argv[] = {"world", wrong[i][0], wrong[i][1], wrong[i][2]};
        assert_int_equal(tpo_world_main(4, (char **)argv), 2);
    }
    const char *help[] = {"world", "--help"}, *blocked[] = {"world", "--out", "/proc/world"};
    assert_int_equal(tpo_world_main(2, (char **)help), 0);
    assert_int_equal(tpo_world_main(3, (char **)blocked), 1);
}

TPO_TESTS(cmocka_unit_test(videos_decode_to_their_frames), cmocka_unit_test(a_video_that_cannot_be_written_is_an_error),
          cmocka_unit_test(annotation_files_tell_the_truth), cmocka_unit_test(zoom_repeats_pixels_and_scales_boxes),
          cmocka_unit_test(the_command_refuses_nonsense))
