/* frames.h -- from a file to the frames the encoder looks at: which ones (rule "middle"), decoded, resized to img_size:
 * docs/model.md, Frames.
 *
 * An image is one frame. A film is num_frames of them, the last repeated where it has fewer; a model with ext_position and without temporal_pad
 * takes the fewer. Plain functions: the service and the trainer call them alike. */
#ifndef TPO_SERVICES_ENCODER_FRAMES_H
#define TPO_SERVICES_ENCODER_FRAMES_H

#include "common/media/media.h"
#include "kernels/stream.h"
#include "nn/config.h"

struct tpo_frames {
    int T;
    uint8_t *pixels;   /* (T, img_size, img_size, 3) */
    int width, height; /* of the displayed picture, before the resize */
    double duration_s; /* 0 for an image */
    uint32_t *indices; /* (T) places in the file */
    double *times;     /* (T) seconds since the first frame of the file */
};

/* Words that change whenever the rule or the resize would yield other pixels: a part of a cache's key. Returns out. */
char *tpo_frames_rule(char *out, size_t size, const struct tpo_config *c);

/* Reads from a descriptor (borrowed) with a worker of `media`. s is used for the resize alone. Errors are media.h's. */
int tpo_frames_load(struct tpo_frames *f, tpo_media_t *media, int fd, const struct tpo_config *c, struct tpo_stream *s,
                    int timeout_ms, struct tpo_error *err);
/* The same for someone whose patience may end sooner: left_ms(owner), asked before opening, before reading and at every frame, tells for how long
 * it lasts. Each part gets the shorter of that and timeout_ms (1 or more then); at 0 or less the load ends with CANCELLED "nobody_waits". NULL:
 * endless. */
struct tpo_frames_patience {
    double (*left_ms)(void *owner);
    void *owner;
};
int tpo_frames_load_while(struct tpo_frames *f, tpo_media_t *media, int fd, const struct tpo_config *c, struct tpo_stream *s,
                          int timeout_ms, const struct tpo_frames_patience *patience, struct tpo_error *err);
void tpo_frames_free(struct tpo_frames *f); /* accepts the zeroed and the half-filled; leaves it zeroed */

#endif
