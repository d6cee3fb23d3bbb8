/* Files that lie, break off or are something else: each gets a typed error in bounded time, and the next file opens. */
#include <signal.h>
#include <sys/socket.h>

#include "common/media/wire.h"
#include "tests/common/media/files.h"

static int refused_for(tpo_media_t *m, const char *path, const char *reason, const char *words)
{
    struct tpo_error err = {0};
    tpo_media_file_t *f;
    int rc = tpo_media_file_open(m, &f, path, 0, &err);
    if (rc == TPO_OK) fail_msg("%s was opened", path);
    if (strcmp(err.reason, reason) != 0) fail_msg("%s: %s (%s), want %s", path, err.reason, err.message, reason);
    assert_null(f);
    assert_true(err.message[0] != '\0');
    if (strstr(err.message, words) == NULL) fail_msg("%s: %s, want %s", path, err.message, words);
    return rc;
}

static int refused(tpo_media_t *m, const char *path, const char *reason)
{
    return refused_for(m, path, reason, "");
}

static void still_works(tpo_media_t *m)
{
    uint8_t rgb[32 * 16 * 3];
    tpo_media_file_t *f = opened(m, "good.png");
    frame_of(f, 0, rgb, NULL);
    tpo_media_file_close(f);
}

static tpo_media_t *begin(void)
{
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 good.png");
    shell(FFMPEG
          "-f lavfi -i testsrc2=size=96x64:rate=25:duration=2 -c:v libx264 -g 10 -pix_fmt yuv420p -movflags faststart good.mp4");
    return workers(1, 0, 0);
}

static void what_is_no_medium(void **state)
{
    (void)state;
    tpo_media_t *m = begin();
    spill("empty.mp4", "", 0);
    refused(m, "empty.mp4", "media_unreadable");
    spill("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n/etc/passwd\n", 57);
    refused(m, "list.mp4", "media_unreadable");
    spill("concat.mp4", "ffconcat version 1.0\nfile good.png\n", 35);
    refused(m, "concat.mp4", "media_unreadable");
    spill("text.png", "hello", 5);
    refused(m, "text.png", "media_unreadable");
    shell(FFMPEG "-i good.mp4 -c copy -bsf:v h264_mp4toannexb raw.h264; mv raw.h264 raw.mp4");
    refused(m, "raw.mp4", "media_unreadable");
    shell(FFMPEG "-i good.mp4 -c copy a.avi; mv a.avi avi.mp4");
    refused(m, "avi.mp4", "media_unreadable");
    shell(FFMPEG "-f lavfi -i sine=duration=1 sound.mp4");
    refused(m, "sound.mp4", "media_unreadable");
    assert_int_equal(refused(m, "absent.mp4", "media_missing"), TPO_NOT_FOUND);
    refused(m, ".", "media_unreadable");
    refused(m, "/dev/zero", "media_unreadable");
    shell("mkfifo pipe.mp4");
    refused(m, "pipe.mp4", "media_unreadable");
    uint8_t noise[4096];
    for (size_t i = 0; i < sizeof(noise); i++) noise[i] = (uint8_t)(i * 2654435761u >> 13);
    memcpy(noise + 4, "ftypisom", 8);
    spill("noise.mp4", noise, sizeof(noise));
    refused(m, "noise.mp4", "media_unreadable");
    memcpy(noise, "\x1a\x45\xdf\xa3", 4);
    spill("noise.webm", noise, sizeof(noise));
    refused(m, "noise.webm", "media_unreadable");
    still_works(m);
    tpo_media_close(m);
}

static void what_breaks_off(void **state)
{
    (void)state;
    tpo_media_t *m = begin();
    size_t size;
    uint8_t *film = slurp("good.mp4", &size);
    spill("head.mp4", film, 600); /* within moov */
    refused(m, "head.mp4", "media_unreadable");
    spill("half.mp4", film, size / 2);
    tpo_media_file_t *f = opened(m, "half.mp4");
    int64_t n = tpo_media_file_info(f)->n_frames;
    assert_true(n > 5 && n < 45);
    uint8_t rgb[96 * 64 * 3];
    frame_of(f, (int32_t)n - 1, rgb, NULL);
    tpo_media_file_close(f);
    free(film);
    uint8_t *picture = slurp("good.png", &size);
    for (size_t cut = 1; cut < size - 12; cut += size / 9) {
        spill("cut.png", picture, cut);
        refused(m, "cut.png", "media_unreadable");
    }
    free(picture);
    shell(FFMPEG "-f lavfi -i testsrc2=size=320x240 -frames:v 1 good.jpg");
    picture = slurp("good.jpg", &size);
    for (size_t cut = 1; cut < size - size / 9; cut += size / 9) {
        spill("cut.jpg", picture, cut);
        refused(m, "cut.jpg", "media_unreadable");
    }
    free(picture);
    still_works(m);
    tpo_media_close(m);
}

static void put_be(uint8_t *p, uint32_t v, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--, v >>= 8) p[i] = (uint8_t)v;
}

static void what_is_too_large(void **state)
{
    (void)state;
    tpo_media_t *m = begin();
    size_t size;
    uint8_t *png = slurp("good.png", &size);
    put_be(png + 16, 20000, 4), put_be(png + 20, 20000, 4);
    spill("huge.png", png, size);
    refused(m, "huge.png", "media_too_large");
    put_be(png + 16, 0xffffffff, 4);
    spill("negative.png", png, size);
    refused(m, "negative.png", "media_too_large");
    free(png);
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 good.jpg");
    uint8_t *jpeg = slurp("good.jpg", &size);
    for (size_t i = 2; i + 9 < size; i++)
        if (jpeg[i] == 0xff && jpeg[i + 1] == 0xc0) {
            put_be(jpeg + i + 5, 65500, 2), put_be(jpeg + i + 7, 65500, 2);
            break;
        }
    spill("huge.jpg", jpeg, size);
    refused(m, "huge.jpg", "media_too_large");
    free(jpeg);
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 good.gif");
    uint8_t *gif = slurp("good.gif", &size);
    memset(gif + 6, 0xff, 4);
    spill("huge.gif", gif, size);
    refused(m, "huge.gif", "media_too_large");
    free(gif);
    /* A bomb: 67 million pixels of one colour in a few hundred kilobytes. */
    shell(FFMPEG "-f lavfi -i color=black:size=8200x8200,format=gray -frames:v 1 bomb.png");
    refused(m, "bomb.png", "media_too_large");
    still_works(m);
    tpo_media_close(m);
    m = workers(1, 95 * 64, 0);
    refused(m, "good.mp4", "media_too_large");
    tpo_media_close(m);
}

/* Pixels so oblong that the displayed picture is the bomb. */
static void a_shape_that_is_too_large(void **state)
{
    (void)state;
    tpo_media_t *m = workers(1, 0, 0);
    shell(FFMPEG "-f lavfi -i testsrc2=size=512x512 -frames:v 3 -c:v libx264 -pix_fmt yuv420p -aspect 60000:1 wide.mp4");
    struct tpo_error err = {0};
    tpo_media_file_t *f;
    int rc = tpo_media_file_open(m, &f, "wide.mp4", 0, &err);
    if (rc == TPO_OK) {
        const struct tpo_media_info *i = tpo_media_file_info(f);
        assert_true(i->width <= 65535 && (int64_t)i->width * i->height <= 1 << 26);
        tpo_media_file_close(f);
    } else
        assert_string_equal(err.reason, "media_too_large");
    tpo_media_close(m);
}

/* The box of that name: where its version and flags begin. */
static uint8_t *box(uint8_t *film, size_t size, const char *name)
{
    for (size_t i = 0; i + 40 < size; i++)
        if (memcmp(film + i, name, 4) == 0) return film + i + 4;
    fail_msg("no %s", name);
    return NULL;
}

/* Nothing to show, in a file whose form is right: a track that says it has no samples, a film whose fragments never came, a GIF of a screen alone. */
static void what_holds_no_frame(void **state)
{
    (void)state;
    static const char *const tables[] = {"stts", "stss", "stsc", "stco"};
    tpo_media_t *m = begin();
    size_t size;
    uint8_t *film = slurp("good.mp4", &size);
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) put_be(box(film, size, tables[i]) + 4, 0, 4);
    put_be(box(film, size, "stsz") + 8, 0, 4);
    spill("none.mp4", film, size);
    free(film);
    refused_for(m, "none.mp4", "media_unreadable", "it holds no whole frame");
    shell(FFMPEG "-i good.mp4 -c copy -movflags empty_moov+frag_keyframe parts.mp4");
    film = slurp("parts.mp4", &size);
    spill("start.mp4", film, (size_t)(box(film, size, "moof") - film) - 8);
    free(film);
    refused_for(m, "start.mp4", "media_unreadable", "it holds no whole frame");
    spill("screen.gif", "GIF89a\x20\0\x10\0\0\0\0;", 14);
    refused_for(m, "screen.gif", "media_unreadable", "it holds no whole frame");
    still_works(m);
    tpo_media_close(m);
}

static void opens_as(tpo_media_t *m, const char *path, int64_t n_frames, double duration_s)
{
    uint8_t rgb[96 * 64 * 3];
    tpo_media_file_t *f = opened(m, path);
    const struct tpo_media_info *i = tpo_media_file_info(f);
    if (i->n_frames != n_frames || i->duration_s != duration_s)
        fail_msg("%s: %lld frames, %.17g s", path, (long long)i->n_frames, i->duration_s);
    frame_of(f, (int32_t)n_frames - 1, rgb, NULL);
    tpo_media_file_close(f);
}

/* Two seconds of film under a header that says ten hours. What counts is the packets that are there and the times they carry. */
static void a_header_that_claims_hours(void **state)
{
    (void)state;
    enum { HOURS_S = 10 * 3600, FRAMES = 50 };
    tpo_media_t *m = begin();
    shell(FFMPEG "-i good.mp4 -c:v libx264 -bf 0 -pix_fmt yuv420p -movflags faststart true.mp4");
    size_t size;
    uint8_t *film = slurp("true.mp4", &size), *track = box(film, size, "mdhd"), *times = box(film, size, "stts");
    const uint32_t scale = 25 * 512; /* ffmpeg's for 25 frames a second: a frame lasts 512 */
    put_be(box(film, size, "mvhd") + 16, HOURS_S * 1000, 4);
    put_be(box(film, size, "tkhd") + 20, HOURS_S * 1000, 4);
    put_be(track + 16, HOURS_S * scale, 4);
    opens_as(m, "true.mp4", FRAMES, 2);
    spill("claims.mp4", film, size);
    opens_as(m, "claims.mp4", FRAMES, 2);
    /* Each frame stays for twelve minutes. */
    put_be(box(film, size, "elst") + 8, HOURS_S * 1000, 4);
    put_be(times + 12, HOURS_S / FRAMES * scale, 4);
    spill("slow.mp4", film, size);
    opens_as(m, "slow.mp4", FRAMES, HOURS_S);
    free(film);
    still_works(m);
    tpo_media_close(m);
}

/* moov's tables say that there are the frames of ten hours, or ten million, in a file of some kilobytes. */
static void a_table_that_claims_hours(void **state)
{
    (void)state;
    tpo_media_t *m = begin();
    size_t size;
    uint8_t *film = slurp("good.mp4", &size);
    put_be(box(film, size, "stsz") + 4, 1, 4); /* every sample has one byte */
    put_be(box(film, size, "stsz") + 8, 10000000, 4);
    spill("million.mp4", film, size);
    refused(m, "million.mp4", "media_unreadable");
    put_be(box(film, size, "stsz") + 8, 900000, 4);
    put_be(box(film, size, "stts") + 8, 900000, 4);
    spill("table.mp4", film, size);
    refused(m, "table.mp4", "media_unreadable");
    free(film);
    still_works(m);
    tpo_media_close(m);
}

/* Bytes changed at random places: whatever comes of it, the pool stays of use. */
static void mutated_files(void **state)
{
    (void)state;
    tpo_media_t *m = begin();
    uint64_t s = tpo_test_seed() | 1;
    shell(FFMPEG "-i good.mp4 -c:v libvpx-vp9 -b:v 100k -deadline realtime -cpu-used 8 -frames:v 12 good.webm");
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 4 good.gif");
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 good.jpg");
    const char *names[] = {"good.mp4", "good.webm", "good.gif", "good.jpg", "good.png"};
    int opened_n = 0;
    for (int round = 0; round < 150; round++) {
        size_t size;
        uint8_t *data = slurp(names[round % 5], &size);
        for (int k = 0; k < 1 + round % 9; k++) {
            s ^= s << 13, s ^= s >> 7, s ^= s << 17;
            size_t at = (s >> 8) % (round % 2 ? size : size < 800 ? size : 800);
            data[at] = (uint8_t)(s >> 40);
        }
        spill("mutant", data, size);
        free(data);
        tpo_media_file_t *f;
        if (tpo_media_file_open(m, &f, "mutant", 2000, NULL) != TPO_OK) continue;
        const struct tpo_media_info *i = tpo_media_file_info(f);
        uint8_t *rgb = malloc((size_t)i->width * (size_t)i->height * 3);
        int32_t last = (int32_t)i->n_frames - 1;
        tpo_media_read_into(f, &last, 1, rgb, NULL, 2000, NULL);
        free(rgb);
        tpo_media_file_close(f);
        opened_n++;
    }
    assert_true(opened_n > 10);
    still_works(m);
    tpo_media_close(m);
}

/* Started under the name "liar", this program is a decoder that was taken over: its errors are no text. */
__attribute__((constructor)) static void lie(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    if (slash == NULL || strcmp(slash, "/liar") != 0) return;
    struct tpo_media_request q;
    struct tpo_media_reply r = {0};
    while (send(TPO_MEDIA_SOCKET, &r, sizeof(r), MSG_NOSIGNAL) == sizeof(r) &&
           recv(TPO_MEDIA_SOCKET, &q, sizeof(q), 0) == sizeof(q)) {
        r = (struct tpo_media_reply){.id = q.id, .code = TPO_INVALID_ARGUMENT};
        memset(r.reason, 0xff, sizeof(r.reason));
        memset(r.message, 0xff, sizeof(r.message));
    }
    _exit(0);
}

static void a_liar_is_not_quoted(void **state)
{
    (void)state;
    char self[4096] = "";
    struct tpo_error err = {0};
    tpo_media_t *m;
    tpo_media_file_t *f;
    assert_true(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    assert_int_equal(symlink(self, "liar"), 0);
    spill("a.png", "hello", 5);
    const struct tpo_media_options o = {.program = "./liar"};
    assert_int_equal(tpo_media_open(&m, &o, &err), TPO_OK);
    assert_int_equal(tpo_media_file_open(m, &f, "a.png", 0, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "media_unreadable");
    assert_string_equal(err.message, "?");
    tpo_media_close(m);
}

TPO_TESTS(cmocka_unit_test(a_liar_is_not_quoted), cmocka_unit_test(what_is_no_medium), cmocka_unit_test(what_breaks_off),
          cmocka_unit_test(what_is_too_large), cmocka_unit_test(a_shape_that_is_too_large), cmocka_unit_test(what_holds_no_frame),
          cmocka_unit_test(a_header_that_claims_hours), cmocka_unit_test(a_table_that_claims_hours),
          cmocka_unit_test(mutated_files))
