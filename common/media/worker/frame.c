/* This file owns the way from an index to a decoded frame: where to seek, what to decode, which frame is the one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/media/worker/clip.h"
#include "common/status.h"

#define DRAIN_ERRORS 64 /* a decoder that only fails while it is emptied has ended */
#define STILL_BYTES  ((int64_t)128 << 20)

static int is_frame(const AVFrame *f)
{
    return f->buf[0] != NULL;
}

static int read_still(struct tpo_clip *c)
{
    if (c->at > 0) return AVERROR_EOF;
    if (c->size > STILL_BYTES) return AVERROR(ENOMEM);
    int rc = av_new_packet(c->packet, (int)c->size);
    if (rc < 0) return rc;
    c->at = tpo_clip_read(c->fd, c->packet->data, (size_t)c->size, 0);
    return c->at == c->size ? 0 : AVERROR_EOF;
}

static int read_packet(struct tpo_clip *c)
{
    if (c->format == NULL) return read_still(c);
    for (;;) {
        int rc = av_read_frame(c->format, c->packet);
        if (rc < 0) return rc;
        /* What the count left out, the decoder does not see either. */
        if (c->packet->stream_index == c->stream->index && !(c->packet->flags & AV_PKT_FLAG_CORRUPT)) return 0;
        av_packet_unref(c->packet);
    }
}

static void feed(struct tpo_clip *c)
{
    if (read_packet(c) < 0) {
        c->draining = 1;
        avcodec_send_packet(c->codec, NULL);
        return;
    }
    avcodec_send_packet(c->codec, c->packet); /* a broken packet costs its own frame; the next ones may be whole */
    av_packet_unref(c->packet);
}

/* The next frame in presentation order into c->ahead. 0, or AVERROR_EOF. */
static int pull(struct tpo_clip *c)
{
    for (int failures = 0; failures < DRAIN_ERRORS;) {
        int rc = avcodec_receive_frame(c->codec, c->ahead);
        if (rc == 0) {
            int64_t at = c->ahead->pts != AV_NOPTS_VALUE ? c->ahead->pts : c->ahead->best_effort_timestamp;
            c->ahead_at = c->linear ? c->came_out : at;
            c->came_out++;
            if (c->ahead_at != AV_NOPTS_VALUE) return 0;
            av_frame_unref(c->ahead); /* a frame that nobody could ask for */
        } else if (rc == AVERROR_EOF) {
            return rc;
        } else if (c->draining) {
            failures++;
        } else {
            feed(c);
        }
    }
    return AVERROR_EOF;
}

static void forget(struct tpo_clip *c)
{
    avcodec_flush_buffers(c->codec);
    av_frame_unref(c->shown);
    av_frame_unref(c->ahead);
    c->came_out = 0;
    c->draining = 0;
}

static int restart(struct tpo_clip *c)
{
    forget(c);
    c->from_start = 1;
    return tpo_clip_rewind(c);
}

/* The latest keyframe at or before `place`, or the first one. */
static int64_t keyframe_of(const struct tpo_clip *c, int64_t place)
{
    int64_t low = 0, high = c->n_keys;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (c->keys[middle] <= place)
            low = middle;
        else
            high = middle;
    }
    return c->keys[low];
}

static int move_to(struct tpo_clip *c, int64_t place)
{
    int behind = is_frame(c->shown) && c->shown_at > place;
    if (c->linear) return behind ? restart(c) : 0;
    int64_t key = keyframe_of(c, place);
    if (!behind && (is_frame(c->shown) ? key <= c->shown_at : c->from_start && key == c->keys[0])) return 0;
    if (is_frame(c->ahead) && !behind && key <= c->ahead_at) return 0;
    forget(c);
    c->from_start = 0;
    /* The keyframe's own pts: its dts would land a whole group of pictures earlier. */
    return av_seek_frame(c->format, c->stream->index, key, AVSEEK_FLAG_BACKWARD) < 0 ? restart(c) : 0;
}

/* Decodes until c->shown is the frame on the screen at `place`. */
static int advance(struct tpo_clip *c, int64_t place)
{
    while (!is_frame(c->shown) || c->shown_at < place) {
        if (!is_frame(c->ahead) && pull(c) != 0) break;
        if (is_frame(c->shown) && c->ahead_at > place) break;
        av_frame_unref(c->shown);
        av_frame_move_ref(c->shown, c->ahead);
        c->shown_at = c->ahead_at;
    }
    return is_frame(c->shown) ? 0 : AVERROR_INVALIDDATA;
}

int tpo_clip_decode(struct tpo_clip *c, int64_t index)
{
    int64_t place = c->linear ? index : c->pts[index];
    int rc = move_to(c, place);
    if (rc == 0) rc = advance(c, place);
    /* A seek that landed too late, or where the decoder could not begin: walk there from the start. */
    if (!c->from_start && (rc < 0 || c->shown_at > place)) {
        rc = restart(c);
        if (rc == 0) rc = advance(c, place);
    }
    return rc;
}

int tpo_clip_frame(struct tpo_clip *c, int64_t index, uint8_t *dst, size_t dst_bytes, struct tpo_media_reply *reply)
{
    if (index < 0 || index >= c->n) return tpo_clip_fail(reply, TPO_OUT_OF_RANGE, "media_frame", "there is no such frame");
    if ((uint64_t)c->width * (uint64_t)c->height * 3 > dst_bytes)
        return tpo_clip_fail(reply, TPO_INTERNAL, "media_ring", "the ring is too small");
    int rc = tpo_clip_decode(c, index);
    /* A film may change its size on the way; it is shown at that of its first frame. */
    if (rc == 0 && (int64_t)c->shown->width * c->shown->height > c->max_pixels) rc = AVERROR(ENOMEM);
    if (rc == 0) rc = tpo_picture_render(&c->picture, dst, c->shown, c->turn, c->stored_w, c->stored_h);
    if (rc < 0) return tpo_clip_fail_av(reply, rc, "a frame cannot be decoded");
    if (c->untimed)
        reply->time_s = (double)index / c->fps;
    else
        reply->time_s = c->image ? 0 : tpo_clip_seconds(c, index);
    return TPO_OK;
}
