/* Moving rows, whole-array arithmetic, rotary embedding and the counter-based generator. */
#include "tests/kernels/check.h"

static void gather_and_scatter_are_transposes(void **state)
{
    (void)state;
    static const int widths[] = {1, 31, 33, 130};
    struct tpo_stream *s = check_stream(2);
    for (int w = 0; w < 4; w++) {
        int M = 300, C = widths[w], n_rows = 40;
        int32_t index[300];
        for (int m = 0; m < M; m++) index[m] = (int32_t)(tpo_random_u64(tpo_test_seed(), (uint64_t)m) % 41) - 1;
        float *table = check_numbers("table", n_rows * C, 1, 0), *y = check_numbers("y", M * C, 1, 0), *y0 = check_copy(y, M * C);
        assert_int_equal(tpo_rows_gather(s, y, table, index, M, C, n_rows), TPO_OK);
        for (int i = 0; i < M * C; i++) assert_true(y[i] == (index[i / C] < 0 ? y0[i] : table[index[i / C] * C + i % C]));
        float *sum = check_copy(table, n_rows * C), *put = check_copy(table, n_rows * C);
        assert_int_equal(tpo_rows_scatter(s, sum, y0, index, 1, M, C, n_rows), TPO_OK);
        assert_int_equal(tpo_rows_scatter(s, put, y0, index, 0, M, C, n_rows), TPO_OK);
        float *want = check_copy(table, n_rows * C);
        for (int i = 0; i < M * C; i++)
            if (index[i / C] >= 0) want[index[i / C] * C + i % C] += y0[i];
        check_same_bits("sums in row order", sum, want, (size_t)(n_rows * C) * sizeof(float));
        memcpy(want, table, (size_t)(n_rows * C) * sizeof(float));
        for (int i = 0; i < M * C; i++)
            if (index[i / C] >= 0) want[index[i / C] * C + i % C] = y0[i];
        check_same_bits("the last row wins", put, want, (size_t)(n_rows * C) * sizeof(float));
        index[299] = n_rows;
        assert_int_equal(tpo_rows_gather(s, y, table, index, M, C, n_rows), TPO_EINVAL);
        assert_int_equal(tpo_rows_scatter(s, y, table, index, 1, M, C, n_rows), TPO_EINVAL);
        free(table), free(y), free(y0), free(sum), free(put), free(want);
    }
    tpo_stream_close(s);
}

static void periods_add_and_sum(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    int M = 103, period = 33, C = 31;
    float *y = check_numbers("y", M * C, 1, 0), *y0 = check_copy(y, M * C), *x = check_numbers("x", period * C, 1, 0),
          *sum = check_copy(x, period * C);
    assert_int_equal(tpo_add_rows(s, y, x, M, period, C), TPO_OK);
    for (int i = 0; i < M * C; i++) assert_true(y[i] == y0[i] + x[i / C % period * C + i % C]);
    assert_int_equal(tpo_sum_rows(s, sum, y0, M, period, C), TPO_OK);
    for (int i = 0; i < M * C; i++) x[i / C % period * C + i % C] += y0[i];
    check_same_bits("sums", sum, x, (size_t)(period * C) * sizeof(float));
    assert_int_equal(tpo_add_rows(s, y, x, M, 0, C), TPO_EINVAL);
    assert_int_equal(tpo_sum_rows(s, y, x, 0, 1, C), TPO_EINVAL);
    free(y), free(y0), free(x), free(sum);
    tpo_stream_close(s);
}

static void patches_are_im2col(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    int B = 2, T = 4, H = 6, W = 9, p = 3, u = 2, n = B * T * 3 * H * W;
    float *pixels = check_numbers("pixels", n, 1, 0), *rows = check_zeros(n), *at = rows;
    assert_int_equal(tpo_patchify(s, rows, pixels, B, T, H, W, p, u), TPO_OK);
    for (int b = 0; b < B; b++)
        for (int t = 0; t < T; t += u)
            for (int y = 0; y < H; y += p)
                for (int x = 0; x < W; x += p)
                    for (int c = 0; c < 3; c++)
                        for (int k = 0; k < u; k++)
                            for (int i = 0; i < p; i++)
                                for (int j = 0; j < p; j++)
                                    assert_true(*at++ == pixels[(((b * T + t + k) * 3 + c) * H + y + i) * W + x + j]);
    assert_int_equal(tpo_patchify(s, rows, pixels, B, T, H, W, 4, u), TPO_EINVAL);
    assert_int_equal(tpo_patchify(s, rows, pixels, B, T, H, W, p, 3), TPO_EINVAL);
    free(pixels), free(rows);
    tpo_stream_close(s);
}

static void rotation_is_exact_and_undone(void **state)
{
    (void)state;
    static const int32_t positions[] = {0, 1, 31, 1000, 4095, 131071, 2000000000};
    static const int widths[] = {2, 6, 32, 64, 128};
    struct tpo_stream *s = check_stream(2);
    for (int w = 0; w < 5; w++) {
        int D = widths[w], half = D / 2, H = 3, ld = H * D + 5, M = 7;
        float *c = check_zeros(M * half), *sn = check_zeros(M * half), *x = check_numbers("x", M * ld, 1, 0),
              *x0 = check_copy(x, M * ld);
        assert_int_equal(tpo_rope_table(s, c, sn, positions, 10000.0, M, D), TPO_OK);
        assert_int_equal(tpo_rope(s, x, ld, c, sn, 0, M, H, D), TPO_OK);
        for (int m = 0; m < M; m++)
            for (int h = 0; h < H; h++)
                for (int i = 0; i < half; i++) {
                    double angle = positions[m] * pow(10000.0, -2.0 * i / D);
                    assert_true(fabs(c[m * half + i] - cos(angle)) < 2e-6 && fabs(sn[m * half + i] - sin(angle)) < 2e-6);
                    const float *a = x0 + m * ld + h * D + i, *b = x + m * ld + h * D + i;
                    assert_true(fabs(b[0] - (a[0] * cos(angle) - a[half] * sin(angle))) < 1e-5);
                    assert_true(fabs(b[half] - (a[half] * cos(angle) + a[0] * sin(angle))) < 1e-5);
                }
        for (int m = 0; m < M; m++) check_same_bits("between rows", x + m * ld + H * D, x0 + m * ld + H * D, 5 * sizeof(float));
        assert_int_equal(tpo_rope(s, x, ld, c, sn, 1, M, H, D), TPO_OK);
        for (int i = 0; i < M * ld; i++) assert_true(fabsf(x[i] - x0[i]) < 2e-6f * 4);
        assert_int_equal(tpo_rope(s, x, H * D - 1, c, sn, 0, M, H, D), TPO_EINVAL);
        assert_int_equal(tpo_rope_table(s, c, sn, positions, 10000.0, M, 3), TPO_EINVAL);
        free(c), free(sn), free(x), free(x0);
    }
    tpo_stream_close(s);
}

/* --- gradients, against differences of the equation in f64 ------------------------------------------------------------------------ */

/* Rows that move between a table (N, C) and x (M, C): which way, and the direction r in which the result is measured. */
enum way { GATHER, SCATTER_ADD, SCATTER_PUT, PERIODS };
struct moved {
    enum way way;
    int M, C, N;
    const int32_t *index;
    const float *r;
};

/* The result of the way: (M, C) of a gather, (N, C) of a scatter; `all` is the table and then x. */
static void moved_reference(double *out, const double *all, const struct moved *v)
{
    const double *x = all + v->N * v->C, *base = v->way == GATHER || v->way == PERIODS ? x : all;
    int rows = v->way == GATHER || v->way == PERIODS ? v->M : v->N;
    for (int i = 0; i < rows * v->C; i++) out[i] = base[i];
    for (int i = 0; i < v->M * v->C; i++) {
        int m = i / v->C, at = v->index[m] * v->C + i % v->C;
        if (v->way == PERIODS)
            out[i] += all[m % v->N * v->C + i % v->C];
        else if (v->index[m] < 0)
            continue;
        else if (v->way == GATHER)
            out[i] = all[at];
        else
            out[at] = v->way == SCATTER_ADD ? out[at] + x[i] : x[i];
    }
}

static double moved_loss(const double *all, void *arg)
{
    const struct moved *v = arg;
    double out[33 * 33];
    moved_reference(out, all, v);
    return check_dot(v->r, out, (int64_t)(v->way == GATHER || v->way == PERIODS ? v->M : v->N) * v->C);
}

/* The result into y, the gradients of the table and of x into `grads`, as the tape asks the kernels for them. */
static void moved_run(struct tpo_stream *s, const struct moved *v, float *y, float *grads, const float *all)
{
    int M = v->M, C = v->C, N = v->N;
    float *zeros = check_zeros((int64_t)(M > N ? M : N) * C), *dx = grads + N * C;
    const float *x = all + N * C;
    int rc = TPO_OK;
    memset(grads, 0, (size_t)((N + M) * C) * sizeof(*grads));
    memcpy(y, v->way == GATHER || v->way == PERIODS ? x : all,
           (size_t)((v->way == GATHER || v->way == PERIODS ? M : N) * C) * sizeof(*y));
    switch (v->way) {
    case GATHER: /* a row that none was gathered for keeps what it was */
        memcpy(dx, v->r, (size_t)(M * C) * sizeof(*dx));
        rc = tpo_rows_gather(s, y, all, v->index, M, C, N) | tpo_rows_scatter(s, grads, v->r, v->index, 1, M, C, N) |
             tpo_rows_gather(s, dx, zeros, v->index, M, C, N);
        break;
    case SCATTER_ADD:
        memcpy(grads, v->r, (size_t)(N * C) * sizeof(*grads));
        rc = tpo_rows_scatter(s, y, x, v->index, 1, M, C, N) | tpo_rows_gather(s, dx, v->r, v->index, M, C, N);
        break;
    case SCATTER_PUT: /* what was put over has no part in the result */
        memcpy(grads, v->r, (size_t)(N * C) * sizeof(*grads));
        rc = tpo_rows_scatter(s, y, x, v->index, 0, M, C, N) | tpo_rows_gather(s, dx, v->r, v->index, M, C, N) |
             tpo_rows_scatter(s, grads, zeros, v->index, 0, M, C, N);
        break;
    case PERIODS:
        memcpy(dx, v->r, (size_t)(M * C) * sizeof(*dx));
        rc = tpo_add_rows(s, y, all, M, N, C) | tpo_sum_rows(s, grads, v->r, M, N, C);
        break;
    }
    assert_int_equal(rc, TPO_OK);
    free(zeros);
}

static void check_moved(struct tpo_stream *s, struct moved v, float shift)
{
    int64_t total = (int64_t)(v.N + v.M) * v.C, n_out = (int64_t)(v.way == GATHER || v.way == PERIODS ? v.M : v.N) * v.C;
    float *r = check_numbers("r", n_out, 1, 0), *all = check_numbers("all", total, 1, shift), *y = check_zeros(n_out),
          *grads = check_zeros(total);
    double *exact = check_doubles(all, total), *want = check_doubles(NULL, total), *want_y = check_doubles(NULL, n_out);
    v.r = r;
    moved_reference(want_y, exact, &v);
    check_differences(want, exact, total, moved_loss, &v);
    moved_run(s, &v, y, grads, all);
    check_near("y", y, want_y, n_out, 1e-6);
    check_near("the table's", grads, want, (int64_t)v.N * v.C, 1e-6);
    check_near("x's", grads + v.N * v.C, want + v.N * v.C, (int64_t)v.M * v.C, 1e-6);
    free(r), free(all), free(y), free(grads), free(exact), free(want), free(want_y);
}

/* Row m's place in the table: of any row, with rows that share one; of no row; of one row for all; of a row of its own, with gaps. */
static void index_rows(int32_t *index, int kind, int M, int N)
{
    for (int m = 0; m < M; m++) {
        int any = (int)(tpo_random_u64(tpo_test_seed(), (uint64_t)m) % (uint64_t)(N + 1)) - 1;
        index[m] = kind == 0 ? any : kind == 1 ? -1 : kind == 2 ? N - 1 : m % 3 == 2 || m >= N ? -1 : N - 1 - m;
    }
}

static void gradients_of_moved_rows_equal_differences(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {31, 33, 1}, {33, 1, 31}, {1, 31, 33}, {31, 31, 3}, {33, 3, 33}}; /* M, C, N */
    struct tpo_stream *s = check_stream(2);
    int32_t index[33];
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int kind = 0; kind < 4; kind++) {
            struct moved v = {.M = shapes[i][0], .C = shapes[i][1], .N = shapes[i][2], .index = index};
            float shift = kind == 0 ? 1000 : 0;
            index_rows(index, kind, v.M, v.N);
            v.way = GATHER, check_moved(s, v, shift);
            v.way = SCATTER_ADD, check_moved(s, v, shift);
            v.way = SCATTER_PUT;
            if (kind % 2 == 1) check_moved(s, v, shift); /* the rows put have places of their own */
            v.way = PERIODS, check_moved(s, v, shift);
        }
    tpo_stream_close(s);
}

/* x (M, H, 2 half) turned by tables of (M, half). */
struct turned {
    int M, H, half;
    const double *cos, *sin;
    const float *r;
};

static void turned_reference(double *out, const double *x, const struct turned *v)
{
    for (int row = 0; row < v->M * v->H; row++)
        for (int i = 0; i < v->half; i++) {
            const double *a = x + row * 2 * v->half + i, c = v->cos[row / v->H * v->half + i],
                         sn = v->sin[row / v->H * v->half + i];
            double *y = out + row * 2 * v->half + i;
            y[0] = a[0] * c - a[v->half] * sn;
            y[v->half] = a[v->half] * c + a[0] * sn;
        }
}

static double turned_loss(const double *x, void *arg)
{
    const struct turned *v = arg;
    double out[33 * 66];
    turned_reference(out, x, v);
    return check_dot(v->r, out, (int64_t)v->M * v->H * 2 * v->half);
}

static void check_turned(struct tpo_stream *s, struct turned v, float shift)
{
    static const int32_t places[] = {0, 131071, 1, 31, 2000000000, 33, 1000};
    int D = 2 * v.half, width = v.H * D, ld = width + 5, n = v.M * width;
    int32_t positions[33];
    double *c = check_doubles(NULL, v.M * v.half), *sn = check_doubles(NULL, v.M * v.half);
    for (int m = 0; m < v.M; m++) positions[m] = places[(m + 1) % 7];
    for (int i = 0; i < v.M * v.half; i++) {
        double angle = positions[i / v.half] * pow(10000.0, -2.0 * (i % v.half) / D);
        c[i] = cos(angle), sn[i] = sin(angle);
    }
    float *r = check_numbers("r", n, 1, 0), *x = check_numbers("x", n, 1, shift), *cf = check_zeros(v.M * v.half),
          *sf = check_zeros(v.M * v.half);
    float *rows = check_zeros(v.M * ld), *grads = check_zeros(v.M * ld);
    double *exact = check_doubles(x, n), *want = check_doubles(NULL, n), *want_y = check_doubles(NULL, n);
    v.cos = c, v.sin = sn, v.r = r;
    turned_reference(want_y, exact, &v);
    check_differences(want, exact, n, turned_loss, &v);
    for (int i = 0; i < n; i++) rows[i / width * ld + i % width] = x[i], grads[i / width * ld + i % width] = r[i];
    assert_int_equal(tpo_rope_table(s, cf, sf, positions, 10000.0, v.M, D), TPO_OK);
    assert_int_equal(tpo_rope(s, rows, ld, cf, sf, 0, v.M, v.H, D), TPO_OK);
    assert_int_equal(tpo_rope(s, grads, ld, cf, sf, 1, v.M, v.H, D), TPO_OK);
    for (int m = 0; m < v.M; m++) {
        check_near("y", rows + m * ld, want_y + m * width, width, 5e-6);
        check_near("dx", grads + m * ld, want + m * width, width, 5e-6);
    }
    free(c), free(sn), free(r), free(x), free(cf), free(sf), free(rows), free(grads), free(exact), free(want), free(want_y);
}

static void gradients_of_rotation_equal_differences(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {33, 1, 31}, {1, 31, 33}, {31, 33, 1}, {1, 33, 1}, {31, 1, 33}}; /* M, H, D / 2 */
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (int far = 0; far < 2; far++)
            check_turned(s, (struct turned){.M = shapes[i][0], .H = shapes[i][1], .half = shapes[i][2]}, far ? 1000 : 0);
    tpo_stream_close(s);
}

struct dropped {
    int n;
    float p;
    const float *r;
};

static double dropped_loss(const double *x, void *arg)
{
    const struct dropped *v = arg;
    double sum = 0.0;
    for (int i = 0; i < v->n; i++)
        if (tpo_random(tpo_test_seed(), (uint64_t)i) >= v->p) sum += v->r[i] * x[i] / (1.0 - v->p);
    return sum;
}

static void gradients_of_dropout_equal_differences(void **state)
{
    (void)state;
    static const int lengths[] = {1, 31, 33};
    static const float shares[] = {0.0f, 0.25f, 0.99f};
    struct tpo_stream *s = check_stream(2);
    for (int i = 0; i < 9; i++) {
        struct dropped v = {.n = lengths[i / 3], .p = shares[i % 3]};
        float *r = check_numbers("r", v.n, 1, 0), *x = check_numbers("x", v.n, 1, 1000), *dx = check_zeros(v.n);
        double *exact = check_doubles(x, v.n), *want = check_doubles(NULL, v.n);
        v.r = r;
        check_differences(want, exact, v.n, dropped_loss, &v);
        assert_int_equal(tpo_dropout(s, dx, r, v.p, tpo_test_seed(), v.n), TPO_OK);
        check_near("dx", dx, want, v.n, 1e-5);
        free(r), free(x), free(dx), free(exact), free(want);
    }
    tpo_stream_close(s);
}

static void arithmetic_is_elementwise(void **state)
{
    (void)state;
    static const int lengths[] = {1, 15, 33, 40001};
    struct tpo_stream *s = check_stream(2);
    for (int l = 0; l < 4; l++) {
        int n = lengths[l];
        float *a = check_numbers("a", n, 1, 0), *b = check_numbers("b", n, 1, 0), *y = check_zeros(n);
        assert_int_equal(tpo_add(s, y, a, b, n), TPO_OK);
        for (int i = 0; i < n; i++) assert_true(y[i] == a[i] + b[i]);
        assert_int_equal(tpo_scale(s, y, 3.0f, a, n), TPO_OK);
        for (int i = 0; i < n; i++) assert_true(y[i] == 3.0f * a[i]);
        assert_int_equal(tpo_axpy(s, y, 2.0f, b, n), TPO_OK);
        for (int i = 0; i < n; i++) assert_true(fabsf(y[i] - (3.0f * a[i] + 2.0f * b[i])) < 1e-5f);
        assert_int_equal(tpo_fill(s, y, 7.0f, n), TPO_OK);
        for (int i = 0; i < n; i++) assert_true(y[i] == 7.0f);
        free(a), free(b), free(y);
    }
    float x = 0;
    assert_int_equal(tpo_add(s, &x, &x, &x, 0), TPO_EINVAL);
    assert_int_equal(tpo_dropout(s, &x, &x, 1.0f, 1, 1), TPO_EINVAL);
    tpo_stream_close(s);
}

static void sums_are_f64_in_order(void **state)
{
    (void)state;
    static const int lengths[] = {1, 31, 4096, 4097, 300000};
    struct tpo_stream *one = check_stream(1), *three = check_stream(3);
    for (int l = 0; l < 5; l++) {
        int n = lengths[l];
        float *x = check_numbers("x", n, 1, 1000);
        double a, b, sum = 0.0, square = 0.0;
        for (int i = 0; i < n; i++) sum += x[i], square += (double)x[i] * x[i];
        assert_int_equal(tpo_sum(one, &a, x, n), TPO_OK);
        assert_int_equal(tpo_sum(three, &b, x, n), TPO_OK);
        assert_true(fabs(a - sum) < 1e-12 * sum && a == b);
        assert_int_equal(tpo_sumsq(one, &a, x, n), TPO_OK);
        assert_int_equal(tpo_sumsq(three, &b, x, n), TPO_OK);
        assert_true(fabs(a - square) < 1e-12 * square && a == b);
        free(x);
    }
    tpo_stream_close(one), tpo_stream_close(three);
}

static void dropout_keeps_its_share(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    int n = 100000, kept = 0;
    float *x = check_zeros(n), *y = check_zeros(n), *again = check_zeros(n);
    tpo_fill(s, x, 3.0f, n);
    assert_int_equal(tpo_dropout(s, y, x, 0.25f, tpo_test_seed(), n), TPO_OK);
    for (int i = 0; i < n; i++) {
        int keep = tpo_random(tpo_test_seed(), (uint64_t)i) >= 0.25f;
        assert_true(keep ? fabsf(y[i] - 4.0f) < 1e-6f : y[i] == 0.0f);
        kept += keep;
    }
    assert_true(kept > 74000 && kept < 76000);
    tpo_dropout(s, again, x, 0.25f, tpo_test_seed(), n);
    check_same_bits("twice", y, again, (size_t)n * sizeof(float));
    free(x), free(y), free(again);
    tpo_stream_close(s);
}

static void halves_round_trip(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    uint16_t *all = check_alloc(65536, 2), *back = check_alloc(65536, 2);
    float *f = check_zeros(65536);
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    assert_int_equal(tpo_bf16_to_f32(s, f, all, 65536), TPO_OK);
    assert_int_equal(tpo_f32_to_bf16(s, back, f, 65536), TPO_OK);
    for (int i = 0; i < 65536; i++) assert_true(isnan(f[i]) ? (back[i] & 0x7fff) > 0x7f80 : back[i] == all[i]);
    float ties[4] = {1.00390625f, 1.01171875f, 3.4e38f,
                     -1.0039064f}; /* halfway to even, down and up; past the largest; just past half */
    assert_int_equal(tpo_f32_to_bf16(s, back, ties, 4), TPO_OK);
    assert_int_equal(back[0], 0x3f80);
    assert_int_equal(back[1], 0x3f82);
    assert_int_equal(back[2], 0x7f80);
    assert_int_equal(back[3], 0xbf81);
    assert_int_equal(tpo_f16_to_f32(s, f, all, 65536), TPO_OK);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double want = exponent == 0    ? ldexp(fraction, -24)
                      : exponent == 31 ? (fraction ? NAN : INFINITY)
                                       : ldexp(1024 + fraction, exponent - 25);
        if (i & 0x8000) want = -want;
        assert_true(isnan(want) ? isnan(f[i]) : f[i] == want);
    }
    free(all), free(back), free(f);
    tpo_stream_close(s);
}

/* Numbers that were printed once: weights and dropout of a seed must be the same on every machine and in every later version. */
static void the_generator_is_pinned(void **state)
{
    (void)state;
    double mean = 0.0, square = 0.0, uniform = 0.0;
    for (int i = 0; i < 100000; i++) {
        float z = tpo_random_normal(99, (uint64_t)i), u = tpo_random(99, (uint64_t)i);
        assert_true(u >= 0.0f && u < 1.0f && isfinite(z));
        mean += z / 1e5, square += (double)z * z / 1e5, uniform += u / 1e5;
    }
    assert_true(fabs(mean) < 0.02 && fabs(square - 1.0) < 0.02 && fabs(uniform - 0.5) < 0.01);
    assert_true(tpo_random_u64(1, 2) == 0xf18d6ce93d6cf1eeu);
    assert_true(tpo_random(1, 2) == 0x1.e31ad8p-1f);
    assert_true(tpo_random_normal(1, 2) == 0x1.60a1b4p-6f);
}

/* A bf16 table gives the f32 of the same values, at an odd place in its file, too; rows whose index is negative stay, one past the table is
 * refused. */
static void rows_of_a_half_table_are_widened(void **state)
{
    (void)state;
    enum { ROWS = 9, C = 37, M = 5 };
    static uint16_t memory[ROWS * C + 1];
    static float wide[ROWS * C], y[M * C], want[M * C];
    uint16_t *half = memory + 1;
    int32_t index[M] = {8, -1, 0, 3, 8};
    struct tpo_stream *s;
    struct tpo_error err;
    assert_int_equal(tpo_stream_open(&s, "cpu", 2, &err), TPO_OK);
    for (int i = 0; i < ROWS * C; i++) half[i] = (uint16_t)(0x3f00 + 7 * i);
    for (int i = 0; i < M * C; i++) y[i] = want[i] = (float)i;
    assert_int_equal(tpo_bf16_to_f32(s, wide, half, ROWS * C), TPO_OK);
    assert_int_equal(tpo_rows_gather(s, want, wide, index, M, C, ROWS), TPO_OK);
    assert_int_equal(tpo_rows_take(s, y, tpo_bf16(half), index, index, M, C, ROWS), TPO_OK);
    assert_memory_equal(y, want, sizeof(y));
    assert_int_equal(tpo_rows_take(s, y, tpo_f32(wide), index, index, M, C, ROWS), TPO_OK);
    assert_memory_equal(y, want, sizeof(y));
    index[4] = ROWS;
    assert_int_equal(tpo_rows_take(s, y, tpo_bf16(half), index, index, M, C, ROWS), TPO_EINVAL);
    assert_memory_equal(y, want, sizeof(y));
    tpo_stream_close(s);
}

/* The series are right to the last bits of f64, so of f32 but for a rounding; in blocks of any length and alone, the same bits. */
static void normals_are_box_and_mullers(void **state)
{
    (void)state;
    enum { N = 200001 };
    float *y = malloc(N * sizeof(*y));
    assert_non_null(y);
    tpo_random_normals(y, N, 0.5F, 7, 40);
    for (int i = 0; i < N; i++) {
        const uint64_t u = tpo_random_u64(7, 40 + (uint64_t)i);
        const double radius = ((double)(u >> 32) + 1) * 0x1p-32, turn = (double)(u & 0xffffffffu) * 0x1p-32;
        const double z = sqrt(-2 * log(radius)) * cos(6.283185307179586 * turn);
        assert_true(y[i] == 0.5F * tpo_random_normal(7, 40 + (uint64_t)i));
        assert_true(fabs(2.0 * y[i] - z) <= 1.2e-7 * fabs(z) + 1e-15);
    }
    free(y);
}

TPO_TESTS(cmocka_unit_test(gather_and_scatter_are_transposes), cmocka_unit_test(periods_add_and_sum),
          cmocka_unit_test(patches_are_im2col), cmocka_unit_test(rotation_is_exact_and_undone),
          cmocka_unit_test(gradients_of_moved_rows_equal_differences), cmocka_unit_test(gradients_of_rotation_equal_differences),
          cmocka_unit_test(gradients_of_dropout_equal_differences), cmocka_unit_test(arithmetic_is_elementwise),
          cmocka_unit_test(sums_are_f64_in_order), cmocka_unit_test(dropout_keeps_its_share), cmocka_unit_test(halves_round_trip),
          cmocka_unit_test(the_generator_is_pinned), cmocka_unit_test(normals_are_box_and_mullers),
          cmocka_unit_test(rows_of_a_half_table_are_widened))
