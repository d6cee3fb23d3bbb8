/* The inner loops' builds for other instruction sets against the portable one, which elsewhere no x86 machine would run; every length of tail. */
#include "kernels/cpu.h"
#include "kernels/simd.h"
#include "tests/kernels/check.h"

#define N 83 /* up to five whole vectors and a tail */

static int builds(const struct tpo_simd *tables[4])
{
    int n = 0;
    tables[n++] = &tpo_simd_portable;
#if defined(__x86_64__)
    if (tpo_cpu_has_avx2()) tables[n++] = &tpo_simd_avx2;
    if (tpo_cpu_has_avx512()) tables[n++] = &tpo_simd_avx512;
    if (tpo_cpu_has_avx512bf16()) tables[n++] = &tpo_simd_avx512bf16;
#endif
    return n;
}

static void near(const char *what, const float *got, const float *want, int64_t n, double tolerance)
{
    double *exact = check_doubles(want, n);
    check_near(what, got, exact, n, tolerance);
    free(exact);
}

/* Everything a table writes for vectors of n elements, one after the other. */
static int64_t write_all(float *out, const struct tpo_simd *v, const float *x, const float *a, const float *b, int n)
{
    float *at = out, mean, rstd;
    v->add(at, a, b, n), at += n;
    v->scale(at, 3.0f, a, n), v->axpy(at, 0.5f, b, n), at += n;
    v->fill(at, 2.0f, n), at += n;
    v->relu(at, x, n), at += n;
    v->relu_grad(at, a, x, 0, n), v->relu_grad(at, b, x, 1, n), at += n;
    v->gelu(at, x, n), at += n;
    v->gelu_grad(at, a, x, 0, n), v->gelu_grad(at, b, x, 1, n), at += n;
    v->swiglu(at, x, b, n), at += n;
    v->swiglu_grad(at, at + n, a, x, b, 0, n), v->swiglu_grad(at, at + n, b, x, a, 1, n), at += 2 * n;
    v->dropout(at, a, 0.5f, 7, 11, n), at += n;
    v->norm(at, &mean, &rstd, x, a, b, 1e-5f, n), at += n;
    v->norm_grad(at, a, x, b, &mean, rstd, 0, n), v->norm_grad(at, b, x, a, NULL, rstd, 1, n), at += n;
    v->norm(at, NULL, &rstd, x, a, NULL, 1e-5f, n), at += n;
    v->exp_scaled(at, x, 1.0f, 0.5f, n), at += n;
    v->momentum(at, at + n, a, b, 0.9f, 2.0f, n), at += 2 * n;
    memcpy(at, a, (size_t)n * sizeof(*at));
    v->rotate(at, x, b, -1.0f, n / 2), at += n;
    memset(at, 0, 2 * (size_t)n * sizeof(*at));
    v->column_sums(at, a, n, 1, n), v->norm_columns(at, at + n, a, x, NULL, &rstd, n, 1, n), at += 2 * n;
    *at++ = v->dot(a, b, n);
    *at++ = v->log_sum_exp(x, n);
    *at++ = (float)v->sum(x, 0, n);
    *at++ = (float)v->sum(x, 1, n);
    return at - out;
}

static void builds_agree(void **state)
{
    (void)state;
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    float *x = check_numbers("x", N, 3, 0), *a = check_numbers("a", N, 1, 0), *b = check_numbers("b", N, 1, 0);
    float *want = check_zeros(40 * N), *got = check_zeros(40 * N);
    for (int n = 2; n <= N; n++) {
        int64_t written = write_all(want, tables[0], x, a, b, n);
        for (int t = 1; t < n_tables; t++) {
            assert_true(write_all(got, tables[t], x, a, b, n) == written);
            near("outputs", got, want, written, 3e-6);
        }
        assert_true(want[written] == 0.0f && got[written] == 0.0f);
    }
    free(x), free(a), free(b), free(want), free(got);
}

static void products_agree(void **state)
{
    (void)state;
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    float *x = check_numbers("x", 16 * N, 1, 0), *w = check_numbers("w", 9 * N, 1, 0), y[16 * 9], want[16 * 9];
    for (int rows = 1; rows <= 16; rows++)
        for (int cols = 1; cols <= 9; cols++)
            for (int t = 0; t < n_tables; t++) {
                memset(y, 0, sizeof(y));
                tables[t]->dots(y, cols, x, N, w, N, w, 1, rows, cols, N - rows);
                if (t == 0) memcpy(want, y, sizeof(y));
                near("dots", y, want, rows * cols, 3e-6);
                for (int i = 0; i < rows * cols; i++) { /* each is a dot alone */
                    float alone = tables[t]->dot(x + i / cols * N, w + i % cols * N, N - rows) + w[i % cols];
                    assert_true(alone == y[i]);
                }
            }
    free(x), free(w);
}

/* A bf16 weight counts as the f32 of the same value in every build: the same bits, on rows that pair_up has turned. */
static void half_products_are_the_same_bits(void **state)
{
    (void)state;
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    float *x = check_numbers("x", 16 * N, 1, 0), *w = check_numbers("w", 9 * N, 1, 0), *paired = check_zeros(16 * N), y[16 * 9],
          z[16 * 9];
    uint16_t *half = check_alloc(9 * N, 2);
    for (int t = 0; t < n_tables; t++) {
        tables[t]->f32_to_bf16(half, w, 9 * N);
        tables[t]->bf16_to_f32(w, half, 9 * N);
        for (int rows = 1; rows <= 16; rows++)
            for (int cols = 1; cols <= 9; cols++) {
                const int K = N - 3 * rows;
                for (int r = 0; r < rows; r++) tables[t]->pair_up(paired + r * N, x + r * N, K);
                tables[t]->dots(y, cols, x, N, w, N, w, 0, rows, cols, K);
                tables[t]->dots_half(z, cols, paired, N, half, N, w, 0, rows, cols, K);
                for (int i = 0; i < rows * cols; i++) assert_true(y[i] == z[i]);
            }
    }
    free(x), free(w), free(paired), free(half);
}

/* round_row rounds as f32_to_bf16 does, whatever the bits; what is too small for a normal number may become zero of its sign. */
static void rows_are_rounded_alike(void **state)
{
    (void)state;
    enum { MOST = 46 };
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    static const uint32_t special[] = {0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001, 0x7f800000, 0xff800000,
                                       0x7f7fffff, 0x7fffffff, 0xffffffff, 0x7f800001, 0xff80ffff, 0x00000000,
                                       0x80000000, 0x00800000, 0x007fffff, 0x807f8000, 0x00000001}; /* ties, the largest, infinities, NaN, zeros, the small */
    uint32_t bits[MOST];
    for (int i = 0; i < MOST; i++)
        bits[i] =
            i < (int)(sizeof(special) / sizeof(special[0])) ? special[i] : (uint32_t)tpo_random_u64(tpo_test_seed(), (uint64_t)i);
    for (int t = 0; t < n_tables; t++)
        for (int n = 1; n <= MOST; n++)
            for (int from = 0; from <= MOST - n; from++) {
                float x[MOST];
                uint16_t want[MOST], got[MOST + 1];
                memcpy(x, bits + from, sizeof(*x) * (size_t)n);
                tables[t]->f32_to_bf16(want, x, n), tables[t]->round_row(got, x, n);
                for (int i = 0; i < n; i++) {
                    const bool small = (bits[from + i] & 0x7f800000) == 0, nan = (bits[from + i] & 0x7fffffff) > 0x7f800000;
                    if (nan ? (got[i] & 0x7fff) > 0x7f80 : got[i] == want[i] || (small && got[i] == (bits[from + i] >> 31) << 15))
                        continue;
                    fail_msg("build %d: %#x becomes %#x, expected %#x", t, bits[from + i], got[i], want[i]);
                }
                assert_true(n % 2 == 0 || got[n] == 0);
            }
}

/* A sum of pairs of bf16 against the panel_sum of the same numbers as f32, in every build: that without the instruction, too. */
static void sums_of_pairs_equal_those_of_f32(void **state)
{
    (void)state;
    enum { DEPTH = 46, ROWS = 16, WIDEST = 32 };
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    uint16_t *a_pairs = check_alloc(ROWS * DEPTH, 2), *b_pairs = aligned_alloc(64, DEPTH * WIDEST * sizeof(*b_pairs));
    float *a = check_numbers("a", ROWS * DEPTH, 1, 0), *b = aligned_alloc(64, DEPTH * WIDEST * sizeof(*b)), y[ROWS * WIDEST],
          want[ROWS * WIDEST], *numbers = check_numbers("b", DEPTH * WIDEST, 1, 0);
    assert_true(b != NULL && b_pairs != NULL);
    for (int t = 0; t < n_tables; t++) {
        const int width = tables[t]->panel_width();
        tables[t]->f32_to_bf16(a_pairs, a, ROWS * DEPTH), tables[t]->bf16_to_f32(a, a_pairs, ROWS * DEPTH);
        for (int d = 0; d < DEPTH; d++)
            for (int c = 0; c < width; c++) {
                uint16_t *half = &b_pairs[(d / 2 * width + c) * 2 + d % 2];
                tables[t]->f32_to_bf16(half, &numbers[d * width + c], 1), tables[t]->bf16_to_f32(&b[d * width + c], half, 1);
            }
        for (int rows = 1; rows <= ROWS; rows++)
            for (int add = 0; add <= 1; add++) {
                for (int i = 0; i < ROWS * WIDEST; i++) y[i] = want[i] = (float)i;
                struct tpo_panel_sum sum = {.y = want, .a = a, .b = b, .bias = numbers, .ldy = WIDEST, .lda = DEPTH, .add = add};
                sum.rows = rows, sum.cols = width - rows % 3, sum.depth = DEPTH;
                tables[t]->panel_sum(&sum);
                sum.y = y, sum.a = (float *)a_pairs, sum.b = (float *)b_pairs, sum.lda = sum.depth = DEPTH / 2;
                tables[t]->pairs_sum(&sum);
                near("pairs", y, want, ROWS * WIDEST, 3e-6);
            }
    }
    free(a), free(b), free(a_pairs), free(b_pairs), free(numbers);
}

static void turning_and_packing_move_every_element(void **state)
{
    (void)state;
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    float *x = check_numbers("x", 70 * 70, 1, 0), *y = check_zeros(80 * 80);
    for (int t = 0; t < n_tables; t++)
        for (int rows = 1; rows < 70; rows += 7)
            for (int cols = 1; cols < 70; cols += 9) {
                tables[t]->transpose(y, rows + 3, x, 70, rows, cols);
                for (int i = 0; i < rows * cols; i++)
                    assert_true(y[i % cols * (rows + 3) + i / cols] == x[i / cols * 70 + i % cols]);
                int wide = (cols + 15) / 16 * 16;
                tables[t]->pack(y, wide, 75, x, 70, rows, cols);
                for (int i = 0; i < 75 * wide; i++)
                    assert_true(y[i] == (i / wide < rows && i % wide < cols ? x[i / wide * 70 + i % wide] : 0.0f));
            }
    free(x), free(y);
}

static void halves_agree(void **state)
{
    (void)state;
    const struct tpo_simd *tables[4];
    int n_tables = builds(tables);
    uint16_t *all = check_alloc(65536, 2), *back = check_alloc(65536, 2);
    float *f = check_zeros(65536);
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    for (int t = 0; t < n_tables; t++) {
        tables[t]->bf16_to_f32(f, all, 65536);
        tables[t]->f32_to_bf16(back, f, 65536);
        for (int i = 0; i < 65536; i++) assert_true(isnan(f[i]) ? (back[i] & 0x7fff) > 0x7f80 : back[i] == all[i]);
    }
    free(all), free(back), free(f);
}

TPO_TESTS(cmocka_unit_test(builds_agree), cmocka_unit_test(products_agree), cmocka_unit_test(half_products_are_the_same_bits),
          cmocka_unit_test(rows_are_rounded_alike), cmocka_unit_test(sums_of_pairs_equal_those_of_f32),
          cmocka_unit_test(turning_and_packing_move_every_element), cmocka_unit_test(halves_agree))
