/* files.h -- media files made by the ffmpeg command in the test's own directory, and what that command itself decodes from them. */
#ifndef TPO_TESTS_COMMON_MEDIA_FILES_H
#define TPO_TESTS_COMMON_MEDIA_FILES_H

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/media/media.h"
#include "tests/support/test.h"

static inline void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void shell(const char *format, ...)
{
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

#define FFMPEG "ffmpeg -v error -nostdin -y "

static inline uint8_t *slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail_msg("no %s", path);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*size + 1);
    assert_int_equal(fread(p, 1, *size, f), *size);
    fclose(f);
    return p;
}

static inline void spill(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
}

/* What ffmpeg shows: frames of rgb24, one after the other. */
static inline uint8_t *shown_by_ffmpeg(const char *file, const char *filter, size_t *size)
{
    shell(FFMPEG
          "-i %s -map 0:v:0 -fps_mode passthrough %s -sws_flags bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact "
          "-pix_fmt rgb24 -f rawvideo oracle.raw",
          file, filter);
    return slurp("oracle.raw", size);
}

static inline tpo_media_t *workers(int n, int64_t max_pixels, int timeout_ms)
{
    char program[512];
    struct tpo_error err;
    tpo_media_t *m;
    snprintf(program, sizeof(program), "%s/tpo-media", tpo_test_build());
    struct tpo_media_options o = {.program = program, .n_workers = n, .max_pixels = max_pixels, .timeout_ms = timeout_ms};
    if (tpo_media_open(&m, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    return m;
}

static inline tpo_media_file_t *opened(tpo_media_t *m, const char *path)
{
    struct tpo_error err;
    tpo_media_file_t *f;
    if (tpo_media_file_open(m, &f, path, 0, &err) != TPO_OK) fail_msg("%s: %s (%s)", path, err.message, err.reason);
    return f;
}

static inline void frame_of(tpo_media_file_t *f, int32_t index, uint8_t *rgb, double *time_s)
{
    struct tpo_error err;
    if (tpo_media_read_into(f, &index, 1, rgb, time_s, 0, &err) != TPO_OK) fail_msg("frame %d: %s", index, err.message);
}

/* Largest difference of two arrays of bytes. */
static inline int largest(const uint8_t *a, const uint8_t *b, size_t n)
{
    int worst = 0;
    for (size_t i = 0; i < n; i++) worst = abs(a[i] - b[i]) > worst ? abs(a[i] - b[i]) : worst;
    return worst;
}

#endif
