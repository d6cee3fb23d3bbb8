/* From files to the encoder's pixels: the right frames, resized, with their times. */
#include "services/encoder/frames.h"

#include "kernels/resize.h"
#include "tests/common/media/files.h"

struct bench {
    tpo_media_t *media;
    struct tpo_stream *stream;
    struct tpo_config config;
};

static void begin(struct bench *b)
{
    struct tpo_error err;
    b->media = workers(1, 0, 0);
    if (tpo_stream_open(&b->stream, "cpu", 1, &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_config_default(&b->config);
    b->config.vision_encoder.num_frames = 4;
    b->config.vision_encoder.img_size = 48;
}

static void end(struct bench *b)
{
    tpo_media_close(b->media);
    tpo_stream_close(b->stream);
}

static void load(struct bench *b, struct tpo_frames *f, const char *path)
{
    struct tpo_error err;
    int fd = open(path, O_RDONLY);
    if (tpo_frames_load(f, b->media, fd, &b->config, b->stream, 0, &err) != TPO_OK) fail_msg("%s: %s", path, err.message);
    close(fd);
}

static void a_film_gives_its_middles(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_frames f;
    static uint8_t rgb[96 * 64 * 3], want[48 * 48 * 3];
    begin(&b);
    shell(FFMPEG "-f lavfi -i testsrc2=size=96x64:rate=10 -frames:v 20 -pix_fmt yuv420p a.mp4");
    load(&b, &f, "a.mp4");
    assert_int_equal(f.T, 4);
    assert_int_equal(f.width, 96);
    assert_int_equal(f.height, 64);
    assert_true(f.duration_s == 2);
    const uint32_t indices[] = {2, 7, 12, 17};
    tpo_media_file_t *file = opened(b.media, "a.mp4");
    for (int i = 0; i < 4; i++) {
        assert_int_equal(f.indices[i], indices[i]);
        assert_true(f.times[i] == indices[i] / 10.0);
        frame_of(file, (int32_t)indices[i], rgb, NULL);
        assert_int_equal(tpo_resize_u8(b.stream, want, 48, 48, rgb, 64, 96, 1), TPO_OK);
        assert_memory_equal(f.pixels + (size_t)i * sizeof(want), want, sizeof(want));
    }
    tpo_media_file_close(file);
    tpo_frames_free(&f);
    end(&b);
}

static void a_short_film_repeats_its_last(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_frames f;
    begin(&b);
    shell(FFMPEG "-f lavfi -i testsrc2=size=48x48:rate=10 -frames:v 2 -pix_fmt yuv420p a.mp4");
    load(&b, &f, "a.mp4");
    assert_int_equal(f.T, 4);
    assert_memory_equal(f.indices, ((uint32_t[]){0, 1, 1, 1}), 16);
    assert_memory_equal(f.pixels + 48 * 48 * 3, f.pixels + 3 * 48 * 48 * 3, 48 * 48 * 3);
    assert_memory_not_equal(f.pixels, f.pixels + 48 * 48 * 3, 48 * 48 * 3);
    tpo_frames_free(&f);
    b.config.vision_encoder.ext_position = true;
    b.config.vision_encoder.temporal_pad = false;
    load(&b, &f, "a.mp4");
    assert_int_equal(f.T, 2);
    tpo_frames_free(&f);
    end(&b);
}

static void an_image_is_one_frame_as_it_is(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_frames f;
    static uint8_t rgb[48 * 48 * 3];
    begin(&b);
    shell(FFMPEG "-f lavfi -i testsrc2=size=48x48 -frames:v 1 -pix_fmt rgb24 a.png");
    load(&b, &f, "a.png");
    assert_int_equal(f.T, 1);
    assert_true(f.duration_s == 0 && f.times[0] == 0);
    tpo_media_file_t *file = opened(b.media, "a.png");
    frame_of(file, 0, rgb, NULL);
    assert_memory_equal(f.pixels, rgb, sizeof(rgb)); /* equal sizes: bit for bit */
    tpo_media_file_close(file);
    tpo_frames_free(&f);
    end(&b);
}

static void the_rule_tells_configs_apart(void **state)
{
    (void)state;
    struct tpo_config a, b;
    char one[96], two[96];
    tpo_config_default(&a);
    b = a;
    assert_string_equal(tpo_frames_rule(one, sizeof(one), &a), tpo_frames_rule(two, sizeof(two), &b));
    b.vision_encoder.num_frames++;
    assert_string_not_equal(one, tpo_frames_rule(two, sizeof(two), &b));
    b = a, b.vision_encoder.img_size++;
    assert_string_not_equal(one, tpo_frames_rule(two, sizeof(two), &b));
    b = a, b.vision_encoder.temporal_pad = false, b.vision_encoder.ext_position = true;
    a.vision_encoder.temporal_pad = true;
    assert_string_not_equal(tpo_frames_rule(one, sizeof(one), &a), tpo_frames_rule(two, sizeof(two), &b));
}

TPO_TESTS(cmocka_unit_test(a_film_gives_its_middles), cmocka_unit_test(a_short_film_repeats_its_last),
          cmocka_unit_test(an_image_is_one_frame_as_it_is), cmocka_unit_test(the_rule_tells_configs_apart))
