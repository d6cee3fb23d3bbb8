/* Resizing against the two-dimensional sum it stands for, in f64, and what must hold of any filter. */
#include <math.h>

#include "kernels/resize.h"
#include "tests/support/test.h"

int tpo_resize_u8_cpu(struct tpo_stream *s, uint8_t *dst, int h, int w, const uint8_t *src, int H, int W, int antialias);
int tpo_resize_f32_cpu(struct tpo_stream *s, float *dst, int h, int w, const float *src, int C, int H, int W, int antialias);
int tpo_normalise_cpu(struct tpo_stream *s, float *dst, const uint8_t *src, const float mean[3], const float std[3], int H, int W);

/* Keys' kernel, written as its two polynomials. */
static double keys(double x, double a)
{
    x = fabs(x);
    if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
    return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

static double clamped(int j, int n)
{
    return j < 0 ? 0 : j >= n ? n - 1 : j;
}

/* The weight of input j for output i. */
static double weight(int i, int j, int in, int out, int antialias)
{
    double scale = (double)in / out, sum = 0, x = scale * (i + 0.5) - 0.5;
    if (antialias) {
        double stretch = scale > 1 ? scale : 1;
        for (int k = 0; k < in; k++) sum += keys((k - x) / stretch, -0.5);
        return keys((j - x) / stretch, -0.5) / sum;
    }
    for (int k = (int)floor(x) - 1; k <= (int)floor(x) + 2; k++)
        if (clamped(k, in) == j) sum += keys(k - x, -0.75);
    return sum;
}

static double oracle(const double *src, int i, int j, int h, int w, int H, int W, int antialias)
{
    double sum = 0;
    for (int y = 0; y < H; y++) {
        double wy = weight(i, y, H, h, antialias);
        if (wy == 0) continue;
        for (int x = 0; x < W; x++) sum += wy * weight(j, x, W, w, antialias) * src[y * W + x];
    }
    return sum;
}

static const int sizes[][4] = {{7, 5, 12, 9}, {16, 16, 8, 8}, {9, 31, 14, 10}, {33, 31, 13, 17},
                               {1, 1, 4, 4},  {2, 3, 2, 7},   {40, 1, 3, 5},   {31, 33, 1, 1}};

static uint8_t *noise(size_t n)
{
    uint64_t s = tpo_test_seed() | 1;
    uint8_t *p = malloc(n);
    for (size_t i = 0; i < n; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        p[i] = s % 5 == 0 ? 255 : s % 5 == 1 ? 0 : (uint8_t)(s >> 32);
    }
    return p;
}

static void equals_the_sum_in_two_dimensions(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof(sizes) / sizeof(sizes[0]); c++)
        for (int antialias = 0; antialias < 2; antialias++) {
            int H = sizes[c][0], W = sizes[c][1], h = sizes[c][2], w = sizes[c][3];
            uint8_t *src = noise((size_t)H * W * 3), *dst = malloc((size_t)h * w * 3);
            double *plane = malloc((size_t)H * W * sizeof(*plane));
            float *fsrc = malloc((size_t)H * W * sizeof(*fsrc)), *fdst = malloc((size_t)h * w * sizeof(*fdst));
            assert_int_equal(tpo_resize_u8_cpu(NULL, dst, h, w, src, H, W, antialias), TPO_OK);
            for (int ch = 0; ch < 3; ch++) {
                for (int i = 0; i < H * W; i++) plane[i] = src[3 * i + ch], fsrc[i] = src[3 * i + ch];
                assert_int_equal(tpo_resize_f32_cpu(NULL, fdst, h, w, fsrc, 1, H, W, antialias), TPO_OK);
                for (int i = 0; i < h * w; i++) {
                    double want = oracle(plane, i / w, i % w, h, w, H, W, antialias), shown = want < 0     ? 0
                                                                                              : want > 255 ? 255
                                                                                                           : want;
                    if (fabs(fdst[i] - want) > 1e-3) fail_msg("f32: got %f, want %f", fdst[i], want);
                    if (fabs(dst[3 * i + ch] - shown) > 0.501) fail_msg("u8: got %d, want %f", dst[3 * i + ch], want);
                }
            }
            free(src), free(dst), free(plane), free(fsrc), free(fdst);
        }
}

static void equal_sizes_are_a_copy(void **state)
{
    (void)state;
    uint8_t *src = noise(31 * 33 * 3), dst[31 * 33 * 3];
    assert_int_equal(tpo_resize_u8_cpu(NULL, dst, 31, 33, src, 31, 33, 1), TPO_OK);
    assert_memory_equal(dst, src, sizeof(dst));
    free(src);
}

static void a_flat_picture_stays_flat(void **state)
{
    (void)state;
    static uint8_t src[200 * 300 * 3], dst[224 * 224 * 3];
    for (int v = 0; v < 256; v += 51) {
        memset(src, v, sizeof(src));
        for (int antialias = 0; antialias < 2; antialias++) {
            assert_int_equal(tpo_resize_u8_cpu(NULL, dst, 224, 224, src, 200, 300, antialias), TPO_OK);
            for (size_t i = 0; i < sizeof(dst); i++) assert_int_equal(dst[i], v);
        }
    }
}

static void f32_overshoots_and_u8_clamps(void **state)
{
    (void)state;
    float edge[8] = {0, 0, 0, 0, 1, 1, 1, 1}, out[16], low = 0, high = 0;
    assert_int_equal(tpo_resize_f32_cpu(NULL, out, 1, 16, edge, 1, 1, 8, 1), TPO_OK);
    for (int i = 0; i < 16; i++) low = fminf(low, out[i]), high = fmaxf(high, out[i]);
    assert_true(low < -0.01f && high > 1.01f);
}

static void planes_do_not_mix(void **state)
{
    (void)state;
    float src[3 * 6 * 5], all[3 * 4 * 9], one[4 * 9];
    for (int i = 0; i < 90; i++) src[i] = (float)((i * 37) % 101);
    assert_int_equal(tpo_resize_f32_cpu(NULL, all, 4, 9, src, 3, 6, 5, 1), TPO_OK);
    for (int c = 0; c < 3; c++) {
        assert_int_equal(tpo_resize_f32_cpu(NULL, one, 4, 9, src + c * 30, 1, 6, 5, 1), TPO_OK);
        assert_memory_equal(one, all + c * 36, sizeof(one));
    }
}

static void a_long_side_shrinks_to_one(void **state)
{
    (void)state;
    uint8_t *src = calloc(65535, 3), dst[3];
    memset(src, 77, 65535 * 3);
    assert_int_equal(tpo_resize_u8_cpu(NULL, dst, 1, 1, src, 65535, 1, 1), TPO_OK);
    assert_int_equal(dst[1], 77);
    assert_int_equal(tpo_resize_u8_cpu(NULL, dst, 1, 1, src, 1, 65536, 1), TPO_EINVAL);
    assert_int_equal(tpo_resize_u8_cpu(NULL, dst, 0, 1, src, 1, 1, 1), TPO_EINVAL);
    assert_int_equal(tpo_resize_f32_cpu(NULL, NULL, 1, 1, NULL, 0, 1, 1, 1), TPO_EINVAL);
    assert_int_equal(tpo_resize_f32_cpu(NULL, NULL, 1, -1, NULL, 1, 1, 1, 1), TPO_EINVAL);
    free(src);
}

static void normalises_into_planes(void **state)
{
    (void)state;
    const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
    uint8_t src[2 * 3 * 3];
    float dst[3 * 6];
    for (int i = 0; i < 18; i++) src[i] = (uint8_t)(i * 15);
    assert_int_equal(tpo_normalise_cpu(NULL, dst, src, mean, std, 2, 3), TPO_OK);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 6; i++) assert_true(fabs(dst[c * 6 + i] - (src[3 * i + c] / 255.0 - mean[c]) / std[c]) < 1e-5);
    assert_int_equal(tpo_normalise_cpu(NULL, dst, src, mean, std, 0, 3), TPO_EINVAL);
}

TPO_TESTS(cmocka_unit_test(equals_the_sum_in_two_dimensions), cmocka_unit_test(equal_sizes_are_a_copy),
          cmocka_unit_test(a_flat_picture_stays_flat), cmocka_unit_test(f32_overshoots_and_u8_clamps),
          cmocka_unit_test(planes_do_not_mix), cmocka_unit_test(a_long_side_shrinks_to_one),
          cmocka_unit_test(normalises_into_planes))
