/* This file owns media files: pictures by libpng, videos by the ffmpeg program. */
#include "trainer/world/files.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <png.h>

#include "common/files.h"

extern char **environ;

uint8_t *tpo_world_zoom(const uint8_t *pixels, int n_frames, int side, int zoom)
{
    const size_t row = (size_t)side * (size_t)zoom * 3;
    uint8_t *out = malloc(row * (size_t)side * (size_t)zoom * (size_t)n_frames), *to = out;
    for (size_t y = 0; out != NULL && y < (size_t)side * (size_t)n_frames; y++) {
        for (size_t x = 0; x < row; x++) to[x] = pixels[y * (size_t)side * 3 + x / 3 / (size_t)zoom * 3 + x % 3];
        for (int z = 1; z < zoom; z++) memcpy(to + row * (size_t)z, to, row);
        to += row * (size_t)zoom;
    }
    return out;
}

int tpo_world_png(const char *path, const uint8_t *pixels, int side, struct tpo_error *err)
{
    png_image image = {
        .version = PNG_IMAGE_VERSION, .width = (png_uint_32)side, .height = (png_uint_32)side, .format = PNG_FORMAT_RGB};
    if (png_image_write_to_file(&image, path, 0, pixels, 0, NULL)) return TPO_OK;
    return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "bad_path", "cannot write %s: %s", path, image.message);
}

/* Starts ffmpeg with a pipe as its standard input. */
static int spawn_ffmpeg(pid_t *pid, int *input, const char *path, int side, int frames_per_s)
{
    char size[32], rate[16];
    int ends[2];
    posix_spawn_file_actions_t actions;
    snprintf(size, sizeof(size), "%dx%d", side, side);
    snprintf(rate, sizeof(rate), "%d", frames_per_s);
    /* Good quality, every frame in the order drawn, and the index first, so that a reader may stream. */
    char *argv[] = {"ffmpeg",  "-nostdin",  "-loglevel",  "error",      "-y", "-f",       "rawvideo", "-pix_fmt",
                    "rgb24",   "-s",        size,         "-r",         rate, "-i",       "pipe:0",   "-c:v",
                    "libx264", "-preset",   "veryfast",   "-crf",       "14", "-threads", "1",        "-pix_fmt",
                    "yuv420p", "-movflags", "+faststart", (char *)path, NULL};
    if (pipe2(ends, O_CLOEXEC) != 0) return errno;
    int rc = posix_spawn_file_actions_init(&actions);
    if (rc == 0) {
        rc = posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
        if (rc == 0) rc = posix_spawnp(pid, "ffmpeg", &actions, NULL, argv, environ);
        posix_spawn_file_actions_destroy(&actions);
    }
    close(ends[0]);
    if (rc != 0) close(ends[1]);
    *input = ends[1];
    return rc;
}

int tpo_world_mp4(const char *path, const uint8_t *pixels, int n_frames, int side, int frames_per_s, struct tpo_error *err)
{
    pid_t pid;
    int input, status = -1, rc = spawn_ffmpeg(&pid, &input, path, side, frames_per_s);
    if (rc != 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "no_ffmpeg", "cannot start ffmpeg: %s", strerror(rc));
    bool whole = tpo_write_all(input, pixels, (size_t)n_frames * side * side * 3);
    close(input);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    if (whole && WIFEXITED(status) && WEXITSTATUS(status) == 0) return TPO_OK;
    return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "ffmpeg", "ffmpeg could not write %s", path);
}
