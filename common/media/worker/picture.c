/* This file owns pixel formats and orientation. */
#include "common/media/worker/picture.h"

#include <libavutil/mem.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
#include <string.h>

#define ALIGN 64 /* swscale's vector code may write past the end of a line, up to its stride */

struct tpo_rotation tpo_rotation_of(const int32_t *m)
{
    struct tpo_rotation identity = {1, 0, 0, 1};
    if (m == NULL) return identity;
#define SIGN(v) (((v) > 0) - ((v) < 0))
    struct tpo_rotation t = {SIGN(m[0]), SIGN(m[1]), SIGN(m[3]), SIGN(m[4])};
#undef SIGN
    int straight = t.xx != 0 && t.yy != 0 && t.xy == 0 && t.yx == 0, crossed = t.xx == 0 && t.yy == 0 && t.xy != 0 && t.yx != 0;
    return straight || crossed ? t : identity;
}

/* The formats of JPEG carry their range in their name; swscale wants it beside the plain format. */
static int plain_format(int format, int *full)
{
    switch (format) {
    case AV_PIX_FMT_YUVJ420P:
        *full = 1;
        return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P:
        *full = 1;
        return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P:
        *full = 1;
        return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P:
        *full = 1;
        return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P:
        *full = 1;
        return AV_PIX_FMT_YUV411P;
    default:
        return format;
    }
}

static int source_range(const AVFrame *f, const AVPixFmtDescriptor *d)
{
    if (f->color_range == AVCOL_RANGE_UNSPECIFIED) return (d->flags & AV_PIX_FMT_FLAG_RGB) != 0 || d->nb_components <= 2;
    return f->color_range == AVCOL_RANGE_JPEG;
}

static int prepare(struct tpo_picture *p, const AVFrame *f, int w, int h)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    if (d == NULL || (d->flags & AV_PIX_FMT_FLAG_HWACCEL)) return AVERROR_INVALIDDATA;
    int full = source_range(f, d), format = plain_format(f->format, &full);
    /* A CMYK jpeg reports the matrix of YUV beside pixels that are RGB. */
    int space = (d->flags & AV_PIX_FMT_FLAG_RGB) || f->colorspace == AVCOL_SPC_UNSPECIFIED ? SWS_CS_DEFAULT : (int)f->colorspace;
    int key[8] = {f->width, f->height, format, full, space, w, h, 1};
    if (p->sws != NULL && memcmp(key, p->key, sizeof(key)) == 0) return 0;
    sws_freeContext(p->sws);
    p->sws =
        sws_getContext(f->width, f->height, format, w, h, AV_PIX_FMT_RGB24,
                       SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_BITEXACT, NULL, NULL, NULL);
    if (p->sws == NULL) return AVERROR(ENOMEM);
    sws_setColorspaceDetails(p->sws, sws_getCoefficients(space), full, sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
    memcpy(p->key, key, sizeof(key));
    return 0;
}

static void turn_into(uint8_t *dst, const uint8_t *src, ptrdiff_t stride, struct tpo_rotation t, int w, int h)
{
    int out_w = t.xx != 0 ? w : h, out_h = t.xx != 0 ? h : w;
    /* The inverse of a turn is its transpose; a negative direction starts at the far end. */
    ptrdiff_t right = (ptrdiff_t)t.xx * 3 + t.yx * stride, down = (ptrdiff_t)t.xy * 3 + t.yy * stride;
    if (t.xx + t.xy < 0) src += (ptrdiff_t)(w - 1) * 3;
    if (t.yx + t.yy < 0) src += (ptrdiff_t)(h - 1) * stride;
    for (int y = 0; y < out_h; y++, src += down) {
        const uint8_t *p = src;
        if (right == 3) {
            memcpy(dst, p, (size_t)out_w * 3);
            dst += (size_t)out_w * 3;
            continue;
        }
        for (int x = 0; x < out_w; x++, p += right, dst += 3) dst[0] = p[0], dst[1] = p[1], dst[2] = p[2];
    }
}

int tpo_picture_render(struct tpo_picture *p, uint8_t *dst, const AVFrame *frame, struct tpo_rotation turn, int stored_w,
                       int stored_h)
{
    int rc = prepare(p, frame, stored_w, stored_h);
    if (rc < 0) return rc;
    int stride = (stored_w * 3 + ALIGN - 1) / ALIGN * ALIGN;
    size_t bytes = (size_t)stride * (size_t)stored_h + ALIGN;
    if (bytes > p->rgb_bytes) {
        av_freep(&p->rgb);
        p->rgb = av_malloc(bytes);
        p->rgb_bytes = p->rgb != NULL ? bytes : 0;
        if (p->rgb == NULL) return AVERROR(ENOMEM);
    }
    rc = sws_scale(p->sws, (const uint8_t *const *)frame->data, frame->linesize, 0, frame->height, (uint8_t *const[]){p->rgb},
                   (const int[]){stride});
    if (rc != stored_h) return rc < 0 ? rc : AVERROR_INVALIDDATA;
    turn_into(dst, p->rgb, stride, turn, stored_w, stored_h);
    return 0;
}

void tpo_picture_free(struct tpo_picture *p)
{
    sws_freeContext(p->sws);
    av_freep(&p->rgb);
    memset(p, 0, sizeof(*p));
}
