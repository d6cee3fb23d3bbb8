/* Every operation on CUDA but attention beside its CPU twin, over random shapes, and typed errors for what is wrong. Skipped where there is no
 * GPU. */
#include "tests/kernels/twins.h"

/* --- products --------------------------------------------------------------------------------------------------------------------------- */

enum { M, N, K, LDX, LDY, ADD };

static int run_matmul(struct tpo_stream *s, struct arrays *a, const int *z)
{
    return tpo_matmul(s, a->f[0], z[LDY], a->f[1], z[LDX], tpo_f32(a->f[2]), a->f[3], z[ADD], z[M], z[N], z[K]);
}
static int run_dx(struct tpo_stream *s, struct arrays *a, const int *z)
{
    return tpo_matmul_dx(s, a->f[1], z[LDX], a->f[0], z[LDY], tpo_f32(a->f[2]), z[ADD], z[M], z[N], z[K]);
}
static int run_dw(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const int rc = tpo_matmul_dw(s, a->f[2], a->f[0], z[LDY], a->f[1], z[LDX], z[ADD], z[M], z[N], z[K]);
    return rc == TPO_OK ? tpo_bias_grad(s, a->f[3], a->f[0], z[LDY], z[ADD], z[M], z[N]) : rc;
}
/* The weights as bf16, made on the device from f[2] into f[4]. */
static int run_half(struct tpo_stream *s, struct arrays *a, const int *z)
{
    uint16_t *half = (uint16_t *)a->f[4];
    int rc = tpo_f32_to_bf16(s, half, a->f[2], (int64_t)z[N] * z[K]);
    if (rc == TPO_OK) rc = tpo_bf16_to_f32(s, a->f[2], half, (int64_t)z[N] * z[K]);
    if (rc == TPO_OK) rc = tpo_matmul(s, a->f[0], z[LDY], a->f[1], z[LDX], tpo_bf16(half), a->f[3], z[ADD], z[M], z[N], z[K]);
    if (rc == TPO_OK && z[M] <= TPO_MATVEC_ROWS)
        rc = tpo_matvec(s, a->f[0], z[LDY], a->f[1], z[LDX], tpo_bf16(half), a->f[3], 1, z[M], z[N], z[K]);
    if (rc == TPO_OK) rc = tpo_matmul_dx(s, a->f[1], z[LDX], a->f[0], z[LDY], tpo_bf16(half), z[ADD], z[M], z[N], z[K]);
    /* What the array ends in is no number of ours. */
    return rc == TPO_OK ? tpo_fill(s, a->f[4], 0, a->size[4]) : rc;
}
static int run_matvec(struct tpo_stream *s, struct arrays *a, const int *z)
{
    return tpo_matvec(s, a->f[0], z[LDY], a->f[1], z[LDX], tpo_f32(a->f[2]), z[ADD] ? NULL : a->f[3], z[ADD], z[M], z[N], z[K]);
}

static void products(void **state)
{
    (void)state;
    operation *const all[] = {run_matmul, run_dx, run_dw, run_half, run_matvec};
    static const char *const names[] = {"matmul", "matmul_dx", "matmul_dw", "bf16", "matvec"};
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++)
        for (int k = 0; k < 5; k++) {
            int z[6] = {between(1, 300), between(1, 260), between(1, 400)};
            if (k == 4 || (k == 3 && round % 2 == 0)) z[M] = between(1, TPO_MATVEC_ROWS);
            if (round % 3 == 0) z[N] = (z[N] + 15) / 16 * 16, z[K] = (z[K] + 15) / 16 * 16;
            z[LDX] = z[K] + (round % 2 ? between(0, 9) : 0);
            z[LDY] = z[N] + (round % 2 ? between(0, 9) : 0);
            z[ADD] = between(0, 1);
            add_floats(&a, (int64_t)z[M] * z[LDY]);
            add_floats(&a, (int64_t)z[M] * z[LDX]);
            add_floats(&a, (int64_t)z[N] * z[K]);
            add_floats(&a, z[N]);
            if (k == 3) add_floats(&a, ((int64_t)z[N] * z[K] + 1) / 2);
            twins(names[k], &a, z, all[k], 1e-5);
        }
    close_both();
}

/* --- norms, pointwise functions, arithmetic ------------------------------------------------------------------------------------------------ */

static int run_norms(struct tpo_stream *s, struct arrays *a, const int *z)
{
    /* 0 y, 1 mean, 2 rstd, 3 x, 4 w, 5 b, 6 dx, 7 dw, 8 db, 9 dy */
    int rc = tpo_layernorm(s, a->f[0], a->f[1], a->f[2], a->f[3], a->f[4], a->f[5], 1e-5f, z[0], z[1]);
    if (rc == TPO_OK)
        rc = tpo_layernorm_grad(s, a->f[6], a->f[7], a->f[8], a->f[9], a->f[3], a->f[4], a->f[1], a->f[2], z[2], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_rmsnorm(s, a->f[9], a->f[2], a->f[0], a->f[4], 1e-5f, z[0], z[1]);
    return rc == TPO_OK ? tpo_rmsnorm_grad(s, a->f[6], a->f[7], a->f[9], a->f[0], a->f[4], a->f[2], 1, z[0], z[1]) : rc;
}

static void norms(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[3] = {between(1, 200), between(1, round % 2 ? 1500 : 90), between(0, 1)};
        const int64_t full = (int64_t)z[0] * z[1], sizes[] = {full, z[0], z[0], full, z[1], z[1], full, z[1], z[1], full};
        for (int k = 0; k < 10; k++) add_floats(&a, sizes[k]);
        twins("norms", &a, z, run_norms, 2e-5);
    }
    close_both();
}

static int run_pointwise(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const int64_t n = (int64_t)z[0] * z[1];
    double sum = 0;
    int rc = tpo_gelu(s, a->f[0], a->f[1], n);
    if (rc == TPO_OK) rc = tpo_gelu_grad(s, a->f[2], a->f[1], a->f[3], z[2], n);
    if (rc == TPO_OK) rc = tpo_relu(s, a->f[1], a->f[1], n);
    if (rc == TPO_OK) rc = tpo_relu_grad(s, a->f[2], a->f[1], a->f[3], 1, n);
    if (rc == TPO_OK) rc = tpo_swiglu(s, a->f[4], a->f[0], a->f[2], z[1], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_swiglu_grad(s, a->f[5], a->f[6], a->f[4], a->f[0], a->f[2], z[1], z[2], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_add(s, a->f[7], a->f[5], a->f[6], n);
    if (rc == TPO_OK) rc = tpo_axpy(s, a->f[7], -.5f, a->f[4], n);
    if (rc == TPO_OK) rc = tpo_scale(s, a->f[8], 3, a->f[7], n);
    if (rc == TPO_OK) rc = tpo_dropout(s, a->f[8], a->f[8], .3f, 77, n);
    if (rc == TPO_OK) rc = tpo_f32_to_bf16(s, (uint16_t *)a->f[9], a->f[3], n);
    if (rc == TPO_OK)
        rc = tpo_f16_to_f32(s, a->f[3], (const uint16_t *)a->f[9], n); /* bf16 bits read as f16: all sorts of numbers */
    if (rc == TPO_OK) rc = tpo_fill(s, a->f[9], .5f, a->size[9]);
    if (rc == TPO_OK) rc = tpo_sum(s, &sum, a->f[8], n);
    if (rc == TPO_OK) rc = tpo_fill(s, a->f[10], (float)sum, 1);
    if (rc == TPO_OK) rc = tpo_sumsq(s, &sum, a->f[8], n);
    return rc == TPO_OK ? tpo_fill(s, a->f[10] + 1, (float)sum, 1) : rc;
}

static void pointwise(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[3] = {between(1, 90), between(1, 1200), between(0, 1)};
        for (int k = 0; k < 9; k++) add_floats(&a, (int64_t)z[0] * z[1]);
        add_floats(&a, ((int64_t)z[0] * z[1] + 1) / 2);
        add_floats(&a, 2);
        twins("pointwise", &a, z, run_pointwise, 1e-5);
    }
    close_both();
}

/* --- rows ------------------------------------------------------------------------------------------------------------------------------ */

static int run_rows(struct tpo_stream *s, struct arrays *a, const int *z)
{
    /* z: M, C, rows of the table, period, add */
    int rc = tpo_rows_gather(s, a->f[0], a->f[1], a->i[0], z[0], z[1], z[2]);
    if (rc == TPO_OK) rc = tpo_rows_scatter(s, a->f[1], a->f[2], a->i[0], z[4], z[0], z[1], z[2]);
    if (rc == TPO_OK) rc = tpo_add_rows(s, a->f[0], a->f[3], z[0], z[3], z[1]);
    return rc == TPO_OK ? tpo_sum_rows(s, a->f[3], a->f[0], z[0], z[3], z[1]) : rc;
}

static void rows(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[5] = {between(1, 900), between(1, 300), between(1, 60), round % 3 == 0 ? 1 : between(1, 40), between(0, 1)};
        add_floats(&a, (int64_t)z[0] * z[1]);
        add_floats(&a, (int64_t)z[2] * z[1]);
        add_floats(&a, (int64_t)z[0] * z[1]);
        add_floats(&a, (int64_t)z[3] * z[1]);
        int32_t *index = add_ints(&a, z[0]);
        for (int m = 0; m < z[0]; m++) index[m] = between(-1, z[2] - 1);
        twins("rows", &a, z, run_rows, 1e-5);
    }
    close_both();
}

static int run_patchify(struct tpo_stream *s, struct arrays *a, const int *z)
{
    return tpo_patchify(s, a->f[0], a->f[1], z[0], z[1] * z[5], z[2] * z[4], z[3] * z[4], z[4], z[5]);
}

static int run_rope(struct tpo_stream *s, struct arrays *a, const int *z)
{
    /* z: M, H, D, ld */
    int rc = tpo_rope_table(s, a->f[0], a->f[1], a->i[0], 10000, z[0], z[2]);
    if (rc == TPO_OK) rc = tpo_rope(s, a->f[2], z[3], a->f[0], a->f[1], 0, z[0], z[1], z[2]);
    return rc == TPO_OK ? tpo_rope(s, a->f[3], z[3], a->f[0], a->f[1], 1, z[0], z[1], z[2]) : rc;
}

static void patches_and_rope(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[6] = {between(1, 3), between(1, 4), between(1, 5), between(1, 5), between(1, 16), between(1, 2)};
        const int64_t n = (int64_t)z[0] * z[1] * z[5] * 3 * z[2] * z[3] * z[4] * z[4];
        add_floats(&a, n);
        add_floats(&a, n);
        twins("patchify", &a, z, run_patchify, 0);
        int y[4] = {between(1, 200), between(1, 6), 2 * between(1, 64)};
        y[3] = y[1] * y[2] + between(0, 5);
        add_floats(&a, (int64_t)y[0] * y[2] / 2);
        add_floats(&a, (int64_t)y[0] * y[2] / 2);
        add_floats(&a, (int64_t)y[0] * y[3]);
        add_floats(&a, (int64_t)y[0] * y[3]);
        int32_t *position = add_ints(&a, y[0]);
        for (int m = 0; m < y[0]; m++) position[m] = between(0, 30000);
        twins("rope", &a, y, run_rope, 1e-5);
    }
    close_both();
}

/* --- losses, optimisers ------------------------------------------------------------------------------------------------------------------- */

/* z: M, V; 0 logits, 1 weight, 2 loss, 3 gradient, 4 p, 5 g, 6 distances, 7 dp, 8 boxes, 9 goals, 10 box out, 11 dbox; i: labels, argmax */
static int run_losses(struct tpo_stream *s, struct arrays *a, const int *z)
{
    int rc = tpo_cross_entropy(s, a->f[2], a->f[0], a->i[0], a->f[1], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_cross_entropy_grad(s, a->f[3], a->f[0], a->i[0], a->f[1], .7f, z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_argmax(s, a->i[1], a->f[0], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_l1_rows(s, a->f[6], a->f[4], a->f[5], a->f[1], z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_l1_rows_grad(s, a->f[7], a->f[4], a->f[5], a->f[1], .3f, z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_add(s, a->f[3], a->f[3], a->f[7], (int64_t)z[0] * z[1]);
    if (rc == TPO_OK) rc = tpo_mse_rows(s, a->f[6], a->f[4], a->f[5], NULL, z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_mse_rows_grad(s, a->f[7], a->f[4], a->f[5], NULL, .3f, z[0], z[1]);
    if (rc == TPO_OK) rc = tpo_box_loss(s, a->f[10], a->f[10] + 2, a->f[8], a->f[9], z[0]);
    if (rc == TPO_OK) rc = tpo_box_loss_grad(s, a->f[11], a->f[8], a->f[9], .7f, .4f, z[0]);
    /* What argmax chose, where floats are compared. */
    return rc == TPO_OK ? tpo_rows_gather(s, a->f[2], a->f[0], a->i[1], z[0], 1, z[1]) : rc;
}

static void losses(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[2] = {between(1, 120), between(2, round % 2 ? 4000 : 90)};
        const int64_t full = (int64_t)z[0] * z[1],
                      sizes[] = {full, z[0], z[0], full, full, full, z[0], full, 4 * z[0], 4 * z[0], 2 + z[0], 4 * z[0]};
        for (int k = 0; k < 12; k++) add_floats(&a, sizes[k]);
        int32_t *label = add_ints(&a, z[0]);
        add_ints(&a, z[0]);
        for (int m = 0; m < z[0]; m++) label[m] = between(0, 5) == 0 ? -100 : between(0, z[1] - 1);
        for (int v = 0; v < z[1]; v += 3) a.host[0][v] = 2; /* ties */
        twins("losses", &a, z, run_losses, 1e-5);
    }
    close_both();
}

static int run_optimisers(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const struct tpo_adamw adam = {1e-2f, .9f, .98f, 1e-8f, .05f, .7f, 3};
    const struct tpo_muon muon = {1e-2f, .95f, .05f, .7f};
    int rc = tpo_adamw(s, a->f[0], a->f[1], a->f[2], a->f[3], a->f[4], a->f[5], a->f[6], &adam, (int64_t)z[0] * z[1]);
    if (rc == TPO_OK) rc = tpo_muon(s, a->f[7], a->f[8], a->f[3], a->f[4], a->f[6], &muon, a->f[9], z[0], z[1]);
    return rc == TPO_OK ? tpo_fill(s, a->f[9], 0, a->size[9]) : rc;
}

static void optimisers(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[2] = {between(1, 200), between(1, 200)};
        for (int k = 0; k < 9; k++) add_floats(&a, (int64_t)z[0] * z[1]);
        add_floats(&a, tpo_muon_scratch(z[0], z[1]));
        for (int64_t i = 0; i < a.size[5]; i++) a.host[5][i] = fabsf(a.host[5][i]);
        twins("optimisers", &a, z, run_optimisers, 1e-4); /* Newton and Schulz make much of little */
    }
    close_both();
}

/* --- pictures ---------------------------------------------------------------------------------------------------------------------------- */

static int run_resize(struct tpo_stream *s, struct arrays *a, const int *z)
{
    /* z: H, W, h, w, antialias; 0 planes in, 1 planes out, 2 bytes in, 3 bytes out, 4 normalised */
    static const float mean[3] = {.48f, .46f, .41f}, std[3] = {.27f, .26f, .28f};
    int rc = tpo_resize_f32(s, a->f[1], z[2], z[3], a->f[0], 3, z[0], z[1], z[4]);
    if (rc == TPO_OK) rc = tpo_resize_u8(s, (uint8_t *)a->f[3], z[2], z[3], (const uint8_t *)a->f[2], z[0], z[1], z[4]);
    return rc == TPO_OK ? tpo_normalise(s, a->f[4], (const uint8_t *)a->f[3], mean, std, z[2], z[3]) : rc;
}

static void pictures_have_the_same_bits(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        const int z[5] = {between(1, 60), between(1, 60), between(1, 60), between(1, 60), between(0, 1)};
        add_floats(&a, (int64_t)3 * z[0] * z[1]);
        add_floats(&a, (int64_t)3 * z[2] * z[3]);
        add_floats(&a, ((int64_t)3 * z[0] * z[1] + 3) / 4);
        add_floats(&a, ((int64_t)3 * z[2] * z[3] + 3) / 4);
        add_floats(&a, (int64_t)3 * z[2] * z[3]);
        uint8_t *bytes = (uint8_t *)a.host[2];
        for (int i = 0; i < 3 * z[0] * z[1]; i++) bytes[i] = (uint8_t)between(0, 255);
        memset(a.host[3], 0, (size_t)a.size[3] * sizeof(float));
        twins("resize", &a, z, run_resize, 0);
    }
    close_both();
}

/* --- errors ------------------------------------------------------------------------------------------------------------------------------ */

static void bad_indices_are_told_and_touch_nothing(void **state)
{
    (void)state;
    struct arrays a = {0};
    float *out[ARRAYS];
    double sum;
    open_both();
    add_floats(&a, 40);
    add_floats(&a, 40);
    int32_t *index = add_ints(&a, 4);
    index[2] = 10; /* of a table of 10 rows */
    move_in(&a, cuda);
    assert_int_equal(tpo_rows_gather(cuda, a.f[0], a.f[1], a.i[0], 4, 4, 10), TPO_OK);
    assert_int_equal(tpo_stream_wait(cuda), TPO_EINVAL);
    assert_int_equal(tpo_stream_wait(cuda), TPO_OK);
    assert_int_equal(tpo_rows_scatter(cuda, a.f[0], a.f[1], a.i[0], 1, 4, 4, 10), TPO_OK);
    assert_int_equal(tpo_sum(cuda, &sum, a.f[1], 40), TPO_EINVAL);
    assert_int_equal(tpo_cross_entropy(cuda, a.f[0], a.f[1], a.i[0], NULL, 4, 10), TPO_OK);
    assert_int_equal(tpo_stream_wait(cuda), TPO_EINVAL);
    assert_int_equal(tpo_gelu(cuda, a.f[0], a.f[1], 0), TPO_EINVAL);
    assert_int_equal(tpo_sum(cuda, &sum, a.f[1], 40), TPO_OK);
    move_out(&a, cuda, out);
    assert_memory_equal(out[1], a.host[1], 40 * sizeof(float));
    free_all(&a, out), free_all(&a, a.host);
    free(a.int_host[0]);
    assert_null(tpo_device_alloc(cuda, (size_t)1 << 50));
    assert_int_equal(tpo_stream_wait(cuda), TPO_OK);
    close_both();
}

TPO_TESTS(cmocka_unit_test(products), cmocka_unit_test(norms), cmocka_unit_test(pointwise), cmocka_unit_test(rows),
          cmocka_unit_test(patches_and_rope), cmocka_unit_test(losses), cmocka_unit_test(optimisers),
          cmocka_unit_test(pictures_have_the_same_bits), cmocka_unit_test(bad_indices_are_told_and_touch_nothing))
