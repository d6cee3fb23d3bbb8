/* A file of any bytes through the pool and its sandboxed worker: frames of the told size, or a typed error; and the pool stays of use. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/media/media.h"

/* tpo-media of the same build: .../tests/fuzz/fuzz_media lies two folders below. */
static tpo_media_t *start(void)
{
    static char program[PATH_MAX + 16];
    tpo_media_t *m = NULL;
    ssize_t n = readlink("/proc/self/exe", program, PATH_MAX - 1);
    for (int up = 0; up < 3 && n > 0; up++) {
        while (n > 0 && program[n - 1] != '/') n--;
        n--;
    }
    TPO_ASSERT(n > 0);
    snprintf(program + n, sizeof(program) - (size_t)n, "/tpo-media");
    const struct tpo_media_options o = {.program = program, .max_pixels = 1 << 18, .max_frames = 1000, .timeout_ms = 5000};
    TPO_ASSERT(tpo_media_open(&m, &o, NULL) == TPO_OK);
    return m;
}

static int is_typed(const struct tpo_error *err)
{
    static const char *const reasons[] = {"media_unreadable", "media_too_large", "media_timeout", "media_frame"};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (strcmp(err->reason, reasons[i]) == 0) return err->message[0] != '\0';
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static tpo_media_t *media;
    static uint8_t rgb[3 << 18];
    tpo_media_file_t *f;
    struct tpo_error err = {0};
    if (media == NULL) media = start();
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    TPO_ASSERT(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    int rc = tpo_media_file_open_fd(media, &f, fd, 0, &err);
    close(fd);
    if (rc != TPO_OK) {
        TPO_ASSERT(is_typed(&err));
        return 0;
    }
    const struct tpo_media_info *i = tpo_media_file_info(f);
    TPO_ASSERT(i->width >= 1 && i->height >= 1 && (int64_t)i->width * i->height <= 1 << 18 && i->n_frames >= 1 &&
               i->n_frames <= 1000);
    const int32_t looks[] = {(int32_t)i->n_frames - 1, 0, (int32_t)i->n_frames / 2};
    for (int k = 0; k < 3; k++) TPO_ASSERT(tpo_media_read_into(f, &looks[k], 1, rgb, NULL, 0, &err) == TPO_OK || is_typed(&err));
    tpo_media_file_close(f);
    return 0;
}
