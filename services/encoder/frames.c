/* This file owns sampling and resizing for the encoder. */
#include "services/encoder/frames.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/media/sampling.h"
#include "kernels/resize.h"

#define ANTIALIAS 1 /* torchvision's default since 0.17 */

static int padded(const struct tpo_config *c)
{
    return c->vision_encoder.temporal_pad || !c->vision_encoder.ext_position;
}

char *tpo_frames_rule(char *out, size_t size, const struct tpo_config *c)
{
    snprintf(out, size, "middle n=%d pad=%d bicubic antialias=%d size=%d", c->vision_encoder.num_frames, padded(c), ANTIALIAS,
             c->vision_encoder.img_size);
    return out;
}

struct loading {
    struct tpo_frames *frames;
    struct tpo_stream *stream;
    const struct tpo_frames_patience *patience;
    int side, width, height;
};

/* What the next part of the load may take; 0: nobody waits. Rounded up, so that a fraction of a millisecond is not none. */
static int time_left(const struct tpo_frames_patience *p, int timeout_ms)
{
    double left = p != NULL ? p->left_ms(p->owner) : timeout_ms;
    return left >= timeout_ms ? timeout_ms : left > 0 ? (int)left + 1 : 0;
}

static int nobody_waits(struct tpo_error *err)
{
    return tpo_fail(err, TPO_CANCELLED, "nobody_waits", "nobody waits for these frames any more");
}

static int on_frame(void *arg, int i, int64_t index, double time_s, const uint8_t *rgb)
{
    const struct loading *l = arg;
    struct tpo_frames *f = l->frames;
    size_t bytes = (size_t)l->side * (size_t)l->side * 3;
    if (l->patience != NULL && l->patience->left_ms(l->patience->owner) <= 0) return TPO_CANCELLED;
    f->indices[i] = (uint32_t)index;
    f->times[i] = time_s;
    if (i > 0 && f->indices[i - 1] == f->indices[i]) { /* a frame repeated to fill the clip */
        memcpy(f->pixels + (size_t)i * bytes, f->pixels + (size_t)(i - 1) * bytes, bytes);
        return TPO_OK;
    }
    return tpo_resize_u8(l->stream, f->pixels + (size_t)i * bytes, l->side, l->side, rgb, l->height, l->width, ANTIALIAS);
}

static int load(struct tpo_frames *f, tpo_media_file_t *file, const struct tpo_config *c, struct tpo_stream *s, int timeout_ms,
                const struct tpo_frames_patience *patience, struct tpo_error *err)
{
    const struct tpo_media_info *info = tpo_media_file_info(file);
    const int n = info->image ? 1 : c->vision_encoder.num_frames, side = c->vision_encoder.img_size;
    const struct tpo_sampling rule = {.rule = TPO_SAMPLE_MIDDLE, .n = n, .pad = padded(c)};
    struct loading l = {f, s, patience, side, info->width, info->height};
    int32_t *indices = calloc((size_t)n, sizeof(*indices));
    f->pixels = malloc((size_t)n * (size_t)side * (size_t)side * 3);
    f->indices = calloc((size_t)n, sizeof(*f->indices));
    f->times = calloc((size_t)n, sizeof(*f->times));
    int rc = TPO_ENOMEM;
    if (indices != NULL && f->pixels != NULL && f->indices != NULL && f->times != NULL) {
        f->T = (int)tpo_sampling_indices(&rule, indices, n, info->n_frames, info->fps);
        f->width = info->width;
        f->height = info->height;
        f->duration_s = info->duration_s;
        if (err != NULL) err->code = TPO_OK;
        rc = tpo_media_read(file, indices, f->T, on_frame, &l, timeout_ms, err);
    }
    free(indices);
    if (rc == TPO_CANCELLED) return nobody_waits(err);
    if (rc != TPO_OK && (err == NULL || err->code == TPO_OK))
        return tpo_fail(err, rc, "resize", "resizing failed: %s", tpo_status_sentence(rc));
    return rc;
}

int tpo_frames_load_while(struct tpo_frames *f, tpo_media_t *media, int fd, const struct tpo_config *c, struct tpo_stream *s,
                          int timeout_ms, const struct tpo_frames_patience *patience, struct tpo_error *err)
{
    tpo_media_file_t *file;
    memset(f, 0, sizeof(*f));
    if (err != NULL) memset(err, 0, sizeof(*err));
    int some_ms = time_left(patience, timeout_ms);
    if (patience != NULL && some_ms == 0) return nobody_waits(err);
    int rc = tpo_media_file_open_fd(media, &file, fd, some_ms, err);
    if (rc != TPO_OK) return rc;
    some_ms = time_left(patience, timeout_ms);
    rc = patience != NULL && some_ms == 0 ? nobody_waits(err) : load(f, file, c, s, some_ms, patience, err);
    tpo_media_file_close(file);
    if (rc != TPO_OK) tpo_frames_free(f);
    return rc;
}

int tpo_frames_load(struct tpo_frames *f, tpo_media_t *media, int fd, const struct tpo_config *c, struct tpo_stream *s,
                    int timeout_ms, struct tpo_error *err)
{
    return tpo_frames_load_while(f, media, fd, c, s, timeout_ms, NULL, err);
}

void tpo_frames_free(struct tpo_frames *f)
{
    free(f->pixels), free(f->indices), free(f->times);
    memset(f, 0, sizeof(*f));
}
