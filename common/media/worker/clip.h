/* clip.h -- one open file: its demuxer, its list of frames, its decoder.
 *
 * The kind is told from the first bytes and only that kind's demuxer sees the file. Frame k is the k-th smallest presentation time among the
 * packets a demux pass finds whole; a frame that the decoder cannot give is shown as what would stand on the screen at its time,
 * the frame before it. Nothing depends on the order in which frames are asked for. */
#ifndef TPO_COMMON_MEDIA_WORKER_CLIP_H
#define TPO_COMMON_MEDIA_WORKER_CLIP_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <stdint.h>

#include "common/media/wire.h"
#include "common/media/worker/picture.h"

struct tpo_clip {
    /* the file */
    int fd;
    int64_t at, size;
    const struct tpo_clip_kind *kind;
    AVIOContext *io;
    AVFormatContext *format; /* NULL for a still: its file is its packet */
    AVStream *stream;
    /* its frames, by presentation time */
    int64_t *pts, *keys;
    int64_t n, n_keys;
    int linear;  /* cannot seek (gif, or times are missing): a frame's place is its number as it comes out, else its pts */
    int untimed; /* times are missing: a frame's is its number over fps */
    int depth;   /* how many frames may overtake one in decoding order */
    double fps;
    /* the decoder */
    AVCodecContext *codec;
    AVPacket *packet;
    AVFrame *shown, *ahead;     /* the two latest that came out; a frame without a buffer stands for none */
    int64_t shown_at, ahead_at; /* their places */
    int64_t came_out;           /* frames since the beginning or the last seek */
    int from_start, draining;
    /* its picture */
    struct tpo_picture picture;
    int64_t max_pixels, max_frames;
    int image;
    struct tpo_rotation turn;
    int stored_w, stored_h; /* square pixels, before the turn */
    int width, height;      /* as displayed */
};

/* Both return reply->code and fill code, reason and message on failure. open takes the descriptor, whatever comes of it, and fills the info. */
int tpo_clip_open(struct tpo_clip **out, int fd, int64_t max_pixels, int64_t max_frames, struct tpo_media_reply *reply);
int tpo_clip_frame(struct tpo_clip *c, int64_t index, uint8_t *dst, size_t dst_bytes, struct tpo_media_reply *reply);
void tpo_clip_close(struct tpo_clip *c); /* accepts NULL and the half-open */

/* Private to clip.c and frame.c: what failed, in a reply's words; returns the code. */
int tpo_clip_fail(struct tpo_media_reply *reply, int code, const char *reason, const char *message);
int tpo_clip_fail_av(struct tpo_media_reply *reply, int averror, const char *message);
double tpo_clip_seconds(const struct tpo_clip *c, int64_t index);  /* of a timed clip, since its first frame */
int tpo_clip_rewind(struct tpo_clip *c);                           /* opens the file anew; 0 or a negative AVERROR */
int64_t tpo_clip_read(int fd, void *to, size_t bytes, int64_t at); /* as pread, but whole; short at the end of the file only */
int tpo_clip_decode(struct tpo_clip *c, int64_t index);            /* frame `index` becomes c->shown; 0 or a negative AVERROR */

#endif
