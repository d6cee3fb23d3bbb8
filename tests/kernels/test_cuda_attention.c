/* Attention on CUDA beside its CPU twin, over random shapes: head widths 8 to 256, masks, segments, grouped heads, backward, paged keys. Skipped
 * where there is no GPU. */
#include "tests/kernels/twins.h"

/* --- attention ------------------------------------------------------------------------------------------------------------------------- */

enum { B, T, S, H, G, D, CAUSAL, LENGTHS, SEGMENTS, ADDS, PAD };

static struct tpo_attention_shape shape_of(const struct arrays *a, const int *z)
{
    return (struct tpo_attention_shape){.B = z[B],
                                        .T = z[T],
                                        .S = z[S],
                                        .H = z[H],
                                        .G = z[G],
                                        .D = z[D],
                                        .ldq = z[H] * z[D] + z[PAD],
                                        .ldk = z[G] * z[D] + z[PAD],
                                        .ldv = z[G] * z[D] + z[PAD],
                                        .ldo = z[H] * z[D] + z[PAD],
                                        .scale = 1 / sqrtf((float)z[D]),
                                        .causal = z[CAUSAL],
                                        .key_len = z[LENGTHS] ? a->i[0] : NULL,
                                        .segments = z[SEGMENTS] ? a->i[1] : NULL};
}

/* 0 out, 1 lse, 2 q, 3 k, 4 v, 5 dq, 6 dk, 7 dv, 8 dout */
static int run_attention(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const struct tpo_attention_shape shape = shape_of(a, z);
    const int rc = tpo_attention(s, a->f[0], a->f[1], a->f[2], a->f[3], a->f[4], &shape);
    if (rc != TPO_OK) return rc;
    return tpo_attention_grad(s, a->f[5], a->f[6], a->f[7], a->f[8], a->f[0], a->f[1], a->f[2], a->f[3], a->f[4], z[ADDS], &shape);
}

/* 0 loss, 1 q, 2 k, 3 target, 4 weight, 5 dq, 6 dk; i[2] rows */
static int run_attention_rows(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const struct tpo_attention_shape shape = shape_of(a, z);
    const int n = (int)a->size[0], rc = tpo_attention_rows(s, a->f[0], a->f[1], a->f[2], a->i[2], a->f[3], a->f[4], n, &shape);
    return rc == TPO_OK ? tpo_attention_rows_grad(s, a->f[5], a->f[6], .7f, a->f[1], a->f[2], a->i[2], a->f[3], a->f[4], n, &shape)
                        : rc;
}

static void draw_shape(int *z, int round)
{
    static const int widths[] = {8, 16, 32, 40, 64, 80, 96, 128, 160, 256};
    z[B] = between(1, 3), z[T] = between(1, 150), z[S] = between(1, 200);
    z[G] = between(1, 3), z[H] = z[G] * between(1, 3), z[D] = widths[round % 10];
    z[CAUSAL] = between(0, 1), z[LENGTHS] = between(0, 1), z[SEGMENTS] = between(0, 1), z[ADDS] = between(0, 1),
    z[PAD] = between(0, 1) * 3;
    if (z[CAUSAL] && between(0, 1)) z[S] = z[T];
}

static void draw_masks(struct arrays *a, const int *z)
{
    int32_t *length = add_ints(a, z[B]), *segment = add_ints(a, (int64_t)z[B] * z[S]);
    for (int b = 0; b < z[B]; b++) {
        length[b] = between(0, z[S]);
        for (int s = 0; s < z[S]; s++) segment[b * z[S] + s] = s < z[S] / 3 ? 0 : s / 20;
    }
}

static void attention(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < 3 * ROUNDS; round++) {
        int z[11];
        draw_shape(z, round);
        const int64_t q = (int64_t)z[B] * z[T] * (z[H] * z[D] + z[PAD]), k = (int64_t)z[B] * z[S] * (z[G] * z[D] + z[PAD]);
        const int64_t sizes[] = {q, (int64_t)z[B] * z[T] * z[H], q, k, k, q, k, k, q};
        for (int i = 0; i < 9; i++) add_floats(&a, sizes[i]);
        draw_masks(&a, z);
        twins("attention", &a, z, run_attention, 2e-5);
    }
    close_both();
}

static void attention_rows(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        int z[11];
        draw_shape(z, round);
        z[LENGTHS] = z[SEGMENTS] = 0;
        const int64_t q = (int64_t)z[B] * z[T] * (z[H] * z[D] + z[PAD]), k = (int64_t)z[B] * z[S] * (z[G] * z[D] + z[PAD]);
        const int n = between(1, 40);
        const int64_t sizes[] = {n, q, k, (int64_t)n * z[S], n, q, k};
        for (int i = 0; i < 7; i++) add_floats(&a, sizes[i]);
        draw_masks(&a, z);
        int32_t *row = add_ints(&a, 3 * n);
        for (int i = 0; i < n; i++)
            row[3 * i] = between(0, z[B] - 1), row[3 * i + 1] = between(0, z[T] < 4 ? z[T] - 1 : 3),
                    row[3 * i + 2] = between(0, z[H] - 1);
        twins("attention_rows", &a, z, run_attention_rows, 2e-5);
    }
    close_both();
}

enum { ROWS = 0, PH, PG, PD, BLOCK, MOST, SEQS };

/* 0 out, 1 q, 2 pool_k, 3 pool_v, 4 k, 5 v; i: seq, position, tables */
static int run_paged(struct tpo_stream *s, struct arrays *a, const int *z)
{
    const struct tpo_paged_shape p = {z[ROWS],  z[PH],   z[PG], z[PD],   z[PH] * z[PD], z[PH] * z[PD],
                                      z[BLOCK], z[MOST], .125f, a->i[0], a->i[1],       a->i[2]};
    const int rc = tpo_kv_write(s, a->f[2], a->f[3], a->f[4], z[PG] * z[PD], a->f[5], z[PG] * z[PD], &p);
    return rc == TPO_OK ? tpo_attention_paged(s, a->f[0], a->f[1], a->f[2], a->f[3], &p) : rc;
}

static void paged(void **state)
{
    (void)state;
    struct arrays a = {0};
    open_both();
    for (int round = 0; round < ROUNDS; round++) {
        int z[7] = {between(1, 60), 0, between(1, 3), 8 * between(1, 32), between(1, 32), between(2, 9), between(1, 3)};
        z[PH] = z[PG] * between(1, 4);
        if (z[ROWS] > z[BLOCK] * z[MOST]) z[ROWS] = z[BLOCK] * z[MOST];
        const int64_t pool = (int64_t)z[SEQS] * z[MOST] * z[BLOCK] * z[PG] * z[PD];
        add_floats(&a, (int64_t)z[ROWS] * z[PH] * z[PD]);
        add_floats(&a, (int64_t)z[ROWS] * z[PH] * z[PD]);
        add_floats(&a, pool);
        add_floats(&a, pool);
        add_floats(&a, (int64_t)z[ROWS] * z[PG] * z[PD]);
        add_floats(&a, (int64_t)z[ROWS] * z[PG] * z[PD]);
        int32_t *seq = add_ints(&a, z[ROWS]), *position = add_ints(&a, z[ROWS]), *table = add_ints(&a, z[SEQS] * z[MOST]);
        const int one = between(0, z[SEQS] - 1), first = between(0, z[BLOCK] * z[MOST] - z[ROWS]);
        for (int m = 0; m < z[ROWS]; m++) seq[m] = one, position[m] = first + m;
        for (int b = 0; b < z[SEQS] * z[MOST]; b++) table[b] = z[SEQS] * z[MOST] - 1 - b;
        twins("paged", &a, z, run_paged, 2e-5);
    }
    close_both();
}

TPO_TESTS(cmocka_unit_test(attention), cmocka_unit_test(attention_rows), cmocka_unit_test(paged))
