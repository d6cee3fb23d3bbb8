/* This file owns the CPU's matrix products: the packed panels of the right operand and the blocks of rows that walk them. */
#include "kernels/products.h"

#include <string.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

#define ROWS   48        /* rows of y in one part: whole strips of the inner loop */
#define COLS   256       /* columns of y in one part: whole panels of every build */
#define DEPTH  256       /* words of the sum in one pass: a panel of it lies in the first cache */
#define PACKED (2 << 20) /* words of b packed at a time, at least COLS columns */

struct job {
    const struct tpo_product *p;
    int paired;     /* what is multiplied is pairs of bf16 along the depth; else numbers of f32. Either is a word of 32 bits */
    int depth;      /* in words */
    int width;      /* of a panel */
    int c0, n_cols; /* columns of b that are packed now */
    float *packed;  /* words: chunk after chunk of DEPTH, in it panel after panel (depth, width) */
    int n_row_parts;
    char *scratch;
    size_t scratch_stride;
};

static int n_panels(const struct job *j)
{
    return tpo_parts(j->n_cols, j->width);
}

static float *panel_at(const struct job *j, int d0, int panel)
{
    int64_t deep = tpo_min64(DEPTH, j->depth - d0);
    return j->packed + ((int64_t)n_panels(j) * d0 + panel * deep) * j->width;
}

/* Numbers of a row of `depth` that `deep` words from word d0 on hold; where their count is odd, a zero follows. */
static int numbers_of(int d0, int deep, int depth)
{
    return (int)tpo_min64(2 * deep, depth - 2 * d0);
}

static void pair_weights(float *to, const uint16_t *row, int d0, int deep, int depth)
{
    const int n = numbers_of(d0, deep, depth);
    uint16_t *pairs = (uint16_t *)to;
    memcpy(pairs, row + 2 * d0, (size_t)n * sizeof(*pairs));
    if (n % 2 != 0) pairs[n] = 0;
}

static void pair_rounded(float *to, const float *row, int d0, int deep, int depth)
{
    tpo_simd()->round_row((uint16_t *)to, row + 2 * d0, numbers_of(d0, deep, depth));
}

/* One part is one panel of one chunk. */
static void run_pack(void *arg, int part, int member)
{
    const struct job *j = arg;
    const struct tpo_product *p = j->p;
    const struct tpo_simd *v = tpo_simd();
    int panel = part % n_panels(j), d0 = part / n_panels(j) * DEPTH, c = j->c0 + panel * j->width;
    int deep = (int)tpo_min64(DEPTH, j->depth - d0), wide = (int)tpo_min64(j->width, j->c0 + j->n_cols - c);
    float *to = panel_at(j, d0, panel), *wide_rows = (float *)(j->scratch + j->scratch_stride * (size_t)member);
    const float *from = p->b;
    int64_t at = p->b_turned ? c * p->ldb + d0 : d0 * p->ldb + c, ld = p->ldb;
    if (j->paired) {
        for (int r = 0; r < wide; r++)
            pair_weights(wide_rows + r * deep, (const uint16_t *)p->b + (c + r) * p->ldb, d0, deep, p->depth);
        from = wide_rows, at = 0, ld = deep;
    } else if (p->b_half) {
        int rows = p->b_turned ? wide : deep, cols = p->b_turned ? deep : wide;
        for (int r = 0; r < rows; r++) v->bf16_to_f32(wide_rows + r * cols, (const uint16_t *)p->b + at + r * ld, cols);
        from = wide_rows, at = 0, ld = cols;
    }
    if (!p->b_turned) {
        v->pack(to, j->width, deep, from + at, ld, deep, wide);
        return;
    }
    if (wide < j->width) memset(to, 0, (size_t)deep * (size_t)j->width * sizeof(*to));
    v->transpose(to, j->width, from + at, ld, wide, deep);
}

/* One part is ROWS rows by COLS columns. */
static void run_walk(void *arg, int part, int member)
{
    const struct job *j = arg;
    const struct tpo_product *p = j->p;
    const struct tpo_simd *v = tpo_simd();
    int r0 = part % j->n_row_parts * ROWS, first = part / j->n_row_parts * COLS, end = (int)tpo_min64(j->n_cols, first + COLS);
    int rows = (int)tpo_min64(ROWS, p->rows - r0);
    if (p->symmetric && j->c0 + end <= r0) return;
    float *strips = (float *)(j->scratch + j->scratch_stride * (size_t)member);
    for (int d0 = 0; d0 < j->depth; d0 += DEPTH) {
        struct tpo_panel_sum sum = {.ldy = p->ldy, .a = strips, .add = p->add || d0 > 0};
        sum.depth = (int)tpo_min64(DEPTH, j->depth - d0);
        if (j->paired) {
            for (int r = 0; r < rows; r++) pair_rounded(strips + r * sum.depth, p->a + (r0 + r) * p->lda, d0, sum.depth, p->depth);
            sum.lda = sum.depth;
        } else if (p->a_turned) {
            v->pack_strips(strips, p->a + d0 * p->lda + r0, p->lda, rows, sum.depth);
        } else {
            sum.a = p->a + r0 * p->lda + d0;
            sum.lda = p->lda;
        }
        for (int c = first; c < end; c += j->width) {
            int at = j->c0 + c; /* column of y */
            sum.rows = p->symmetric ? (int)tpo_min64(rows, at + j->width - r0) : rows;
            if (sum.rows <= 0) continue;
            sum.y = p->y + r0 * p->ldy + at;
            sum.b = panel_at(j, d0, c / j->width);
            sum.cols = (int)tpo_min64(j->width, end - c);
            sum.bias = p->bias != NULL && d0 == 0 ? p->bias + at : NULL;
            if (j->paired)
                v->pairs_sum(&sum);
            else
                v->panel_sum(&sum);
        }
    }
}

#define MIRROR 64 /* rows and columns copied at a time */

static void mirror(const struct tpo_product *p)
{
    for (int r = 0; r < p->rows; r += MIRROR)
        for (int c = r; c < p->cols; c += MIRROR) {
            int rows = (int)tpo_min64(MIRROR, p->rows - r), cols = (int)tpo_min64(MIRROR, p->cols - c);
            const float *from = p->y + r * p->ldy + c;
            if (c > r) {
                tpo_simd()->transpose(p->y + c * p->ldy + r, p->ldy, from, p->ldy, rows, cols);
                continue;
            }
            for (int i = 1; i < rows; i++)
                for (int k = 0; k < i; k++) p->y[(r + i) * p->ldy + c + k] = from[k * p->ldy + i];
        }
}

int tpo_product_run(struct tpo_stream *s, const struct tpo_product *p)
{
    struct job j = {.p = p, .width = tpo_simd()->panel_width(), .n_row_parts = tpo_parts(p->rows, ROWS)};
    j.paired = s->rounds && p->b_half && p->b_turned && !p->a_turned;
    j.depth = j.paired ? (p->depth + 1) / 2 : p->depth;
    int64_t at_once = tpo_min64((int64_t)tpo_parts(p->cols, j.width) * j.width, (PACKED / j.depth + COLS) / COLS * COLS);
    j.packed = tpo_cpu_turned(s, (size_t)(at_once * j.depth) * sizeof(float));
    j.scratch = tpo_cpu_scratch(s, (size_t)ROWS * DEPTH * sizeof(float), &j.scratch_stride);
    if (j.packed == NULL || j.scratch == NULL) return TPO_ENOMEM;
    for (j.c0 = 0; j.c0 < p->cols; j.c0 += (int)at_once) {
        j.n_cols = (int)tpo_min64(at_once, p->cols - j.c0);
        tpo_team_run(s->team, run_pack, &j, n_panels(&j) * tpo_parts(j.depth, DEPTH));
        tpo_team_run(s->team, run_walk, &j, j.n_row_parts * tpo_parts(j.n_cols, COLS));
    }
    if (p->symmetric) mirror(p);
    return TPO_OK;
}
