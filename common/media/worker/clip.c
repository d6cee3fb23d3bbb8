/* This file owns opening: which kind a file is, which of its packets are frames, and the size it is displayed at. */
#include "common/media/worker/clip.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/status.h"

#define IO_BYTES 65536
#define INDEX_BYTES                                                                                                                \
    ((size_t)64 << 20) /* the most a demuxer may take at once: a header that claims ten million samples wants more */
#define STREAMS_MAX "32"
#define DEPTH_MAX   16 /* of reordering, in any codec we take */

static const struct tpo_clip_kind {
    const char *demuxer; /* NULL: a still, the file is the packet */
    enum AVCodecID codec;
    int at, n;
    char magic[9];
    int linear;
} kinds[] = {
    {NULL, AV_CODEC_ID_PNG, 0, 8, "\x89PNG\r\n\x1a\n", 1},
    {NULL, AV_CODEC_ID_MJPEG, 0, 3, "\xff\xd8\xff", 1},
    {"gif", AV_CODEC_ID_GIF, 0, 6, "GIF87a", 1},
    {"gif", AV_CODEC_ID_GIF, 0, 6, "GIF89a", 1},
    {"matroska", AV_CODEC_ID_NONE, 0, 4, "\x1a\x45\xdf\xa3", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "ftyp", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "moov", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "mdat", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "free", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "skip", 0},
    {"mov", AV_CODEC_ID_NONE, 4, 4, "wide", 0},
};

/* format->codec_whitelist does not bind a decoder that we open ourselves, so this list does. */
static const enum AVCodecID codecs[] = {AV_CODEC_ID_H264,  AV_CODEC_ID_HEVC,  AV_CODEC_ID_AV1, AV_CODEC_ID_VP8, AV_CODEC_ID_VP9,
                                        AV_CODEC_ID_MPEG4, AV_CODEC_ID_MJPEG, AV_CODEC_ID_PNG, AV_CODEC_ID_GIF};

int tpo_clip_fail(struct tpo_media_reply *reply, int code, const char *reason, const char *message)
{
    reply->code = code;
    snprintf(reply->reason, sizeof(reply->reason), "%s", reason);
    snprintf(reply->message, sizeof(reply->message), "%s", message);
    return code;
}

int tpo_clip_fail_av(struct tpo_media_reply *reply, int averror, const char *message)
{
    if (averror == AVERROR(ENOMEM))
        return tpo_clip_fail(reply, TPO_INVALID_ARGUMENT, "media_too_large",
                             "decoding it takes more memory than one file may have");
    return tpo_clip_fail(reply, TPO_INVALID_ARGUMENT, "media_unreadable", message);
}

int64_t tpo_clip_read(int fd, void *to, size_t bytes, int64_t at)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (char *)to + done, bytes - done, (off_t)(at + (int64_t)done));
        if (n <= 0) break;
        done += (size_t)n;
    }
    return (int64_t)done;
}

/* --- reading ------------------------------------------------------------------------------------------------------------------- */
static int on_read(void *opaque, uint8_t *to, int bytes)
{
    struct tpo_clip *c = opaque;
    int64_t n = tpo_clip_read(c->fd, to, (size_t)bytes, c->at);
    c->at += n;
    return n > 0 ? (int)n : AVERROR_EOF;
}

static int64_t on_seek(void *opaque, int64_t to, int whence)
{
    struct tpo_clip *c = opaque;
    if (whence & AVSEEK_SIZE) return c->size;
    whence &= ~AVSEEK_FORCE;
    if (whence == SEEK_CUR)
        to += c->at;
    else if (whence == SEEK_END)
        to += c->size;
    if (to < 0) return AVERROR(EINVAL);
    return c->at = to;
}

/* References to other files, in whatever form a format has them, open nothing. */
static int on_open_other(AVFormatContext *s, AVIOContext **io, const char *url, int flags, AVDictionary **options)
{
    (void)s, (void)io, (void)url, (void)flags, (void)options;
    return AVERROR(EPERM);
}

static void close_format(struct tpo_clip *c)
{
    avformat_close_input(&c->format);
    if (c->io != NULL) av_freep(&c->io->buffer);
    avio_context_free(&c->io);
    c->stream = NULL;
}

static int open_demuxer(struct tpo_clip *c)
{
    const AVInputFormat *demuxer = av_find_input_format(c->kind->demuxer);
    AVDictionary *options = NULL;
    uint8_t *buffer = av_malloc(IO_BYTES);
    c->at = 0;
    c->format = avformat_alloc_context();
    c->io = buffer != NULL ? avio_alloc_context(buffer, IO_BYTES, 0, c, on_read, NULL, on_seek) : NULL;
    if (c->io == NULL) av_free(buffer);
    if (demuxer == NULL || c->format == NULL || c->io == NULL) return AVERROR(ENOMEM);
    c->format->pb = c->io;
    c->format->flags |= AVFMT_FLAG_CUSTOM_IO;
    c->format->io_open = on_open_other;
    av_dict_set(&options, "protocol_whitelist", "", 0);
    av_dict_set(&options, "format_whitelist", demuxer->name, 0);
    av_dict_set(&options, "max_streams", STREAMS_MAX, 0);
    if (strcmp(c->kind->demuxer, "gif") == 0) av_dict_set(&options, "ignore_loop", "1", 0);
    int rc = avformat_open_input(&c->format, "", demuxer, &options);
    av_dict_free(&options);
    return rc;
}

static int choose_stream(struct tpo_clip *c)
{
    for (unsigned i = 0; i < c->format->nb_streams; i++) {
        AVStream *s = c->format->streams[i];
        int wanted =
            c->stream == NULL && s->codecpar->codec_type == AVMEDIA_TYPE_VIDEO && !(s->disposition & AV_DISPOSITION_ATTACHED_PIC);
        if (wanted) c->stream = s;
        s->discard = wanted ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    }
    return c->stream != NULL ? 0 : AVERROR_STREAM_NOT_FOUND;
}

int tpo_clip_rewind(struct tpo_clip *c)
{
    c->at = 0;
    if (c->kind->demuxer == NULL) return 0;
    close_format(c);
    av_max_alloc(INDEX_BYTES);
    int rc = open_demuxer(c);
    av_max_alloc(INT_MAX);
    return rc < 0 ? rc : choose_stream(c);
}

/* --- the list of frames ------------------------------------------------------------------------------------------------------------ */
static int append(int64_t **list, int64_t n, int64_t value)
{
    if ((n & (n - 1)) == 0) { /* full at every power of two */
        int64_t *more = realloc(*list, (size_t)(n > 0 ? 2 * n : 1) * sizeof(**list));
        if (more == NULL) return AVERROR(ENOMEM);
        *list = more;
    }
    (*list)[n] = value;
    return 0;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int note_packet(struct tpo_clip *c, const AVPacket *p, int64_t recent[DEPTH_MAX])
{
    int overtaken_by = 0;
    int64_t at = p->pts;
    if (at == AV_NOPTS_VALUE) at = p->dts;
    if (at == AV_NOPTS_VALUE) c->untimed = c->linear = 1;
    for (int i = 0; i < DEPTH_MAX; i++) overtaken_by += c->n > i && recent[i] > at;
    if (overtaken_by > c->depth) c->depth = overtaken_by;
    recent[c->n % DEPTH_MAX] = at;
    if (c->n == c->max_frames) return AVERROR(ERANGE);
    int rc = append(&c->pts, c->n, at);
    if (rc == 0) c->n++;
    if (rc == 0 && (p->flags & AV_PKT_FLAG_KEY)) {
        rc = append(&c->keys, c->n_keys, at);
        if (rc == 0) c->n_keys++;
    }
    return rc;
}

/* A pass over all packets: headers lie about how many there are. */
static int list_frames(struct tpo_clip *c)
{
    int64_t recent[DEPTH_MAX] = {0};
    int rc = 0;
    while (rc == 0 && av_read_frame(c->format, c->packet) >= 0) {
        /* Edit lists cut frames by flag; a file cut short ends in half a packet. */
        if (c->packet->stream_index == c->stream->index && !(c->packet->flags & (AV_PKT_FLAG_DISCARD | AV_PKT_FLAG_CORRUPT)))
            rc = note_packet(c, c->packet, recent);
        av_packet_unref(c->packet);
    }
    if (rc < 0) return rc;
    if (c->n == 0) return AVERROR_INVALIDDATA;
    qsort(c->pts, (size_t)c->n, sizeof(*c->pts), compare);
    if (c->n_keys > 0)
        qsort(c->keys, (size_t)c->n_keys, sizeof(*c->keys), compare);
    else
        c->linear = 1;
    return 0;
}

static double plausible(double fps, double otherwise)
{
    return isfinite(fps) && fps >= 1 && fps <= 1000 ? fps : otherwise;
}

double tpo_clip_seconds(const struct tpo_clip *c, int64_t index)
{
    /* Multiplied before divided: .7 and not .7000000000000001. Doubles, since a header may put frames an age apart. */
    return ((double)c->pts[index] - (double)c->pts[0]) * c->stream->time_base.num / c->stream->time_base.den;
}

/* The mean rate between the first frame and the last; how long the last one stays is a header's claim. */
static double mean_rate(const struct tpo_clip *c)
{
    double declared = plausible(av_q2d(c->stream->avg_frame_rate), 25);
    if (c->untimed || c->n < 2) return declared;
    double span = tpo_clip_seconds(c, c->n - 1);
    return span > 0 && isfinite(span) ? (double)(c->n - 1) / span : declared;
}

/* --- the decoder --------------------------------------------------------------------------------------------------------------------- */
static int open_decoder(struct tpo_clip *c)
{
    enum AVCodecID id = c->stream != NULL ? c->stream->codecpar->codec_id : c->kind->codec;
    int known = 0, rc = 0;
    for (size_t i = 0; i < sizeof(codecs) / sizeof(codecs[0]); i++) known |= codecs[i] == id;
    const AVCodec *codec = known ? avcodec_find_decoder(id) : NULL;
    if (codec == NULL) return AVERROR_DECODER_NOT_FOUND;
    c->codec = avcodec_alloc_context3(codec);
    if (c->codec == NULL) return AVERROR(ENOMEM);
    if (c->stream != NULL) rc = avcodec_parameters_to_context(c->codec, c->stream->codecpar);
    if (rc < 0) return rc;
    c->codec->thread_count = 1;
    /* libavcodec compares a size that it has padded; the frame's own is compared when it is out. */
    c->codec->max_pixels = 2 * c->max_pixels + (1 << 20);
    /* The stream was not probed by decoding, so the decoder of a Matroska file would find its delay by trial and give frames out of order. */
    if (id == AV_CODEC_ID_H264 && c->codec->has_b_frames < c->depth) c->codec->has_b_frames = c->depth;
    if (c->stream != NULL) c->codec->pkt_timebase = c->stream->time_base;
    /* A truncated picture otherwise comes out half grey, without an error. */
    if (c->format == NULL) c->codec->err_recognition = AV_EF_EXPLODE | AV_EF_BITSTREAM | AV_EF_CAREFUL | AV_EF_CRCCHECK;
    return avcodec_open2(c->codec, codec, NULL);
}

static int64_t be(const uint8_t *p, int bytes)
{
    int64_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[i];
    return v;
}

/* Size of a jpeg by its frame header, so that too large a picture is told from a broken one; 0 when none is found in its markers. */
static int64_t jpeg_pixels(const struct tpo_clip *c)
{
    uint8_t m[9];
    for (int64_t at = 2; tpo_clip_read(c->fd, m, 9, at) == 9 && m[0] == 0xff;) {
        int frame = m[1] >= 0xc0 && m[1] <= 0xcf && m[1] != 0xc4 && m[1] != 0xc8 && m[1] != 0xcc;
        if (frame) return be(m + 5, 2) * be(m + 7, 2);
        if (m[1] == 0xda) return 0;
        at += m[1] == 0xff ? 1 : 2 + be(m + 2, 2);
    }
    return 0;
}

static int64_t claimed_pixels(const struct tpo_clip *c)
{
    uint8_t png[24];
    if (c->stream != NULL) return (int64_t)c->stream->codecpar->width * c->stream->codecpar->height;
    if (c->kind->codec == AV_CODEC_ID_MJPEG) return jpeg_pixels(c);
    if (tpo_clip_read(c->fd, png, sizeof(png), 0) != sizeof(png)) return 0;
    int64_t w = be(png + 16, 4), h = be(png + 20, 4);
    return w > INT_MAX || h > INT_MAX ? INT64_MAX : w * h;
}

/* --- the displayed size ------------------------------------------------------------------------------------------------------------ */
static const int32_t *display_matrix(const struct tpo_clip *c)
{
    size_t bytes = 0;
    const AVFrameSideData *of_frame = av_frame_get_side_data(c->shown, AV_FRAME_DATA_DISPLAYMATRIX);
    if (of_frame != NULL && of_frame->size >= 36) return (const int32_t *)of_frame->data;
    const uint8_t *of_stream = c->stream != NULL ? av_stream_get_side_data(c->stream, AV_PKT_DATA_DISPLAYMATRIX, &bytes) : NULL;
    return of_stream != NULL && bytes >= 36 ? (const int32_t *)of_stream : NULL;
}

/* Pixels of films may be oblong; those of stills are shown square by every viewer, whatever density they declare. */
static int settle_size(struct tpo_clip *c)
{
    AVRational shape = c->kind->linear ? (AVRational){1, 1} : av_guess_sample_aspect_ratio(c->format, c->stream, c->shown);
    double w = c->shown->width;
    if (shape.num > 0 && shape.den > 0) w = rint(w * shape.num / shape.den);
    if (w < 1) w = 1;
    if (w > TPO_MEDIA_SIDE || c->shown->height > TPO_MEDIA_SIDE || w * c->shown->height > (double)c->max_pixels)
        return AVERROR(ERANGE);
    c->stored_w = (int)w;
    c->stored_h = c->shown->height;
    c->turn = tpo_rotation_of(display_matrix(c));
    c->width = c->turn.xx != 0 ? c->stored_w : c->stored_h;
    c->height = c->turn.xx != 0 ? c->stored_h : c->stored_w;
    return 0;
}

static const struct tpo_clip_kind *kind_of(int fd)
{
    char head[16] = {0};
    int64_t n = tpo_clip_read(fd, head, sizeof(head), 0);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (n >= kinds[i].at + kinds[i].n && memcmp(head + kinds[i].at, kinds[i].magic, (size_t)kinds[i].n) == 0) return &kinds[i];
    return NULL;
}

static int open_stages(struct tpo_clip *c, const char **what)
{
    *what = "its header is broken";
    int rc = tpo_clip_rewind(c);
    if (rc == AVERROR_STREAM_NOT_FOUND) *what = "it holds no video";
    if (rc < 0) return rc;
    if (claimed_pixels(c) > c->max_pixels) return AVERROR(ERANGE);
    *what = "it holds no whole frame";
    if (c->format != NULL)
        rc = list_frames(c);
    else
        c->n = 1;
    if (rc < 0) return rc;
    c->image = c->format == NULL || (c->kind->codec == AV_CODEC_ID_GIF && c->n == 1);
    c->fps = c->image ? 1 : mean_rate(c);
    *what = "its codec is none of h264, hevc, av1, vp8, vp9, mpeg4, mjpeg, png, gif";
    rc = open_decoder(c);
    if (rc < 0) return rc;
    *what = "its first frame cannot be decoded";
    if (c->linear) rc = tpo_clip_rewind(c);
    c->from_start = c->linear;
    if (rc == 0) rc = tpo_clip_decode(c, 0);
    return rc < 0 ? rc : settle_size(c);
}

int tpo_clip_open(struct tpo_clip **out, int fd, int64_t max_pixels, int64_t max_frames, struct tpo_media_reply *reply)
{
    const char *what = "";
    struct tpo_clip *c = calloc(1, sizeof(*c));
    int rc = AVERROR(ENOMEM);
    *out = NULL;
    if (c == NULL) {
        close(fd);
        return tpo_clip_fail_av(reply, rc, what);
    }
    c->fd = fd;
    c->max_pixels = max_pixels;
    c->max_frames = max_frames;
    c->size = lseek(fd, 0, SEEK_END);
    c->kind = kind_of(fd);
    if (c->kind == NULL) {
        tpo_clip_close(c);
        return tpo_clip_fail(reply, TPO_INVALID_ARGUMENT, "media_unreadable", "it is none of mp4, mov, webm, mkv, png, jpeg, gif");
    }
    c->linear = c->kind->linear;
    c->packet = av_packet_alloc();
    c->shown = av_frame_alloc();
    c->ahead = av_frame_alloc();
    if (c->packet != NULL && c->shown != NULL && c->ahead != NULL) rc = open_stages(c, &what);
    if (rc < 0) {
        tpo_clip_close(c);
        if (rc == AVERROR(ERANGE))
            return tpo_clip_fail(reply, TPO_INVALID_ARGUMENT, "media_too_large", "it has more pixels or frames than are taken");
        return tpo_clip_fail_av(reply, rc, what);
    }
    reply->image = c->image;
    reply->width = c->width;
    reply->height = c->height;
    reply->n_frames = c->n;
    reply->fps = c->fps;
    reply->duration_s = c->image ? 0 : (double)c->n / c->fps;
    *out = c;
    return TPO_OK;
}

void tpo_clip_close(struct tpo_clip *c)
{
    if (c == NULL) return;
    avcodec_free_context(&c->codec);
    close_format(c);
    av_packet_free(&c->packet);
    av_frame_free(&c->shown);
    av_frame_free(&c->ahead);
    tpo_picture_free(&c->picture);
    free(c->pts);
    free(c->keys);
    close(c->fd);
    free(c);
}
