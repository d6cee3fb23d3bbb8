/* Products against f64 loops: odd sizes, slices of wider matrices, adding; the same bits for every team and every number of rows. */
#include "kernels/simd.h"
#include "kernels/vector.h"
#include "tests/kernels/check.h"

static const int sizes[][3] = {{1, 1, 1},     {1, 31, 33},    {33, 1, 31},   {31, 33, 1},   {64, 128, 128},
                               {65, 300, 70}, {300, 33, 257}, {520, 65, 31}, {1, 160, 128}, {1, 77, 5001},
                               {1, 77, 8192}, {2, 1100, 2100}}; /* the last one's weight is packed in more than one go */
#define N_SIZES (sizeof(sizes) / sizeof(sizes[0]))

struct operands {
    int M, N, K, ldx, ldy;
    float *x, *w, *bias, *dy, *y; /* y: what an output holds before */
};

static struct operands make(const int *size, int slack, float spread, float shift)
{
    struct operands o = {size[0], size[1], size[2], size[2] + slack, size[1] + 2 * slack, 0, 0, 0, 0, 0};
    o.x = check_numbers("x", (int64_t)o.M * o.ldx, spread, shift);
    o.w = check_numbers("w", (int64_t)o.N * o.K, 1, 0);
    o.bias = check_numbers("bias", o.N, 1, 0);
    o.dy = check_numbers("dy", (int64_t)o.M * o.ldy, 1, 0);
    o.y = check_numbers("y", (int64_t)o.M * (o.ldy + o.ldx) + (int64_t)o.N * o.K, 1, 0);
    return o;
}

static void unmake(struct operands *o)
{
    free(o->x), free(o->w), free(o->bias), free(o->dy), free(o->y);
}

/* got (rows, cols; distance ld) against sum_d a(r, d) b(d, c) + bias + before */
static void compare(const char *what, const float *got, const float *before, int rows, int cols, int ld, int depth, const float *a,
                    int ar, int ad, const float *b, int bd, int bc, const float *bias)
{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < ld; c++) {
            int64_t at = (int64_t)r * ld + c;
            if (c >= cols) {
                if (before != NULL && got[at] != before[at]) fail_msg("%s: wrote past column %d", what, cols);
                if (r == rows - 1) break;
                continue;
            }
            double sum = bias != NULL ? bias[c] : 0.0, size = 1.0;
            for (int d = 0; d < depth; d++) {
                double term = (double)a[(int64_t)r * ar + (int64_t)d * ad] * b[(int64_t)d * bd + (int64_t)c * bc];
                sum += term;
                size += fabs(term);
            }
            if (before != NULL) sum += before[at];
            if (!(fabs(got[at] - sum) <= 2e-6 * size))
                fail_msg("%s %dx%dx%d [%d][%d] is %.9g, expected %.9g", what, rows, cols, depth, r, c, got[at], sum);
        }
}

static void check_all(struct tpo_stream *s, struct operands *o, int add)
{
    float *y = check_copy(o->y, (int64_t)o->M * o->ldy);
    assert_int_equal(tpo_matmul(s, y, o->ldy, o->x, o->ldx, tpo_f32(o->w), o->bias, add, o->M, o->N, o->K), TPO_OK);
    compare("y", y, add ? o->y : NULL, o->M, o->N, o->ldy, o->K, o->x, o->ldx, 1, o->w, 1, o->K, o->bias);
    assert_int_equal(tpo_matmul(s, y, o->ldy, o->x, o->ldx, tpo_f32(o->w), NULL, 0, o->M, o->N, o->K), TPO_OK);
    compare("y without bias", y, NULL, o->M, o->N, o->ldy, o->K, o->x, o->ldx, 1, o->w, 1, o->K, NULL);
    free(y);
    float *dx = check_copy(o->y, (int64_t)o->M * o->ldx);
    assert_int_equal(tpo_matmul_dx(s, dx, o->ldx, o->dy, o->ldy, tpo_f32(o->w), add, o->M, o->N, o->K), TPO_OK);
    compare("dx", dx, add ? o->y : NULL, o->M, o->K, o->ldx, o->N, o->dy, o->ldy, 1, o->w, o->K, 1, NULL);
    free(dx);
    float *dw = check_copy(o->y, (int64_t)o->N * o->K);
    assert_int_equal(tpo_matmul_dw(s, dw, o->dy, o->ldy, o->x, o->ldx, add, o->M, o->N, o->K), TPO_OK);
    compare("dw", dw, add ? o->y : NULL, o->N, o->K, o->K, o->M, o->dy, 1, o->ldy, o->x, o->ldx, 1, NULL);
    free(dw);
    float *db = check_copy(o->y, o->N), one = 1.0f;
    assert_int_equal(tpo_bias_grad(s, db, o->dy, o->ldy, add, o->M, o->N), TPO_OK);
    compare("db", db, add ? o->y : NULL, 1, o->N, o->N, o->M, &one, 0, 0, o->dy, o->ldy, 1, NULL);
    free(db);
}

static void products_equal_f64(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < N_SIZES; i++)
        for (int slack = 0; slack <= 5; slack += 5)
            for (int add = 0; add <= 1; add++) {
                struct operands o = make(sizes[i], slack, 1, 0);
                check_all(s, &o, add);
                unmake(&o);
            }
    tpo_stream_close(s);
}

static void values_near_1000_stay_right(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    struct operands o = make((int[]){65, 33, 300}, 3, 1, 1000);
    check_all(s, &o, 1);
    unmake(&o);
    tpo_stream_close(s);
}

static void matvec_equals_f64(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (int M = 1; M <= TPO_MATVEC_ROWS; M += 5)
        for (int i = 0; i < 4; i++) {
            const int add = i % 2, N = i < 2 ? 131 : 77, K = i < 2 ? 77 : 5001; /* long rows go another way */
            struct operands o = make((int[]){M, N, K}, 3, 1, 0);
            float *y = check_copy(o.y, (int64_t)o.M * o.ldy);
            assert_int_equal(tpo_matvec(s, y, o.ldy, o.x, o.ldx, tpo_f32(o.w), o.bias, add, o.M, o.N, o.K), TPO_OK);
            compare("matvec", y, add ? o.y : NULL, o.M, o.N, o.ldy, o.K, o.x, o.ldx, 1, o.w, 1, o.K, o.bias);
            free(y);
            unmake(&o);
        }
    tpo_stream_close(s);
}

/* A copy of x, rounded to bf16 where products do that. */
static float *as_multiplied(struct tpo_stream *s, const struct operands *o)
{
    const int64_t n = (int64_t)o->M * o->ldx;
    float *x = check_copy(o->x, n);
    uint16_t *half = check_alloc((size_t)n, sizeof(*half));
    assert_int_equal(tpo_f32_to_bf16(s, half, x, n), TPO_OK);
    if (s->rounds) assert_int_equal(tpo_bf16_to_f32(s, x, half, n), TPO_OK);
    free(half);
    return x;
}

/* bf16 weights count as the f32 of the same value: the same bits, whatever lies in the file. Where the stream rounds x, the sums are those of a
 * rounded x. */
static void half_weights_equal_their_f32(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < N_SIZES; i++)
        for (int k = 0; k < 4; k++) {
            const int large = k % 2;
            struct operands o = make(sizes[i], 2, large ? 1000 : 1, large ? 990 : 0);
            s->rounds = false;
            if (k / 2) tpo_stream_let_round(s);
            const int64_t n = (int64_t)o.N * o.K;
            uint16_t *half = calloc((size_t)n + 1, sizeof(*half));
            uint16_t *w = half + 1; /* as a file may give it: at an odd place */
            float *wide = check_zeros(n), *y = check_zeros((int64_t)o.M * o.ldy), *z = check_zeros((int64_t)o.M * o.ldy);
            float *dx = check_zeros((int64_t)o.M * o.ldx), *dz = check_zeros((int64_t)o.M * o.ldx);
            assert_int_equal(tpo_f32_to_bf16(s, w, o.w, n), TPO_OK);
            assert_int_equal(tpo_bf16_to_f32(s, wide, w, n), TPO_OK);
            float *x = as_multiplied(s, &o);
            for (int add = 0; add <= 1; add++) {
                memcpy(z, o.y, (size_t)o.M * (size_t)o.ldy * sizeof(float));
                assert_int_equal(tpo_matmul(s, z, o.ldy, o.x, o.ldx, tpo_bf16(w), o.bias, add, o.M, o.N, o.K), TPO_OK);
                compare("y", z, add ? o.y : NULL, o.M, o.N, o.ldy, o.K, x, o.ldx, 1, wide, 1, o.K, o.bias);
                memcpy(y, o.y, (size_t)o.M * (size_t)o.ldy * sizeof(float));
                assert_int_equal(tpo_matmul(s, y, o.ldy, o.x, o.ldx, tpo_f32(wide), o.bias, add, o.M, o.N, o.K), TPO_OK);
                if (!s->rounds) check_same_bits("y", y, z, (size_t)o.M * (size_t)o.ldy * sizeof(float));
            }
            free(x);
            assert_int_equal(tpo_matmul_dx(s, dx, o.ldx, o.dy, o.ldy, tpo_f32(wide), 0, o.M, o.N, o.K), TPO_OK);
            assert_int_equal(tpo_matmul_dx(s, dz, o.ldx, o.dy, o.ldy, tpo_bf16(w), 0, o.M, o.N, o.K), TPO_OK);
            check_same_bits("dx", dx, dz, (size_t)o.M * (size_t)o.ldx * sizeof(float));
            const int rows = o.M < TPO_MATVEC_ROWS ? o.M : TPO_MATVEC_ROWS;
            for (int add = 0; add <= 1; add++) {
                assert_int_equal(tpo_matvec(s, y, o.ldy, o.x, o.ldx, tpo_f32(wide), o.bias, add, rows, o.N, o.K), TPO_OK);
                assert_int_equal(tpo_matvec(s, z, o.ldy, o.x, o.ldx, tpo_bf16(w), o.bias, add, rows, o.N, o.K), TPO_OK);
                check_same_bits("matvec", y, z, (size_t)rows * (size_t)o.ldy * sizeof(float));
            }
            free(half), free(wide), free(y), free(z), free(dx), free(dz);
            unmake(&o);
        }
    tpo_stream_close(s);
}

/* A row's bits must not depend on the rows beside it, or a cached clip and a fresh one would differ. */
static void a_row_has_the_same_bits_whatever_M_is(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 16, 63, 64, 65, 130};
    struct tpo_stream *s = check_stream(2);
    tpo_stream_let_round(s);
    for (size_t shape = 0; shape < 4; shape++) {
        int N = (int[]){128, 300, 7, 77}[shape], K = (int[]){128, 520, 65, 5001}[shape];
        struct operands o = make((int[]){200, N, K}, 0, 1, 0);
        uint16_t *half = check_alloc((size_t)N * (size_t)K, sizeof(*half));
        assert_int_equal(tpo_f32_to_bf16(s, half, o.w, (int64_t)N * K), TPO_OK);
        float *y = check_zeros((int64_t)200 * N), *dx = check_zeros((int64_t)200 * K), *v = check_zeros((int64_t)16 * N);
        float *h_all = check_zeros((int64_t)200 * N), *y_all = check_zeros((int64_t)200 * N),
              *dx_all = check_zeros((int64_t)200 * K), *v_all = check_zeros((int64_t)16 * N);
        tpo_matmul(s, y_all, N, o.x, K, tpo_f32(o.w), o.bias, 0, 200, N, K);
        tpo_matmul(s, h_all, N, o.x, K, tpo_bf16(half), o.bias, 0, 200, N, K);
        tpo_matmul_dx(s, dx_all, K, o.dy, N, tpo_f32(o.w), 0, 200, N, K);
        tpo_matvec(s, v_all, N, o.x, K, tpo_f32(o.w), o.bias, 0, 16, N, K);
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
            for (int first = 0; first <= 67; first += 67) {
                int M = rows[i];
                tpo_matmul(s, y, N, o.x + (int64_t)first * K, K, tpo_f32(o.w), o.bias, 0, M, N, K);
                check_same_bits("y", y, y_all + (int64_t)first * N, (size_t)M * N * sizeof(float));
                tpo_matmul(s, y, N, o.x + (int64_t)first * K, K, tpo_bf16(half), o.bias, 0, M, N, K);
                check_same_bits("y of bf16", y, h_all + (int64_t)first * N, (size_t)M * N * sizeof(float));
                tpo_matmul_dx(s, dx, K, o.dy + (int64_t)first * N, N, tpo_f32(o.w), 0, M, N, K);
                check_same_bits("dx", dx, dx_all + (int64_t)first * K, (size_t)M * K * sizeof(float));
            }
        for (int M = 1; M <= 15; M++) {
            tpo_matvec(s, v, N, o.x + K, K, tpo_f32(o.w), o.bias, 0, M, N, K);
            check_same_bits("matvec", v, v_all + N, (size_t)M * N * sizeof(float));
        }
        free(y), free(dx), free(v), free(y_all), free(dx_all), free(v_all), free(h_all), free(half);
        unmake(&o);
    }
    tpo_stream_close(s);
}

/* Every product after the other into y, dx and dw, which lie in a row. */
static void multiply_all(struct tpo_stream *s, float *y, const struct operands *o, const uint16_t *half)
{
    float *dx = y + (int64_t)o->M * o->ldy, *dw = dx + (int64_t)o->M * o->ldx;
    const int few = o->M < TPO_MATVEC_ROWS ? o->M : TPO_MATVEC_ROWS;
    tpo_matmul(s, y, o->ldy, o->x, o->ldx, tpo_f32(o->w), o->bias, 1, o->M, o->N, o->K);
    tpo_matmul(s, y, o->ldy, o->x, o->ldx, tpo_bf16(half), NULL, 1, o->M, o->N, o->K);
    tpo_matvec(s, y, o->ldy, o->x, o->ldx, tpo_f32(o->w), NULL, 1, few, o->N, o->K);
    tpo_matvec(s, y, o->ldy, o->x, o->ldx, tpo_bf16(half), NULL, 1, few, o->N, o->K);
    tpo_matmul_dx(s, dx, o->ldx, o->dy, o->ldy, tpo_f32(o->w), 1, o->M, o->N, o->K);
    tpo_matmul_dw(s, dw, o->dy, o->ldy, o->x, o->ldx, 1, o->M, o->N, o->K);
    tpo_bias_grad(s, dw, o->dy, o->ldy, 1, o->M, o->N < o->K ? o->N : o->K);
}

static void bits_do_not_depend_on_the_team(void **state)
{
    (void)state;
    struct tpo_stream *one = check_stream(1), *three = check_stream(3);
    tpo_stream_let_round(one), tpo_stream_let_round(three);
    for (size_t i = 0; i < N_SIZES; i++) {
        struct operands o = make(sizes[i], 1, 1, 0);
        uint16_t *half = check_alloc((size_t)o.N * (size_t)o.K, sizeof(*half));
        assert_int_equal(tpo_f32_to_bf16(one, half, o.w, (int64_t)o.N * o.K), TPO_OK);
        float *a = check_copy(o.y, (int64_t)o.M * (o.ldx + o.ldy) + (int64_t)o.N * o.K),
              *b = check_copy(o.y, (int64_t)o.M * (o.ldx + o.ldy) + (int64_t)o.N * o.K);
        multiply_all(one, a, &o, half), multiply_all(three, b, &o, half);
        check_same_bits("products", a, b, ((size_t)o.M * (o.ldx + o.ldy) + (size_t)o.N * o.K) * sizeof(float));
        free(a), free(b), free(half);
        unmake(&o);
    }
    tpo_stream_close(one), tpo_stream_close(three);
}

static void impossible_shapes_are_refused(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    float x[64] = {0}, y[64] = {7.0f};
    assert_int_equal(tpo_matmul(s, y, 4, x, 4, tpo_f32(x), NULL, 0, 0, 4, 4), TPO_EINVAL);
    assert_int_equal(tpo_matmul(s, y, 3, x, 4, tpo_f32(x), NULL, 0, 4, 4, 4), TPO_EINVAL);
    assert_int_equal(tpo_matmul(s, y, 4, x, 3, tpo_f32(x), NULL, 0, 4, 4, 4), TPO_EINVAL);
    assert_int_equal(tpo_matmul_dx(s, y, 4, x, 4, tpo_f32(x), 0, 4, -1, 4), TPO_EINVAL);
    assert_int_equal(tpo_matmul_dw(s, y, x, 4, x, 4, 0, 4, 4, 0), TPO_EINVAL);
    assert_int_equal(tpo_matvec(s, y, 4, x, 4, tpo_f32(x), NULL, 0, TPO_MATVEC_ROWS + 1, 1, 1), TPO_EINVAL);
    assert_int_equal(tpo_bias_grad(s, y, x, 3, 0, 4, 4), TPO_EINVAL);
    assert_true(y[0] == 7.0f);
    tpo_stream_close(s);
}

TPO_TESTS(cmocka_unit_test(products_equal_f64), cmocka_unit_test(values_near_1000_stay_right), cmocka_unit_test(matvec_equals_f64),
          cmocka_unit_test(half_weights_equal_their_f32), cmocka_unit_test(a_row_has_the_same_bits_whatever_M_is),
          cmocka_unit_test(bits_do_not_depend_on_the_team), cmocka_unit_test(impossible_shapes_are_refused))
