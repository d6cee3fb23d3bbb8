/* This file owns what several programs do with files. */
#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

FILE *tpo_open_file(const char *path)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return NULL;
    const bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    FILE *f = regular ? fdopen(fd, "rb") : NULL;
    if (f != NULL) return f;
    const int why = regular ? errno : EINVAL;
    close(fd);
    errno = why;
    return NULL;
}

bool tpo_file_sha256(uint8_t digest[TPO_SHA256_BYTES], const char *path)
{
    static const size_t piece_bytes = (size_t)1 << 18;
    FILE *f = tpo_open_file(path);
    if (f == NULL) return false;
    char *piece = malloc(piece_bytes);
    tpo_sha256_t *h = tpo_sha256_open();
    for (size_t n; piece != NULL && (n = fread(piece, 1, piece_bytes, f)) > 0;) tpo_sha256_add(h, piece, n);
    const bool whole = piece != NULL && !ferror(f);
    const int why = errno;
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    free(piece);
    fclose(f);
    errno = why;
    return whole;
}

bool tpo_write_all(int fd, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes > 0) {
        const ssize_t n = write(fd, at, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

bool tpo_disk_full(int why)
{
    return why == ENOSPC || why == EDQUOT || why == EFBIG;
}

int tpo_fail_write(struct tpo_error *err, const char *path)
{
    const bool full = tpo_disk_full(errno);
    return tpo_fail(err, full ? TPO_RESOURCE_EXHAUSTED : TPO_FAILED_PRECONDITION, full ? "disk_full" : "write", "%.200s: %s", path,
                    strerror(errno));
}

void tpo_beside(char *out, size_t size, const char *name)
{
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    const char *slash = strrchr(self, '/');
    snprintf(out, size, "%.*s/%s", slash != NULL ? (int)(slash - self) : 1, slash != NULL ? self : ".", name);
}
