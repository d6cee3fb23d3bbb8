/* This file owns the CPU's matrix products: how they are cut into blocks that the library computes, and the loop for what it refuses.
 *
 * y and dx: blocks of TPO_MATMUL_ROWS rows by panels of PANEL columns. The last block of rows goes through padded copies with the same
 * distances between rows, so that the very same code computes it. For y the weights of some panels at a time are turned first: the library
 * would turn them again for every block of rows. dw: panels of its own rows, the sum over M in chunks of DEPTH rows. */
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/products.h"
#include "kernels/simd.h"

#define PANEL   256       /* columns of y, of dx and of dw in one call */
#define TURNED  (2 << 20) /* floats of weights turned at a time, at least a panel */
#define DW_ROWS 64        /* rows of dw in one part */
#define DEPTH   256       /* rows of x and dy summed in one call */

struct blocks {
    const struct tpo_product *full, *last; /* panels of PANEL columns, and what remains */
    struct tpo_product_shape shape;        /* of a full block */
    float *y;
    const float *x, *w, *bias;
    int M, cols, n_row_blocks;
    float *turned;             /* NULL: w is (depth, cols) already */
    int first_panel, n_panels; /* of those turned now */
    int turn_rows;             /* rows of w in one part of turning: divides PANEL */
    char *scratch;
    size_t scratch_stride;
};

/* What the library computes, for shapes it refuses. */
static void plain_product(const struct tpo_product_shape *s, int cols, int ldw, float *y, const float *x, const float *w,
                          const float *bias)
{
    for (int r = 0; r < s->rows; r++) {
        for (int c = 0; c < cols; c++) {
            float sum = s->bias ? bias[c] : 0.0f;
            for (int d = 0; d < s->depth; d++) {
                float a = x[s->x_t ? (int64_t)d * s->ldx + r : (int64_t)r * s->ldx + d];
                sum += a * w[(int64_t)d * ldw + c];
            }
            float *out = &y[(int64_t)r * s->ldy + c];
            *out = s->add ? *out + sum : sum;
        }
    }
}

static void product(const struct blocks *b, int cols, int member, float *y, const float *x, const float *w, const float *bias)
{
    const struct tpo_product *p = cols == PANEL ? b->full : b->last;
    if (p != NULL)
        tpo_product_run(p, member, y, x, w, bias);
    else
        plain_product(&b->shape, cols, b->turned != NULL ? cols : b->shape.ldw, y, x, w, bias);
}

static void copy_rows(float *to, int ld_to, const float *from, int ld_from, int rows, int cols)
{
    for (int r = 0; r < rows; r++) memcpy(to + (int64_t)r * ld_to, from + (int64_t)r * ld_from, (size_t)cols * sizeof(*to));
}

static void run_block(void *arg, int part, int member)
{
    const struct blocks *b = arg;
    const struct tpo_product_shape *s = &b->shape;
    int p = part / b->n_row_blocks, panel = b->first_panel + p, m0 = part % b->n_row_blocks * TPO_MATMUL_ROWS;
    int rows = (int)tpo_min64(TPO_MATMUL_ROWS, b->M - m0), c0 = panel * PANEL, cols = (int)tpo_min64(PANEL, b->cols - c0);
    const float *x = b->x + (int64_t)m0 * s->ldx, *bias = b->bias != NULL ? b->bias + c0 : NULL;
    const float *w = b->turned != NULL ? b->turned + (int64_t)p * PANEL * s->depth : b->w + c0;
    float *y = b->y + (int64_t)m0 * s->ldy + c0;
    if (rows == TPO_MATMUL_ROWS) {
        product(b, cols, member, y, x, w, bias);
        return;
    }
    float *px = (float *)(b->scratch + b->scratch_stride * (size_t)member), *py = px + (int64_t)TPO_MATMUL_ROWS * s->ldx;
    copy_rows(px, s->ldx, x, s->ldx, rows, s->depth);
    for (int r = rows; r < TPO_MATMUL_ROWS; r++) memset(px + (int64_t)r * s->ldx, 0, (size_t)s->depth * sizeof(*px));
    if (s->add) copy_rows(py, s->ldy, y, s->ldy, rows, cols);
    product(b, cols, member, py, px, w, bias);
    copy_rows(y, s->ldy, py, s->ldy, rows, cols);
}

static void run_turn(void *arg, int part, int member)
{
    (void)member;
    const struct blocks *b = arg;
    int depth = b->shape.depth, at = part * b->turn_rows, c0 = b->first_panel * PANEL + at; /* row of w, column of its product */
    int panel = at / PANEL, width = (int)tpo_min64(PANEL, b->cols - (int64_t)(b->first_panel + panel) * PANEL);
    float *to = b->turned + (int64_t)panel * PANEL * depth + at % PANEL;
    tpo_simd()->transpose(to, width, b->w + (int64_t)c0 * depth, depth, (int)tpo_min64(b->turn_rows, b->cols - c0), depth);
}

static int run_turned(struct tpo_stream *s, struct blocks *b, int n_panels)
{
    int64_t panel_size = (int64_t)PANEL * b->shape.depth;
    int at_once = (int)tpo_min64(n_panels, TURNED / panel_size > 1 ? TURNED / panel_size : 1);
    b->turned = tpo_cpu_turned(s, (size_t)(at_once * panel_size) * sizeof(float));
    if (b->turned == NULL) return TPO_ENOMEM;
    b->turn_rows = PANEL;
    while (b->turn_rows > 16 && (int64_t)b->turn_rows * b->shape.depth > TPO_GRAIN) b->turn_rows /= 2;
    for (b->first_panel = 0; b->first_panel < n_panels; b->first_panel += at_once) {
        b->n_panels = (int)tpo_min64(at_once, n_panels - b->first_panel);
        int64_t rows = tpo_min64((int64_t)b->n_panels * PANEL, b->cols - (int64_t)b->first_panel * PANEL);
        tpo_team_run(s->team, run_turn, b, tpo_parts(rows, b->turn_rows));
        tpo_team_run(s->team, run_block, b, b->n_row_blocks * b->n_panels);
    }
    return TPO_OK;
}

/* y (M, cols) = x (M, depth) w; w is (cols, depth) when w_t, else (depth, cols). */
static int run_blocks(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, const float *w, int w_t, const float *bias,
                      int add, int M, int cols, int depth)
{
    struct blocks b = {.y = y, .x = x, .w = w, .bias = bias, .M = M, .cols = cols};
    struct tpo_products *products = tpo_cpu_of(s)->products;
    int n_panels = tpo_parts(cols, PANEL), last = cols % PANEL;
    b.shape = (struct tpo_product_shape){
        .rows = TPO_MATMUL_ROWS, .depth = depth, .ldx = ldx, .ldy = ldy, .bias = bias != NULL, .add = add != 0};
    if (last != 0) {
        b.shape.cols = last;
        b.shape.ldw = w_t ? last : cols;
        b.last = tpo_product_get(products, &b.shape);
    }
    if (cols >= PANEL) {
        b.shape.cols = PANEL;
        b.shape.ldw = w_t ? PANEL : cols;
        b.full = tpo_product_get(products, &b.shape);
    }
    if (M % TPO_MATMUL_ROWS != 0) {
        b.scratch = tpo_cpu_scratch(s, ((size_t)ldx + (size_t)ldy) * TPO_MATMUL_ROWS * sizeof(float), &b.scratch_stride);
        if (b.scratch == NULL) return TPO_ENOMEM;
    }
    b.n_row_blocks = tpo_parts(M, TPO_MATMUL_ROWS);
    if (w_t) return run_turned(s, &b, n_panels);
    tpo_team_run(s->team, run_block, &b, b.n_row_blocks * n_panels);
    return TPO_OK;
}

int tpo_matmul_cpu(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, const float *w, const float *bias, int add,
                   int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    return run_blocks(s, y, ldy, x, ldx, w, 1, bias, add, M, N, K);
}

int tpo_matmul_dx_cpu(struct tpo_stream *s, float *dx, int lddx, const float *dy, int lddy, const float *w, int add, int M, int N,
                      int K)
{
    if (M < 1 || N < 1 || K < 1 || lddx < K || lddy < N) return TPO_EINVAL;
    return run_blocks(s, dx, lddx, dy, lddy, w, 0, NULL, add, M, K, N);
}

/* --- gradient of w -------------------------------------------------------------------------------------------------------------- */

struct dw {
    float *dw;
    const float *dy, *x;
    int lddy, ldx, add, M, N, K, n_panels;
    /* [rows is short][columns are short][adds], for whole chunks in place and for the padded rest */
    const struct tpo_product *whole[2][2][2], *rest[2][2][2];
    char *scratch;
    size_t scratch_stride;
};

static int rest_depth(int M)
{
    return (M % DEPTH + TPO_MATMUL_ROWS - 1) / TPO_MATMUL_ROWS * TPO_MATMUL_ROWS;
}

static void dw_shape(const struct dw *d, struct tpo_product_shape *s, int rest, int short_rows, int short_cols, int add)
{
    *s = (struct tpo_product_shape){.rows = short_rows ? d->N % DW_ROWS : DW_ROWS,
                                    .cols = short_cols ? d->K % PANEL : PANEL,
                                    .depth = rest ? rest_depth(d->M) : DEPTH,
                                    .ldx = rest ? DW_ROWS : d->lddy,
                                    .ldw = rest ? PANEL : d->ldx,
                                    .ldy = d->K,
                                    .x_t = 1,
                                    .add = add};
}

static void find_dw_products(struct dw *d, struct tpo_products *products)
{
    struct tpo_product_shape s;
    for (int i = 0; i < 8; i++) {
        int r = i >> 2, c = i >> 1 & 1, add = i & 1;
        if ((r ? d->N % DW_ROWS == 0 : d->N < DW_ROWS) || (c ? d->K % PANEL == 0 : d->K < PANEL)) continue;
        int chunks = d->M / DEPTH, begins = d->add ? 1 : 0;
        dw_shape(d, &s, 0, r, c, add);
        if (add ? chunks + begins > 1 : chunks > 0 && !begins) d->whole[r][c][add] = tpo_product_get(products, &s);
        dw_shape(d, &s, 1, r, c, add);
        if (d->M % DEPTH != 0 && add == (chunks + begins > 0)) d->rest[r][c][add] = tpo_product_get(products, &s);
    }
}

static void run_dw_product(const struct dw *d, int rest, int r, int c, int add, int member, float *dw, const float *dy,
                           const float *x)
{
    const struct tpo_product *p = rest ? d->rest[r][c][add] : d->whole[r][c][add];
    if (p != NULL) {
        tpo_product_run(p, member, dw, dy, x, NULL);
        return;
    }
    struct tpo_product_shape s;
    dw_shape(d, &s, rest, r, c, add);
    plain_product(&s, s.cols, s.ldw, dw, dy, x, NULL);
}

static void run_dw(void *arg, int part, int member)
{
    const struct dw *d = arg;
    int n0 = part / d->n_panels * DW_ROWS, k0 = part % d->n_panels * PANEL;
    int rows = (int)tpo_min64(DW_ROWS, d->N - n0), cols = (int)tpo_min64(PANEL, d->K - k0);
    float *dw = d->dw + (int64_t)n0 * d->K + k0;
    int add = d->add != 0, m = 0;
    for (; m + DEPTH <= d->M; m += DEPTH, add = 1)
        run_dw_product(d, 0, rows < DW_ROWS, cols < PANEL, add, member, dw, d->dy + (int64_t)m * d->lddy + n0,
                       d->x + (int64_t)m * d->ldx + k0);
    if (m == d->M) return;
    float *dy = (float *)(d->scratch + d->scratch_stride * (size_t)member), *x = dy + DEPTH * DW_ROWS;
    int left = d->M - m, depth = rest_depth(d->M);
    copy_rows(dy, DW_ROWS, d->dy + (int64_t)m * d->lddy + n0, d->lddy, left, rows);
    copy_rows(x, PANEL, d->x + (int64_t)m * d->ldx + k0, d->ldx, left, cols);
    memset(dy + left * DW_ROWS, 0, (size_t)(depth - left) * DW_ROWS * sizeof(*dy));
    memset(x + left * PANEL, 0, (size_t)(depth - left) * PANEL * sizeof(*x));
    run_dw_product(d, 1, rows < DW_ROWS, cols < PANEL, add, member, dw, dy, x);
}

int tpo_matmul_dw_cpu(struct tpo_stream *s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add, int M, int N,
                      int K)
{
    if (M < 1 || N < 1 || K < 1 || lddy < N || ldx < K) return TPO_EINVAL;
    struct dw d = {
        .dw = dw, .dy = dy, .x = x, .lddy = lddy, .ldx = ldx, .add = add, .M = M, .N = N, .K = K, .n_panels = tpo_parts(K, PANEL)};
    d.scratch = tpo_cpu_scratch(s, DEPTH * (DW_ROWS + PANEL) * sizeof(float), &d.scratch_stride);
    if (d.scratch == NULL) return TPO_ENOMEM;
    find_dw_products(&d, tpo_cpu_of(s)->products);
    tpo_team_run(s->team, run_dw, &d, tpo_parts(N, DW_ROWS) * d.n_panels);
    return TPO_OK;
}

/* --- gradient of the bias ---------------------------------------------------------------------------------------------------------- */

struct bias_grad {
    float *db;
    const float *dy;
    int lddy, add, M, N;
};

static void run_bias_grad(void *arg, int part, int member)
{
    (void)member;
    const struct bias_grad *b = arg;
    int c0 = part * TPO_COLUMNS, cols = (int)tpo_min64(TPO_COLUMNS, b->N - c0);
    float *db = b->db + c0;
    if (!b->add) memset(db, 0, (size_t)cols * sizeof(*db));
    tpo_simd()->column_sums(db, b->dy + c0, b->lddy, b->M, cols);
}

int tpo_bias_grad_cpu(struct tpo_stream *s, float *db, const float *dy, int lddy, int add, int M, int N)
{
    if (M < 1 || N < 1 || lddy < N) return TPO_EINVAL;
    struct bias_grad b = {db, dy, lddy, add, M, N};
    tpo_team_run(s->team, run_bias_grad, &b, tpo_parts(N, TPO_COLUMNS));
    return TPO_OK;
}
