/* Files of every kind against what the ffmpeg command shows of them; frames by index, in any order; the pool. */
#include <math.h>
#include <pthread.h>
#include <signal.h>

#include "tests/common/media/files.h"

/* Every frame in order, then some out of order: equal to ffmpeg's within `tolerance`. */
static void equals_ffmpeg(tpo_media_t *m, const char *file, const char *filter, int image, int w, int h, int n, int tolerance)
{
    size_t size, frame = (size_t)w * (size_t)h * 3;
    uint8_t *want = shown_by_ffmpeg(file, filter, &size), *got = malloc(frame);
    tpo_media_file_t *f = opened(m, file);
    const struct tpo_media_info *info = tpo_media_file_info(f);
    assert_int_equal(info->image, image);
    assert_int_equal(info->width, w);
    assert_int_equal(info->height, h);
    assert_int_equal(info->n_frames, n);
    assert_true(size >= frame * (size_t)n);
    for (int i = 0; i < n + 12; i++) {
        int k = i < n ? i : (i * 7919) % n;
        frame_of(f, k, got, NULL);
        int worst = largest(got, want + (size_t)k * frame, frame);
        if (worst > tolerance) fail_msg("%s: frame %d differs by %d", file, k, worst);
    }
    tpo_media_file_close(f);
    free(want);
    free(got);
}

#define SOURCE "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2 "

static void films_equal_ffmpeg(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG SOURCE "-c:v libx264 -g 12 -bf 2 -pix_fmt yuv420p a.mp4");
    equals_ffmpeg(m, "a.mp4", "", 0, 96, 64, 50, 0);
    shell(FFMPEG "-i a.mp4 -c copy a.mkv");
    equals_ffmpeg(m, "a.mkv", "", 0, 96, 64, 50, 0);
    shell(FFMPEG "-i a.mp4 -c copy -movflags frag_keyframe+empty_moov frag.mp4");
    equals_ffmpeg(m, "frag.mp4", "", 0, 96, 64, 50, 0);
    shell(FFMPEG SOURCE "-c:v libx264 -g 250 -x264-params open-gop=1:keyint=10:bframes=3:b-pyramid=normal -pix_fmt yuv420p "
                        "-colorspace bt709 open.mov");
    equals_ffmpeg(m, "open.mov", "", 0, 96, 64, 50, 0);
    shell(FFMPEG SOURCE "-c:v libvpx-vp9 -b:v 200k -deadline realtime -cpu-used 8 -g 15 a.webm");
    equals_ffmpeg(m, "a.webm", "", 0, 96, 64, 50, 0);
    shell(FFMPEG SOURCE "-c:v mpeg4 -g 10 -bf 2 b.mp4");
    equals_ffmpeg(m, "b.mp4", "", 0, 96, 64, 50, 0);
    shell(FFMPEG SOURCE "-c:v libx264 -pix_fmt yuv420p10le -color_range pc -colorspace bt709 ten.mp4");
    equals_ffmpeg(m, "ten.mp4", "", 0, 96, 64, 50, 0);
    tpo_media_close(m);
}

static void gif_is_a_film_or_a_still(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG "-f lavfi -i testsrc2=size=60x40:rate=10:duration=1 film.gif");
    equals_ffmpeg(m, "film.gif", "", 0, 60, 40, 10, 0);
    shell(FFMPEG "-f lavfi -i testsrc2=size=60x40:rate=10 -frames:v 1 still.gif");
    equals_ffmpeg(m, "still.gif", "", 1, 60, 40, 1, 0);
    tpo_media_close(m);
}

static void stills_of_every_format(void **state)
{
    (void)state;
    static const char *const formats[] = {"rgb24", "rgba", "gray", "gray16be", "rgb48be", "ya8", "pal8", "monob"};
    tpo_media_t *m = workers(1, 0, 0);
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        char name[32];
        snprintf(name, sizeof(name), "%s.png", formats[i]);
        shell(FFMPEG "-f lavfi -i testsrc2=size=62x44 -vf format=rgb24,crop=61:43:0:0:exact=1 -frames:v 1 -pix_fmt %s %s",
              formats[i], name);
        equals_ffmpeg(m, name, "", 1, 61, 43, 1, 0);
    }
    shell(FFMPEG "-f lavfi -i testsrc2=size=62x44 -vf format=rgb24,crop=61:43:0:0:exact=1 -frames:v 1 -pix_fmt yuvj420p a.jpg");
    equals_ffmpeg(m, "a.jpg", "", 1, 61, 43, 1, 0);
    shell(FFMPEG "-f lavfi -i testsrc2=size=62x44 -vf format=rgb24,crop=61:43:0:0:exact=1 -frames:v 1 -pix_fmt gray gray.jpg");
    equals_ffmpeg(m, "gray.jpg", "", 1, 61, 43, 1, 0);
    shell(FFMPEG "-f lavfi -i color=red:size=2x2,format=rgb24,crop=1:1 -frames:v 1 one.png");
    equals_ffmpeg(m, "one.png", "", 1, 1, 1, 1, 0);
    tpo_media_close(m);
}

static void alpha_is_dropped_not_blended(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    uint8_t rgb[8 * 8 * 3];
    shell(FFMPEG "-f lavfi -i color=0xFF8000@0.0:size=8x8,format=rgba -frames:v 1 a.png");
    tpo_media_file_t *f = opened(m, "a.png");
    frame_of(f, 0, rgb, NULL);
    assert_int_equal(rgb[0], 0xff);
    assert_int_equal(rgb[1], 0x80);
    assert_int_equal(rgb[2], 0);
    tpo_media_file_close(f);
    tpo_media_close(m);
}

static void films_stand_upright(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG SOURCE "-t 0.4 -c:v libx264 -pix_fmt yuv444p flat.mp4");
    for (int degrees = 90; degrees < 360; degrees += 90) {
        shell(FFMPEG "-display_rotation %d -i flat.mp4 -c copy turned%d.mp4 2>/dev/null || " FFMPEG
                     "-i flat.mp4 -c copy -metadata:s:v rotate=%d turned%d.mp4",
              degrees, degrees, degrees, degrees);
        char name[32];
        snprintf(name, sizeof(name), "turned%d.mp4", degrees);
        int w = degrees == 180 ? 96 : 64, h = degrees == 180 ? 64 : 96;
        equals_ffmpeg(m, name, "", 0, w, h, 10, 4);
    }
    tpo_media_close(m);
}

static void oblong_pixels_become_square(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG SOURCE "-t 0.4 -c:v libx264 -pix_fmt yuv420p -vf setsar=4/3 wide.mp4");
    equals_ffmpeg(m, "wide.mp4", "-vf scale=128:64", 0, 128, 64, 10, 0);
    shell(FFMPEG SOURCE "-t 0.4 -c:v libx264 -pix_fmt yuv420p -vf setsar=1/2 narrow.mp4");
    equals_ffmpeg(m, "narrow.mp4", "-vf scale=48:64", 0, 48, 64, 10, 0);
    tpo_media_close(m);
}

/* The smallest Exif segment that holds an orientation, put behind the start of image. */
static void with_orientation(const char *from, const char *to, int orientation)
{
    uint8_t exif[] = {0xff, 0xe1, 0, 34, 'E', 'x',  'i',  'f', 0, 0, 'M', 'M', 0, 42, 0,
                      0,    0,    8, 0,  1,   0x01, 0x12, 0,   3, 0, 0,   0,   1, 0,  (uint8_t)orientation,
                      0,    0,    0, 0,  0,   0};
    size_t size;
    uint8_t *jpeg = slurp(from, &size), *out = malloc(size + sizeof(exif));
    memcpy(out, jpeg, 2);
    memcpy(out + 2, exif, sizeof(exif));
    memcpy(out + 2 + sizeof(exif), jpeg + 2, size - 2);
    spill(to, out, size + sizeof(exif));
    free(jpeg), free(out);
}

static void photographs_stand_upright(void **state)
{
    (void)state;
    enum { W = 24, H = 16 };
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG "-f lavfi -i testsrc2=size=24x16 -frames:v 1 -pix_fmt yuvj444p -q:v 1 plain.jpg");
    uint8_t plain[W * H * 3], turned[W * H * 3];
    tpo_media_file_t *f = opened(m, "plain.jpg");
    frame_of(f, 0, plain, NULL);
    tpo_media_file_close(f);
    for (int o = 1; o <= 8; o++) {
        with_orientation("plain.jpg", "turned.jpg", o);
        f = opened(m, "turned.jpg");
        int w = o < 5 ? W : H, h = o < 5 ? H : W;
        assert_int_equal(tpo_media_file_info(f)->width, w);
        assert_int_equal(tpo_media_file_info(f)->height, h);
        frame_of(f, 0, turned, NULL);
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) { /* the Exif standard's table: where row 0 and column 0 are shown */
                int sx = o == 1 || o == 4 ? x : o == 2 || o == 3 ? W - 1 - x : o == 5 || o == 6 ? y : W - 1 - y;
                int sy = o == 1 || o == 2 ? y : o == 3 || o == 4 ? H - 1 - y : o == 5 || o == 8 ? x : H - 1 - x;
                if (memcmp(turned + (y * w + x) * 3, plain + (sy * W + sx) * 3, 3) != 0)
                    fail_msg("orientation %d at %d, %d", o, x, y);
            }
        tpo_media_file_close(f);
    }
    tpo_media_close(m);
}

static void times_and_rates(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    static const struct {
        const char *rate, *name;
        double fps;
    } films[] = {{"25", "a.mp4", 25}, {"30000/1001", "b.mp4", 30000.0 / 1001}, {"8", "c.webm", 8}, {"10", "d.gif", 10}};
    for (size_t i = 0; i < 4; i++) {
        uint8_t rgb[3 * 32 * 16 * 16];
        double times[3];
        shell(FFMPEG "-f lavfi -i testsrc2=size=32x16:rate=%s -frames:v 20 %s", films[i].rate, films[i].name);
        tpo_media_file_t *f = opened(m, films[i].name);
        const struct tpo_media_info *info = tpo_media_file_info(f);
        assert_int_equal(info->n_frames, 20);
        if (fabs(info->fps - films[i].fps) > 0.02 * films[i].fps) fail_msg("%s: %f frames/s", films[i].name, info->fps);
        assert_true(fabs(info->duration_s - 20 / info->fps) < 1e-9);
        assert_int_equal(tpo_media_read_into(f, (int32_t[]){0, 5, 19}, 3, rgb, times, 0, NULL), TPO_OK);
        assert_true(times[0] == 0);
        assert_true(fabs(times[1] - 5 / films[i].fps) < 0.002 && fabs(times[2] - 19 / films[i].fps) < 0.002);
        tpo_media_file_close(f);
    }
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 one.mp4");
    tpo_media_file_t *f = opened(m, "one.mp4");
    assert_false(tpo_media_file_info(f)->image);
    assert_int_equal(tpo_media_file_info(f)->n_frames, 1);
    assert_true(tpo_media_file_info(f)->duration_s > 0);
    tpo_media_file_close(f);
    tpo_media_close(m);
}

static void an_edit_list_cuts_frames(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG SOURCE "-c:v libx264 -g 25 -bf 0 -pix_fmt yuv420p a.mp4");
    shell(FFMPEG "-ss 1.2 -i a.mp4 -c copy cut.mp4");
    size_t size;
    uint8_t *want = shown_by_ffmpeg("cut.mp4", "", &size);
    tpo_media_file_t *f = opened(m, "cut.mp4");
    int64_t n = tpo_media_file_info(f)->n_frames;
    assert_int_equal(n, size / (96 * 64 * 3));
    assert_true(n < 30);
    uint8_t rgb[96 * 64 * 3];
    for (int i = 0; i < n; i++) {
        frame_of(f, i, rgb, NULL);
        assert_int_equal(largest(rgb, want + (size_t)i * sizeof(rgb), sizeof(rgb)), 0);
    }
    tpo_media_file_close(f);
    tpo_media_close(m);
    free(want);
}

struct seen {
    int n;
    int64_t indices[16];
    int stop_at;
};

static int on_frame(void *arg, int i, int64_t index, double time_s, const uint8_t *rgb)
{
    struct seen *s = arg;
    (void)time_s, (void)rgb;
    assert_int_equal(i, s->n);
    s->indices[s->n++] = index;
    return s->n == s->stop_at ? TPO_CANCELLED : TPO_OK;
}

static void repeats_and_early_ends(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG SOURCE "-pix_fmt yuv420p a.mp4");
    tpo_media_file_t *f = opened(m, "a.mp4");
    const int32_t indices[16] = {0, 1, 2, 3, 4, 4, 4, 4, 9, 8, 7, 49, 49, 0, 0, 1};
    struct seen s = {0};
    assert_int_equal(tpo_media_read(f, indices, 16, on_frame, &s, 0, NULL), TPO_OK);
    assert_int_equal(s.n, 16);
    for (int i = 0; i < 16; i++) assert_int_equal(s.indices[i], indices[i]);
    /* The callback stops it with replies still on their way; the next call is not confused by them. */
    s = (struct seen){.stop_at = 2};
    assert_int_equal(tpo_media_read(f, indices, 16, on_frame, &s, 0, NULL), TPO_CANCELLED);
    static uint8_t one[96 * 64 * 3], two[96 * 64 * 3];
    frame_of(f, 30, one, NULL);
    frame_of(f, 2, two, NULL);
    frame_of(f, 30, two, NULL);
    assert_memory_equal(one, two, sizeof(one));
    struct tpo_error err;
    assert_int_equal(tpo_media_read(f, (int32_t[]){50}, 1, on_frame, &s, 0, &err), TPO_OUT_OF_RANGE);
    assert_string_equal(err.reason, "media_frame");
    assert_int_equal(tpo_media_read(f, (int32_t[]){-1}, 1, on_frame, &s, 0, &err), TPO_OUT_OF_RANGE);
    tpo_media_file_close(f);
    tpo_media_close(m);
}

static void a_ring_of_one_frame_is_enough(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 96 * 64, 0);
    shell(FFMPEG SOURCE "-pix_fmt yuv420p a.mp4");
    tpo_media_file_t *f = opened(m, "a.mp4");
    struct seen s = {0};
    assert_int_equal(tpo_media_read(f, (int32_t[]){0, 3, 3, 7, 1}, 5, on_frame, &s, 0, NULL), TPO_OK);
    assert_int_equal(s.n, 5);
    tpo_media_file_close(f);
    tpo_media_close(m);
}

static void *open_some(void *arg)
{
    for (int i = 0; i < 5; i++) {
        tpo_media_file_t *f;
        if (tpo_media_file_open(arg, &f, "a.mp4", 0, NULL) != TPO_OK) return "failed";
        struct seen s = {0};
        if (tpo_media_read(f, (int32_t[]){1, 20, 40}, 3, on_frame, &s, 0, NULL) != TPO_OK) return "failed";
        tpo_media_file_close(f);
    }
    return NULL;
}

static void threads_share_a_pool(void **state)
{
    (void)state;
    tpo_media_t *m = workers(2, 0, 0);
    pthread_t threads[5];
    shell(FFMPEG SOURCE "-pix_fmt yuv420p a.mp4");
    for (int i = 0; i < 5; i++) pthread_create(&threads[i], NULL, open_some, m);
    for (int i = 0; i < 5; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    tpo_media_close(m);
}

static void a_busy_pool_is_a_timeout(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    struct tpo_error err;
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 a.png");
    tpo_media_file_t *f = opened(m, "a.png"), *second;
    assert_int_equal(tpo_media_file_open(m, &second, "a.png", 50, &err), TPO_DEADLINE_EXCEEDED);
    assert_string_equal(err.reason, "media_busy");
    tpo_media_file_close(f);
    tpo_media_file_close(opened(m, "a.png"));
    tpo_media_close(m);
}

static void a_dead_worker_costs_its_file(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    struct tpo_error err;
    shell(FFMPEG SOURCE "-pix_fmt yuv420p a.mp4");
    tpo_media_file_t *f = opened(m, "a.mp4");
    shell("pkill -KILL -P %d tpo-media", getpid());
    static uint8_t rgb[96 * 64 * 3];
    assert_int_equal(tpo_media_read_into(f, (int32_t[]){3}, 1, rgb, NULL, 0, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "media_unreadable");
    assert_int_equal(tpo_media_read_into(f, (int32_t[]){3}, 1, rgb, NULL, 0, &err), TPO_INVALID_ARGUMENT);
    tpo_media_file_close(f);
    f = opened(m, "a.mp4");
    frame_of(f, 3, rgb, NULL);
    tpo_media_file_close(f);
    tpo_media_close(m);
}

static void a_stopped_worker_is_a_timeout(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    struct tpo_error err;
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 a.png");
    shell("pkill -STOP -P %d tpo-media", getpid());
    tpo_media_file_t *f;
    assert_int_equal(tpo_media_file_open(m, &f, "a.png", 100, &err), TPO_DEADLINE_EXCEEDED);
    assert_string_equal(err.reason, "media_timeout");
    tpo_media_file_close(opened(m, "a.png"));
    tpo_media_close(m);
}

static void a_missing_program_is_known_at_start(void **state)
{
    (void)state;
    struct tpo_error err;
    tpo_media_t *m;
    struct tpo_media_options o = {.program = "/nonexistent/tpo-media"};
    assert_int_equal(tpo_media_open(&m, &o, &err), TPO_UNAVAILABLE);
    o.program = "/bin/true"; /* comes up and says nothing */
    assert_int_equal(tpo_media_open(&m, &o, &err), TPO_UNAVAILABLE);
    assert_string_equal(err.reason, "media_worker");
    assert_null(m);
}

TPO_TESTS(cmocka_unit_test(films_equal_ffmpeg), cmocka_unit_test(gif_is_a_film_or_a_still),
          cmocka_unit_test(stills_of_every_format), cmocka_unit_test(alpha_is_dropped_not_blended),
          cmocka_unit_test(films_stand_upright), cmocka_unit_test(oblong_pixels_become_square),
          cmocka_unit_test(photographs_stand_upright), cmocka_unit_test(times_and_rates),
          cmocka_unit_test(an_edit_list_cuts_frames), cmocka_unit_test(repeats_and_early_ends),
          cmocka_unit_test(a_ring_of_one_frame_is_enough), cmocka_unit_test(threads_share_a_pool),
          cmocka_unit_test(a_busy_pool_is_a_timeout), cmocka_unit_test(a_dead_worker_costs_its_file),
          cmocka_unit_test(a_stopped_worker_is_a_timeout), cmocka_unit_test(a_missing_program_is_known_at_start))
