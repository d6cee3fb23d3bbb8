/* media.h -- pictures and films of strangers as RGB frames, decoded by tpo-media processes behind a system-call filter.
 *
 * A tpo_media_t is a pool of workers, started when needed and kept; any thread may use it. An open file holds a worker of its own until it is
 * closed, and belongs to the thread that opened it; opening waits for a free worker. A file that crashes a worker or keeps it busy
 * too long costs its own calls an error and the pool a new process (some 25 ms), nothing else.
 *
 * Errors, all with a sentence for people:
 *   INVALID_ARGUMENT   "media_unreadable"  no picture or video we can decode, or it broke the decoder
 *                      "media_too_large"   more pixels or frames than the options allow
 *   DEADLINE_EXCEEDED  "media_timeout"     not done in time
 *                      "media_busy"        no worker was free in time
 *   NOT_FOUND          "media_missing"     no such file
 *   UNAVAILABLE        "media_worker"      the program cannot be started
 *   OUT_OF_RANGE       "media_frame"       an index at or past n_frames */
#ifndef TPO_COMMON_MEDIA_H
#define TPO_COMMON_MEDIA_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

#define TPO_MEDIA_SECONDS_MAX 1e7 /* no frame is told to be later; what a file claims beyond is told as 0 */

struct tpo_media_options {
    const char *program; /* NULL: tpo-media beside the running program */
    int n_workers;       /* 0: 1 */
    int64_t max_pixels;  /* of one frame, as coded and as displayed; 0: 2^26 (8192 x 8192) */
    int64_t max_frames;  /* 0: 4 million, a day and a half at 30 a second */
    int timeout_ms;      /* for a call that gives none; 0: 20 s */
};

struct tpo_media_info {
    bool image;        /* png, jpeg or a gif of one frame: n_frames is 1, duration 0 */
    int width, height; /* as displayed: upright, square pixels */
    int64_t n_frames;  /* whole ones, counted in the file */
    double fps;        /* the mean rate; 1 for an image */
    double duration_s; /* n_frames / fps */
};

typedef struct tpo_media tpo_media_t;
typedef struct tpo_media_file tpo_media_file_t;

/* Starts one worker at once, so that a missing program is known at start. */
int tpo_media_open(tpo_media_t **out, const struct tpo_media_options *options, struct tpo_error *err);
void tpo_media_close(tpo_media_t *m); /* no file may be open; accepts NULL */

/* By path, or by a descriptor of a regular file (borrowed). timeout_ms bounds waiting for a worker and opening; 0 takes the options'. */
int tpo_media_file_open(tpo_media_t *m, tpo_media_file_t **out, const char *path, int timeout_ms, struct tpo_error *err);
int tpo_media_file_open_fd(tpo_media_t *m, tpo_media_file_t **out, int fd, int timeout_ms, struct tpo_error *err);
const struct tpo_media_info *tpo_media_file_info(const tpo_media_file_t *f);
void tpo_media_file_close(tpo_media_file_t *f); /* accepts NULL */

/* A decoded frame. rgb (height, width, 3) u8 is readable until the callback returns; time_s counts from the first frame. i is its place in
 * `indices`. Anything but TPO_OK ends the reading and is what tpo_media_read returns (the callback fills err itself). */
typedef int tpo_media_on_frame(void *arg, int i, int64_t index, double time_s, const uint8_t *rgb);

/* Frames in the order of `indices`; an index repeated in a row is decoded once. The worker decodes ahead while the callback runs. */
int tpo_media_read(tpo_media_file_t *f, const int32_t *indices, int n, tpo_media_on_frame *on_frame, void *arg, int timeout_ms,
                   struct tpo_error *err);

/* The same into memory of the caller: rgb (n, height, width, 3), times (n) or NULL. */
int tpo_media_read_into(tpo_media_file_t *f, const int32_t *indices, int n, uint8_t *rgb, double *times, int timeout_ms,
                        struct tpo_error *err);

#endif
