/* Losses against f64, gradients against finite differences; logits near 1000, all rows ignored, boxes that meet, nest, part and invert. */
#include "tests/kernels/check.h"

struct entropy {
    int M, V;
    const int32_t *label;
    const float *weight;
};

static double entropy(const double *x, void *arg)
{
    const struct entropy *e = arg;
    double total = 0.0;
    for (int m = 0; m < e->M; m++, x += e->V) {
        if (e->label[m] < 0) continue;
        double top = x[0], sum = 0.0;
        for (int v = 1; v < e->V; v++) top = fmax(top, x[v]);
        for (int v = 0; v < e->V; v++) sum += exp(x[v] - top);
        total += (e->weight != NULL ? e->weight[m] : 1.0) * (top + log(sum) - x[e->label[m]]);
    }
    return total;
}

static void check_entropy(struct tpo_stream *s, int M, int V, int weighted, float spread, float shift, double tolerance)
{
    int64_t n = (int64_t)M * V;
    float *x = check_numbers("x", n, spread, shift), *weight = check_numbers("weight", M, 1, 0), *loss = check_zeros(M),
          *d = check_zeros(n);
    int32_t *label = check_alloc((size_t)M, sizeof(*label));
    for (int m = 0; m < M; m++) label[m] = m % 4 == 3 ? -100 : (int32_t)(tpo_random_u64(7, (uint64_t)m) % (uint64_t)V);
    if (M > 2) weight[2] = 0.0f;
    struct entropy e = {M, V, label, weighted ? weight : NULL};
    double *exact = check_doubles(x, n), *want = check_doubles(NULL, n), total = 0.0, size = 1.0;
    check_differences(want, exact, n, entropy, &e);
    assert_int_equal(tpo_cross_entropy(s, loss, x, label, e.weight, M, V), TPO_OK);
    for (int m = 0; m < M; m++) {
        if (label[m] < 0) assert_true(loss[m] == 0.0f);
        total += loss[m], size += fabsf(loss[m]);
    }
    assert_true(fabs(total - entropy(exact, &e)) <= tolerance * size);
    assert_int_equal(tpo_cross_entropy_grad(s, d, x, label, e.weight, 2.0f, M, V), TPO_OK);
    for (int64_t i = 0; i < n; i++) want[i] *= 2.0;
    check_near("dlogits", d, want, n, tolerance);
    assert_int_equal(tpo_cross_entropy_grad(s, x, x, label, e.weight, 2.0f, M, V), TPO_OK);
    check_same_bits("dlogits in place", x, d, (size_t)n * sizeof(float));
    free(x), free(weight), free(loss), free(d), free(label), free(exact), free(want);
}

static void cross_entropy_equals_differences(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    static const int sizes[][2] = {{1, 1}, {1, 31}, {5, 33}, {9, 17}, {3, 100}};
    for (size_t i = 0; i < 5; i++)
        for (int weighted = 0; weighted < 2; weighted++) check_entropy(s, sizes[i][0], sizes[i][1], weighted, 2, 0, 2e-5);
    tpo_stream_close(s);
}

static void logits_near_1000_stay_right(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    check_entropy(s, 4, 33, 1, 1, 1000, 5e-4);
    check_entropy(s, 4, 33, 1, 300, 0, 5e-4);
    float x[3] = {-1000.0f, 1000.0f, -INFINITY}, loss;
    int32_t label = 1;
    assert_int_equal(tpo_cross_entropy(s, &loss, x, &label, NULL, 1, 3), TPO_OK);
    assert_true(loss == 0.0f);
    label = 0;
    assert_int_equal(tpo_cross_entropy(s, &loss, x, &label, NULL, 1, 3), TPO_OK);
    assert_true(loss == 2000.0f);
    tpo_stream_close(s);
}

static void ignored_rows_give_nothing(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    float *x = check_numbers("x", 70 * 33, 1, 0), *d = check_numbers("d", 70 * 33, 1, 0), loss[70];
    int32_t label[70];
    for (int m = 0; m < 70; m++) label[m] = -100;
    x[0] = NAN;
    assert_int_equal(tpo_cross_entropy(s, loss, x, label, NULL, 70, 33), TPO_OK);
    assert_int_equal(tpo_cross_entropy_grad(s, d, x, label, NULL, 1.0f, 70, 33), TPO_OK);
    for (int m = 0; m < 70; m++) assert_true(loss[m] == 0.0f);
    for (int i = 0; i < 70 * 33; i++) assert_true(d[i] == 0.0f);
    label[69] = 33;
    assert_int_equal(tpo_cross_entropy(s, loss, x, label, NULL, 70, 33), TPO_EINVAL);
    label[69] = -1;
    assert_int_equal(tpo_cross_entropy_grad(s, d, x, label, NULL, 1.0f, 70, 33), TPO_EINVAL);
    assert_int_equal(tpo_cross_entropy(s, loss, x, label, NULL, 0, 33), TPO_EINVAL);
    free(x), free(d);
    tpo_stream_close(s);
}

/* --- boxes --- */

struct boxes {
    int n;
    const float *g;
    double up_l1, up_giou;
};

static double giou_term(const double *p, const float *g)
{
    double w = fmin(p[2], g[2]) - fmax(p[0], g[0]), h = fmin(p[3], g[3]) - fmax(p[1], g[1]);
    double inter = fmax(w, 0) * fmax(h, 0);
    double uni = (p[2] - p[0]) * (p[3] - p[1]) + ((double)g[2] - g[0]) * ((double)g[3] - g[1]) - inter;
    double hull = (fmax(p[2], g[2]) - fmin(p[0], g[0])) * (fmax(p[3], g[3]) - fmin(p[1], g[1]));
    return 1.0 - (inter / uni - (hull - uni) / hull);
}

static double box_loss(const double *p, void *arg)
{
    const struct boxes *b = arg;
    double l1 = 0.0, giou = 0.0;
    int n = 0;
    for (int i = 0; i < b->n; i++) {
        for (int c = 0; c < 4; c++) l1 += fabs(p[i * 4 + c] - b->g[i * 4 + c]) / (4.0 * b->n);
        if (p[i * 4 + 2] < p[i * 4] || p[i * 4 + 3] < p[i * 4 + 1]) continue;
        giou += giou_term(p + i * 4, b->g + i * 4);
        n++;
    }
    return b->up_l1 * l1 + b->up_giou * (n > 0 ? giou / n : 2.0);
}

static void box_gradients_equal_differences(void **state)
{
    (void)state;
    static const float p[] = {.1f, .1f, .5f, .6f, .3f, .2f, .4f, .9f,  .0f, .0f, .2f, .2f, .0f,   .0f,   1.f,   1.f,
                              .6f, .2f, .5f, .7f, .2f, .2f, .3f, .31f, .7f, .1f, .9f, .2f, 100.f, 200.f, 900.f, 1000.f};
    static const float g[] = {.2f, .3f, .7f, .8f, .1f, .1f,  .8f, .95f, .5f, .6f, .9f, .9f, .2f,   .3f,   .4f,   .5f,
                              .1f, .1f, .2f, .2f, .1f, .25f, .9f, .3f,  .1f, .3f, .5f, .9f, 150.f, 190.f, 800.f, 1100.f};
    struct tpo_stream *s = check_stream(1);
    struct boxes b = {8, g, 2.0, 0.7};
    double *exact = check_doubles(p, 32), want[32];
    float out[2], giou[8], d[32];
    check_differences(want, exact, 32, box_loss, &b);
    assert_int_equal(tpo_box_loss(s, out, giou, p, g, 8), TPO_OK);
    assert_true(fabs(2.0 * out[0] + 0.7 * out[1] - box_loss(exact, &b)) < 1e-5 * 60);
    for (int i = 0; i < 8; i++) assert_true(i == 4 ? isnan(giou[i]) : fabs(giou[i] - giou_term(exact + i * 4, g + i * 4)) < 1e-5);
    assert_int_equal(tpo_box_loss_grad(s, d, p, g, 2.0f, 0.7f, 8), TPO_OK);
    check_near("dp", d, want, 32, 1e-4);
    free(exact);
    tpo_stream_close(s);
}

static void boxes_without_area_give_no_nan(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    float p[8] = {.5f, .5f, .5f, .5f, .3f, .3f, .2f, .2f}, g[8] = {.5f, .5f, .5f, .5f, .1f, .1f, .2f, .2f}, out[2], d[8];
    assert_int_equal(tpo_box_loss(s, out, NULL, p, g, 2), TPO_OK);
    assert_true(isfinite(out[0]) && isfinite(out[1]));
    assert_int_equal(tpo_box_loss_grad(s, d, p, g, 1, 1, 2), TPO_OK);
    for (int i = 0; i < 8; i++) assert_true(isfinite(d[i]));
    assert_int_equal(tpo_box_loss(s, out, NULL, p + 4, g + 4, 1), TPO_OK); /* none is a box: the constant */
    assert_true(out[1] == 2.0f);
    assert_int_equal(tpo_box_loss_grad(s, d, p + 4, g + 4, 0, 1, 1), TPO_OK);
    for (int i = 0; i < 4; i++) assert_true(d[i] == 0.0f);
    assert_int_equal(tpo_box_loss(s, out, NULL, p, g, 0), TPO_EINVAL);
    assert_int_equal(tpo_box_loss_grad(s, d, p, g, 1, 1, -1), TPO_EINVAL);
    tpo_stream_close(s);
}

/* --- distances --- */

struct distance {
    int M, C, square;
    const float *g, *weight;
};

static double distance(const double *p, void *arg)
{
    const struct distance *d = arg;
    double sum = 0.0;
    for (int i = 0; i < d->M * d->C; i++) {
        double off = p[i] - d->g[i];
        sum += (d->weight != NULL ? d->weight[i / d->C] : 1.0) * (d->square ? off * off : fabs(off));
    }
    return sum;
}

static void distances_equal_differences(void **state)
{
    (void)state;
    static const int sizes[][2] = {{1, 1}, {31, 4}, {2, 33}};
    struct tpo_stream *s = check_stream(2);
    for (int i = 0; i < 12; i++) {
        int M = sizes[i % 3][0], C = sizes[i % 3][1], n = M * C, square = i / 3 % 2;
        float *p = check_numbers("p", n, 2, i >= 6 ? 1000 : 0), *g = check_numbers("g", n, 2, 0),
              *weight = check_numbers("weight", M, 1, 0);
        float *loss = check_zeros(M), *dp = check_zeros(n);
        struct distance d = {M, C, square, g, i < 6 ? weight : NULL};
        double *exact = check_doubles(p, n), *want = check_doubles(NULL, n), total = 0.0, size = 1.0;
        check_differences(want, exact, n, distance, &d);
        assert_int_equal((square ? tpo_mse_rows : tpo_l1_rows)(s, loss, p, g, d.weight, M, C), TPO_OK);
        for (int m = 0; m < M; m++) total += loss[m], size += fabsf(loss[m]);
        assert_true(fabs(total - distance(exact, &d)) < 1e-5 * size);
        assert_int_equal((square ? tpo_mse_rows_grad : tpo_l1_rows_grad)(s, dp, p, g, d.weight, 1.0f, M, C), TPO_OK);
        check_near("dp", dp, want, n, 1e-4);
        free(p), free(g), free(weight), free(loss), free(dp), free(exact), free(want);
    }
    float x[4] = {1, 1, 1, 1}, d[4];
    assert_int_equal(tpo_l1_rows_grad(s, d, x, x, NULL, 1.0f, 2, 2), TPO_OK);
    for (int i = 0; i < 4; i++) assert_true(d[i] == 0.0f);
    assert_int_equal(tpo_mse_rows(s, d, x, x, NULL, 0, 2), TPO_EINVAL);
    tpo_stream_close(s);
}

static void argmax_takes_the_lowest_on_a_tie(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (int V = 1; V < 70; V += 17) {
        float *x = check_zeros(3 * V);
        int32_t out[3];
        for (int v = 0; v < V; v++) x[v] = -5.0f, x[V + v] = (float)v, x[2 * V + v] = v >= V / 2 ? 7.0f : -INFINITY;
        assert_int_equal(tpo_argmax(s, out, x, 3, V), TPO_OK);
        assert_int_equal(out[0], 0);
        assert_int_equal(out[1], V - 1);
        assert_int_equal(out[2], V / 2);
        free(x);
    }
    tpo_stream_close(s);
}

TPO_TESTS(cmocka_unit_test(cross_entropy_equals_differences), cmocka_unit_test(logits_near_1000_stay_right),
          cmocka_unit_test(ignored_rows_give_nothing), cmocka_unit_test(box_gradients_equal_differences),
          cmocka_unit_test(boxes_without_area_give_no_nan), cmocka_unit_test(distances_equal_differences),
          cmocka_unit_test(argmax_takes_the_lowest_on_a_tie))
