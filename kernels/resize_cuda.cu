/* This file owns resizing and normalisation on CUDA: the CPU's two passes with the CPU's weights, every product rounded before it is added, so that
 * the bits are the same. The weights are made on the host for each call; what serving resizes, tpo-media has resized before. */
#include <math.h>

#include "kernels/cuda.h"
extern "C" {
#include "kernels/resize_taps.h"
}

/* A tpo_side that lies in memory of the device. */
struct taps {
    const int *at, *n;
    const float *weight;
    int taps;
};

template <typename Pixel> __device__ static float sum_taps(const Pixel *p, int64_t step, const struct taps &side, int i)
{
    const int *at = side.at + (int64_t)i * side.taps;
    const float *weight = side.weight + (int64_t)i * side.taps;
    float sum = 0.0f;
    for (int k = 0; k < side.n[i]; k++) sum = __fadd_rn(sum, __fmul_rn(weight[k], (float)p[at[k] * step]));
    return sum;
}

/* Planes of (H, row) become planes of (h, row). */
template <typename Pixel>
__global__ void down(float *to, const Pixel *src, const struct taps y, int h, int H, int64_t row, int64_t n)
{
    TPO_EACH(i, n)
    {
        const int64_t plane = i / (h * row);
        to[i] = sum_taps(src + plane * H * row + i % row, row, y, (int)(i / row % h));
    }
}

__device__ static void put(uint8_t *to, float x)
{
    *to = x <= 0.0f ? 0 : x >= 255.0f ? 255 : (uint8_t)__float2int_rn(x);
}

__device__ static void put(float *to, float x)
{
    *to = x;
}

/* Rows of (W, channels) become rows of (w, channels). */
template <typename Pixel>
__global__ void across(Pixel *dst, const float *rows, const struct taps x, int w, int W, int channels, int64_t n)
{
    TPO_EACH(i, n)
    {
        const int64_t row = i / ((int64_t)w * channels);
        put(dst + i, sum_taps(rows + row * W * channels + i % channels, channels, x, (int)(i / channels % w)));
    }
}

/* A side's three arrays behind each other at `to`. */
static int side_in(struct tpo_stream *s, struct taps *out, char *to, const struct tpo_side *side, int n)
{
    const size_t taps = (size_t)n * (size_t)side->taps;
    char *at = to, *weight = at + taps * sizeof(int), *count = weight + taps * sizeof(float);
    *out = (struct taps){(const int *)at, (const int *)count, (const float *)weight, side->taps};
    int rc = s->device->copy_in(s, at, side->at, taps * sizeof(int));
    if (rc == TPO_OK) rc = s->device->copy_in(s, weight, side->weight, taps * sizeof(float));
    return rc == TPO_OK ? s->device->copy_in(s, count, side->n, (size_t)n * sizeof(int)) : rc;
}

static size_t side_bytes(const struct tpo_side *side, int n)
{
    return ((size_t)n * (size_t)side->taps * 2 + (size_t)n) * sizeof(int);
}

/* `planes` pictures of (H, W, channels) to (h, w, channels). */
template <typename Pixel>
static int passes(struct tpo_stream *s, Pixel *dst, const Pixel *src, const struct tpo_side *y, const struct tpo_side *x,
                  int planes, int channels, int h, int w, int H, int W)
{
    const int64_t row = (int64_t)W * channels, middle = planes * h * row, n = (int64_t)planes * h * w * channels;
    const size_t y_bytes = side_bytes(y, h);
    struct taps down_taps, across_taps;
    char *scratch = (char *)tpo_cuda_scratch(s, y_bytes + side_bytes(x, w) + (size_t)middle * sizeof(float));
    if (scratch == NULL) return TPO_ENOMEM;
    float *between = (float *)(scratch + y_bytes + side_bytes(x, w));
    int rc = side_in(s, &down_taps, scratch, y, h);
    if (rc == TPO_OK) rc = side_in(s, &across_taps, scratch + y_bytes, x, w);
    if (rc != TPO_OK) return rc;
    down<<<tpo_cuda_blocks(middle, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(between, src, down_taps, h, H, row, middle);
    across<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dst, between, across_taps, w, W, channels, n);
    return tpo_cuda_launched();
}

template <typename Pixel>
static int resize(struct tpo_stream *s, Pixel *dst, const Pixel *src, int planes, int channels, int h, int w, int H, int W,
                  int antialias)
{
    struct tpo_side y, x;
    if (!tpo_resize_sizes_ok(h, w, H, W) || planes < 1) return TPO_EINVAL;
    if (h == H && w == W)
        return s->device->copy_in(s, dst, src, (size_t)planes * (size_t)h * (size_t)w * (size_t)channels * sizeof(*dst));
    int rc = tpo_side_init(&y, H, h, antialias);
    if (rc != TPO_OK) return rc;
    rc = tpo_side_init(&x, W, w, antialias);
    if (rc == TPO_OK) {
        rc = passes(s, dst, src, &y, &x, planes, channels, h, w, H, W);
        tpo_side_free(&x);
    }
    tpo_side_free(&y);
    return rc;
}

extern "C" int tpo_resize_u8_cuda(struct tpo_stream *s, uint8_t *dst, int h, int w, const uint8_t *src, int H, int W, int antialias)
{
    return resize(s, dst, src, 1, 3, h, w, H, W, antialias);
}

extern "C" int tpo_resize_f32_cuda(struct tpo_stream *s, float *dst, int h, int w, const float *src, int C, int H, int W,
                                   int antialias)
{
    return resize(s, dst, src, C, 1, h, w, H, W, antialias);
}

struct channels {
    float mean[3], std[3];
};

__global__ void normalise(float *dst, const uint8_t *src, const struct channels c, int64_t pixels, int64_t n)
{
    TPO_EACH(i, n)
    {
        const int channel = (int)(i / pixels);
        dst[i] = __fdiv_rn(__fsub_rn(__fdiv_rn((float)src[3 * (i % pixels) + channel], 255.0f), c.mean[channel]), c.std[channel]);
    }
}

extern "C" int tpo_normalise_cuda(struct tpo_stream *s, float *dst, const uint8_t *src, const float mean[3], const float std[3],
                                  int H, int W)
{
    if (H < 1 || W < 1) return TPO_EINVAL;
    const int64_t pixels = (int64_t)H * W, n = 3 * pixels;
    struct channels c;
    for (int i = 0; i < 3; i++) c.mean[i] = mean[i], c.std[i] = std[i];
    normalise<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(dst, src, c, pixels, n);
    return tpo_cuda_launched();
}
