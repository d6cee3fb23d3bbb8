/* bench_matmul -- how fast the CPU's kernels are at training's shapes, products beside a bare call of oneDNN on the same operands.
 *
 *   bench_matmul [THREADS]        one column is one thread, the other THREADS (default: every core)
 *
 * Best of some repetitions. The bare call is one matmul primitive on the whole [out,in] weight, made beforehand, with one thread. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <oneapi/dnnl/dnnl.h>

#include "kernels/ops.h"
#include "kernels/team.h"
#include "tests/bench/check.h"

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

typedef int work_fn(struct tpo_stream *s, void *arg);

/* Seconds of one call: the best of seven rounds of about 10 ms. One thread is measured in its CPU time: neighbours do not count. */
static double measure(work_fn *fn, struct tpo_stream *s, void *arg)
{
    clockid_t clock = tpo_team_size(s->team) == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    check(fn(s, arg), "a kernel");
    double t = now_s(clock);
    fn(s, arg);
    double once = now_s(clock) - t, best = 1e9;
    int calls = once > 0.01 ? 1 : (int)(0.01 / (once + 1e-7)) + 1;
    for (int round = 0; round < 7; round++) {
        t = now_s(clock);
        for (int i = 0; i < calls; i++) fn(s, arg);
        t = (now_s(clock) - t) / calls;
        if (t < best) best = t;
    }
    return best;
}

static float *numbers(int64_t n)
{
    float *x = aligned_alloc(64, (size_t)(n * 4 + 127) / 64 * 64);
    if (x == NULL) exit(1);
    for (int64_t i = 0; i < n; i++) x[i] = tpo_random_normal(1, (uint64_t)i);
    return x;
}

/* --- products ------------------------------------------------------------------------------------------------------------------------ */

struct product {
    int M, N, K;
    float *x, *w, *y;
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_memory_t memory[3];
};

static int run_y(struct tpo_stream *s, void *arg)
{
    struct product *p = arg;
    return tpo_matmul(s, p->y, p->N, p->x, p->K, tpo_f32(p->w), NULL, 0, p->M, p->N, p->K);
}

static int run_dx(struct tpo_stream *s, void *arg)
{
    struct product *p = arg;
    return tpo_matmul_dx(s, p->x, p->K, p->y, p->N, tpo_f32(p->w), 0, p->M, p->N, p->K);
}

static int run_dw(struct tpo_stream *s, void *arg)
{
    struct product *p = arg;
    return tpo_matmul_dw(s, p->w, p->y, p->N, p->x, p->K, 0, p->M, p->N, p->K);
}

static int run_matvec(struct tpo_stream *s, void *arg)
{
    struct product *p = arg;
    return tpo_matvec(s, p->y, p->N, p->x, p->K, tpo_f32(p->w), NULL, 0, p->M, p->N, p->K);
}

static int run_bare(struct tpo_stream *s, void *arg)
{
    (void)s;
    struct product *p = arg;
    dnnl_exec_arg_t args[3] = {{DNNL_ARG_SRC, p->memory[0]}, {DNNL_ARG_WEIGHTS, p->memory[1]}, {DNNL_ARG_DST, p->memory[2]}};
    return dnnl_primitive_execute(p->primitive, p->stream, 3, args) == dnnl_success ? TPO_OK : TPO_INTERNAL;
}

static void make_bare(struct product *p, dnnl_engine_t engine)
{
    dnnl_memory_desc_t md[3];
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t pd;
    int rows[3] = {p->M, p->K, p->M}, cols[3] = {p->K, p->N, p->N};
    float *data[3] = {p->x, p->w, p->y};
    for (int i = 0; i < 3; i++) {
        dnnl_dims_t dims = {rows[i], cols[i]};
        dnnl_memory_desc_init_by_tag(&md[i], 2, dims, dnnl_f32, i == 1 ? dnnl_ba : dnnl_ab);
        dnnl_memory_create(&p->memory[i], &md[i], engine, data[i]);
    }
    dnnl_matmul_desc_init(&op, &md[0], &md[1], NULL, &md[2]);
    if (dnnl_primitive_desc_create(&pd, &op, NULL, engine, NULL) != dnnl_success) exit(1);
    dnnl_primitive_create(&p->primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    dnnl_stream_create(&p->stream, engine, dnnl_stream_default_flags);
}

static void bench_products(struct tpo_stream *one, struct tpo_stream *all)
{
    static const int shapes[][3] = {{64, 128, 128},    {300, 128, 128},    {512, 128, 128},   {2048, 128, 128}, {2048, 384, 128},
                                    {2048, 320, 128},  {2048, 128, 320},   {2048, 512, 128},  {2048, 128, 512}, {512, 512, 512},
                                    {512, 1024, 1024}, {3136, 4096, 1024}, {3136, 1024, 4096}};
    void (*set_threads)(int) = NULL;
    *(void **)&set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (set_threads == NULL) check(TPO_INTERNAL, "oneDNN's threads, which are not OpenMP's");
    set_threads(1);
    dnnl_engine_t engine;
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) exit(1);
    printf("products, GFLOP/s      oneDNN 1T |       y 1T  ratio   all |      dx 1T   all |      dw 1T   all\n");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        struct product p = {.M = shapes[i][0], .N = shapes[i][1], .K = shapes[i][2]};
        p.x = numbers((int64_t)p.M * p.K), p.w = numbers((int64_t)p.N * p.K), p.y = numbers((int64_t)p.M * p.N);
        make_bare(&p, engine);
        double gflop = 2e-9 * p.M * p.N * p.K, bare = gflop / measure(run_bare, one, &p), y = gflop / measure(run_y, one, &p);
        printf("%5d x %4d x %4d %14.1f | %10.1f %6.2f %5.0f | %10.1f %5.0f | %10.1f %5.0f\n", p.M, p.N, p.K, bare, y, y / bare,
               gflop / measure(run_y, all, &p), gflop / measure(run_dx, one, &p), gflop / measure(run_dx, all, &p),
               gflop / measure(run_dw, one, &p), gflop / measure(run_dw, all, &p));
        for (int m = 0; m < 3; m++) dnnl_memory_destroy(p.memory[m]);
        dnnl_primitive_destroy(p.primitive), dnnl_stream_destroy(p.stream);
        free(p.x), free(p.w), free(p.y);
    }
    dnnl_engine_destroy(engine);
    printf("matvec, GB/s of weights        1T   all\n");
    for (int M = 1; M <= 16; M *= 4)
        for (int C = 128; C <= 4096; C *= 32) {
            struct product p = {
                .M = M, .N = C, .K = C, .x = numbers((int64_t)M * C), .w = numbers((int64_t)C * C), .y = numbers((int64_t)M * C)};
            double gb = 4e-9 * C * C;
            printf("%5d x %4d x %4d      %10.1f %5.1f\n", M, C, C, gb / measure(run_matvec, one, &p),
                   gb / measure(run_matvec, all, &p));
            free(p.x), free(p.w), free(p.y);
        }
}

/* --- attention ------------------------------------------------------------------------------------------------------------------------ */

struct attend {
    struct tpo_attention_shape p;
    float *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv;
};

static int run_attention(struct tpo_stream *s, void *arg)
{
    struct attend *a = arg;
    return tpo_attention(s, a->out, a->lse, a->q, a->k, a->v, &a->p);
}

static int run_attention_grad(struct tpo_stream *s, void *arg)
{
    struct attend *a = arg;
    return tpo_attention_grad(s, a->dq, a->dk, a->dv, a->dout, a->out, a->lse, a->q, a->k, a->v, 0, &a->p);
}

/* FLOPs are those of all T x S scores: what is skipped because it cannot be seen counts as done. */
static void bench_attention(struct tpo_stream *one, struct tpo_stream *all)
{
    static const int shapes[][6] = {/* B, T, H, D, causal, length of a segment */ {16, 64, 4, 32, 0, 0},
                                    {4, 256, 4, 32, 0, 0},
                                    {8, 200, 4, 32, 1, 0},
                                    {8, 200, 4, 32, 1, 25},
                                    {1, 784, 16, 64, 0, 0},
                                    {1, 1024, 8, 128, 1, 0}};
    printf("attention, GFLOP/s                 forward 1T   all | backward 1T   all\n");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        int B = shapes[i][0], T = shapes[i][1], H = shapes[i][2], D = shapes[i][3], C = H * D;
        int64_t n = (int64_t)B * T * C;
        int32_t *segments = calloc((size_t)(B * T), sizeof(*segments));
        for (int t = 0; t < B * T; t++) segments[t] = shapes[i][5] == 0 || t % T < 64 ? 0 : 1 + (t % T - 64) / shapes[i][5];
        struct attend a = {{B, T, T, H, H, D, C, C, C, C, 0.2f, shapes[i][4], NULL, segments},
                           numbers(n),
                           numbers(n),
                           numbers(n),
                           numbers(n),
                           numbers((int64_t)B * T * H),
                           numbers(n),
                           numbers(n),
                           numbers(n),
                           numbers(n)};
        double gflop = 4e-9 * n * T;
        double f1 = gflop / measure(run_attention, one, &a), f = gflop / measure(run_attention, all, &a);
        double b1 = 2.5 * gflop / measure(run_attention_grad, one, &a), b = 2.5 * gflop / measure(run_attention_grad, all, &a);
        printf("%3d x %4d, %2d heads of %3d%s%-9s %10.1f %5.0f | %11.1f %5.0f\n", B, T, H, D, a.p.causal ? " causal" : "       ",
               shapes[i][5] ? " segments" : "", f1, f, b1, b);
        free(a.q), free(a.k), free(a.v), free(a.out), free(a.lse), free(a.dout), free(a.dq), free(a.dk), free(a.dv), free(segments);
    }
}

/* --- the rest --------------------------------------------------------------------------------------------------------------------------- */

struct rows {
    float *a, *b, *c, *d, *e, *f, *g;
    int32_t *label;
};

#define M 2048
#define C 128
#define V 512

static int run_gelu(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_gelu(s, r->a, r->b, M * V);
}
static int run_gelu_grad(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_gelu_grad(s, r->a, r->b, r->c, 0, M * V);
}
static int run_swiglu(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_swiglu(s, r->a, r->b, r->c, 320, M, 320);
}
static int run_swiglu_grad(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_swiglu_grad(s, r->a, r->d, r->b, r->b, r->c, 320, 0, M, 320);
}
static int run_norm(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_layernorm(s, r->a, r->e, r->f, r->b, r->c, r->c, 1e-5f, M, C);
}
static int run_norm_grad(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_layernorm_grad(s, r->a, r->d, r->d + C, r->b, r->c, r->c, r->e, r->f, 0, M, C);
}
static int run_entropy(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_cross_entropy(s, r->a, r->b, r->label, NULL, M, V);
}
static int run_entropy_grad(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_cross_entropy_grad(s, r->a, r->b, r->label, NULL, 1.0f, M, V);
}
static int run_adamw(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    struct tpo_adamw step = {1e-3f, 0.9f, 0.98f, 1e-8f, 0.05f, 1.0f, 10};
    return tpo_adamw(s, r->a, r->d, r->g, r->b, r->c, r->e, r->f, &step, M * V);
}
static int run_add(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_add(s, r->a, r->b, r->c, M * C);
}
static int run_bias(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_bias_grad(s, r->a, r->b, V, 0, M, V);
}
static int run_muon(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    struct tpo_muon step = {1e-3f, 0.95f, 0.05f, 1.0f};
    return tpo_muon(s, r->a, r->d, r->b, r->c, r->f, &step, r->g, C, V);
}
static int run_nothing(struct tpo_stream *s, void *arg)
{
    struct rows *r = arg;
    return tpo_fill(s, r->a, 0.0f, 1);
}

static void bench_rest(struct tpo_stream *one, struct tpo_stream *all)
{
    static const struct {
        const char *name;
        work_fn *fn;
    } ops[] = {{"gelu 2048x512", run_gelu},
               {"gelu_grad 2048x512", run_gelu_grad},
               {"swiglu 2048x320", run_swiglu},
               {"swiglu_grad 2048x320", run_swiglu_grad},
               {"layernorm 2048x128", run_norm},
               {"layernorm_grad 2048x128", run_norm_grad},
               {"cross_entropy 2048x512", run_entropy},
               {"cross_entropy_grad", run_entropy_grad},
               {"bias_grad 2048x512", run_bias},
               {"add 2048x128", run_add},
               {"adamw 1M", run_adamw},
               {"muon 128x512", run_muon},
               {"fill 1: the call itself", run_nothing}};
    struct rows r = {numbers(M * V), numbers(M * V), numbers(M * V), numbers(M * V),
                     numbers(M * V), numbers(M * V), numbers(M * V), calloc(M, sizeof(int32_t))};
    for (int i = 0; i < M * V; i++) r.e[i] = r.e[i] * r.e[i];
    printf("microseconds                      1T       all\n");
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
        printf("%-26s %9.2f %9.2f\n", ops[i].name, 1e6 * measure(ops[i].fn, one, &r), 1e6 * measure(ops[i].fn, all, &r));
    free(r.a), free(r.b), free(r.c), free(r.d), free(r.e), free(r.f), free(r.g), free(r.label);
}

int main(int argc, char **argv)
{
    struct tpo_stream *one, *all;
    struct tpo_error err;
    if (tpo_stream_open(&one, "cpu", 1, &err) != TPO_OK ||
        tpo_stream_open(&all, "cpu", argc > 1 ? atoi(argv[1]) : 0, &err) != TPO_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    bench_products(one, all);
    bench_attention(one, all);
    bench_rest(one, all);
    tpo_stream_close(one);
    tpo_stream_close(all);
    return 0;
}
