/* bench_vit -- one clip of 16 x 224 x 224 through the ViT's blocks at the published size, beside a bare call of oneDNN for the same products and
 * beside the same blocks in PyTorch (tests/peers/vit_torch.py, scaled_dot_product_attention), in one run.
 *
 *   bench_vit [THREADS] [BLOCKS]        default: every core, 23. Less than 23 blocks: every figure is of that many.
 *
 * Each is run once untimed at its full shape, then twice; the lesser counts, of the wall's and of CPU time. One follows the other, so that others'
 * work may meet one of them alone; CPU seconds say more than wall then. Weights are random, f32 and then bf16 (--dtype bf16: they stay as they
 * are, all sums are f32; activations are rounded beside them where the CPU multiplies pairs, as in a service). FLOPs are those of the products:
 * 2 tokens (12 width^2) and 4 tokens^2 width for a block; ours also embeds the patches, which is not counted. The bare figure is the time oneDNN
 * takes for a block's four products alone, attention not counted. PyTorch's bf16 is timed on one block, as it has no instructions for it on many a
 * machine and would take minutes: its seconds are that times BLOCKS. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>
#include <oneapi/dnnl/dnnl.h>

#include "kernels/ops.h"
#include "kernels/team.h"
#include "nn/tape.h"
#include "services/encoder/vit.h"

#define PASSES 2 /* timed, after one that is not: it takes memory and makes what is kept for a shape */

struct took {
    double wall, cpu; /* seconds; cpu is that of all threads */
};

static double clock_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct took now(void)
{
    return (struct took){clock_s(CLOCK_MONOTONIC), clock_s(CLOCK_PROCESS_CPUTIME_ID)};
}

static struct took since(struct took start)
{
    struct took t = now();
    return (struct took){t.wall - start.wall, t.cpu - start.cpu};
}

static struct took lesser(struct took a, struct took b)
{
    return (struct took){a.wall < b.wall ? a.wall : b.wall, a.cpu < b.cpu ? a.cpu : b.cpu};
}

static void die(const char *what)
{
    fprintf(stderr, "bench_vit: %s\n", what);
    exit(1);
}

/* Uniform in +-scale: the draw of a real start would take longer than the bench. */
static float *numbers(int64_t n, float scale)
{
    static uint32_t state = 1;
    float *x = aligned_alloc(64, (size_t)(n * 4 + 127) / 64 * 64);
    if (x == NULL) die("no memory");
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = scale * ((float)(state >> 8) * 0x1p-23f - 1.0f);
    }
    return x;
}

static void fill(struct tpo_params *p, struct tpo_stream *s, bool half)
{
    for (int i = 0; i < p->n; i++) {
        struct tpo_param *item = p->items[i];
        int64_t depth = item->size / item->shape[0];
        item->data = numbers(item->size, item->n_dims > 1 ? 1.7f / sqrtf((float)depth) : 0.0f);
        for (int64_t k = 0; k < item->size && item->init == TPO_INIT_ONE; k++) item->data[k] = 1.0f;
        if (!half || !item->product) continue;
        uint16_t *narrow = aligned_alloc(64, (size_t)(item->size * 2 + 127) / 64 * 64);
        if (narrow == NULL || tpo_f32_to_bf16(s, narrow, item->data, item->size) != TPO_OK) die("no memory");
        free(item->data);
        item->data = NULL;
        item->half = narrow;
    }
}

/* --- ours ------------------------------------------------------------------------------------------------------------------------------- */

static struct took ours(struct tpo_stream *s, const struct tpo_config *c, int tokens, bool half)
{
    struct tpo_params p = {0};
    struct tpo_vit v;
    struct tpo_tape *t = NULL;
    if (tpo_vit_declare(&v, &p, c) != TPO_OK || tpo_tape_open(&t, s, false) != TPO_OK) die("no memory");
    fill(&p, s, half);
    const int frames = c->vision_encoder.num_frames, patch = c->vision_encoder.patch_size, K = 3 * patch * patch;
    float *rows = numbers((int64_t)tokens * K, 1.0f);
    struct took best = {1e9, 1e9};
    if (half) tpo_stream_let_round(s);
    for (int pass = 0; pass <= PASSES; pass++) {
        tpo_tape_reset(t, false);
        struct took start = now();
        struct tpo_tensor *y =
            tpo_vit_forward(t, &v, tpo_input(t, rows, tokens, K, false), tokens / (frames * tpo_config_patches(c)));
        if (y == NULL || tpo_tape_error(t) != TPO_OK) die("the ViT failed");
        if (pass > 0) best = lesser(best, since(start));
    }
    s->rounds = false;
    tpo_tape_close(t);
    free(rows);
    for (int i = 0; i < p.n; i++) free(p.items[i]->data), free((void *)p.items[i]->half), p.items[i]->data = NULL;
    tpo_vit_close(&v);
    tpo_params_free(&p, s);
    return best;
}

static struct took attention_alone(struct tpo_stream *s, int tokens, int H, int D)
{
    const int C = H * D;
    float *qkv = numbers((int64_t)tokens * 3 * C, 1.0f), *out = numbers((int64_t)tokens * C, 0.0f);
    const struct tpo_attention_shape shape = {1, tokens, tokens, H, H, D, 3 * C, 3 * C, 3 * C, C, 1 / sqrtf((float)D),
                                              0, NULL,   NULL};
    struct took best = {1e9, 1e9};
    for (int pass = 0; pass <= PASSES; pass++) {
        struct took start = now();
        if (tpo_attention(s, out, NULL, qkv, qkv + C, qkv + 2 * C, &shape) != TPO_OK) die("attention failed");
        if (pass > 0) best = lesser(best, since(start));
    }
    free(qkv), free(out);
    return best;
}

/* --- the library ------------------------------------------------------------------------------------------------------------------------ */

static struct took bare_product(dnnl_engine_t engine, int M, int N, int K)
{
    dnnl_memory_desc_t md[3];
    dnnl_memory_t memory[3];
    dnnl_matmul_desc_t op;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t product;
    dnnl_stream_t stream;
    const int rows[3] = {M, K, M}, cols[3] = {K, N, N};
    float *data[3];
    for (int i = 0; i < 3; i++) {
        dnnl_dims_t dims = {rows[i], cols[i]};
        data[i] = numbers((int64_t)rows[i] * cols[i], 1.0f);
        dnnl_memory_desc_init_by_tag(&md[i], 2, dims, dnnl_f32, i == 1 ? dnnl_ba : dnnl_ab);
        dnnl_memory_create(&memory[i], &md[i], engine, data[i]);
    }
    dnnl_matmul_desc_init(&op, &md[0], &md[1], NULL, &md[2]);
    if (dnnl_primitive_desc_create(&pd, &op, NULL, engine, NULL) != dnnl_success ||
        dnnl_primitive_create(&product, pd) != dnnl_success)
        die("oneDNN refuses the product");
    dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    dnnl_exec_arg_t args[3] = {{DNNL_ARG_SRC, memory[0]}, {DNNL_ARG_WEIGHTS, memory[1]}, {DNNL_ARG_DST, memory[2]}};
    struct took best = {1e9, 1e9};
    for (int pass = 0; pass <= PASSES; pass++) {
        struct took start = now();
        if (dnnl_primitive_execute(product, stream, 3, args) != dnnl_success || dnnl_stream_wait(stream) != dnnl_success)
            die("oneDNN failed");
        if (pass > 0) best = lesser(best, since(start));
    }
    for (int i = 0; i < 3; i++) dnnl_memory_destroy(memory[i]), free(data[i]);
    dnnl_primitive_destroy(product), dnnl_primitive_desc_destroy(pd), dnnl_stream_destroy(stream);
    return best;
}

static struct took bare_block(int tokens, int C, int threads)
{
    void (*set_threads)(int) = NULL;
    dnnl_engine_t engine;
    *(void **)&set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (set_threads == NULL) die("this oneDNN takes its threads from elsewhere than OpenMP");
    set_threads(threads);
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) die("oneDNN has no CPU engine");
    const int shapes[4][2] = {{3 * C, C}, {C, C}, {4 * C, C}, {C, 4 * C}};
    struct took sum = {0, 0};
    for (int i = 0; i < 4; i++) {
        struct took one = bare_product(engine, tokens, shapes[i][0], shapes[i][1]);
        sum.wall += one.wall, sum.cpu += one.cpu;
    }
    dnnl_engine_destroy(engine);
    return sum;
}

/* --- PyTorch ---------------------------------------------------------------------------------------------------------------------------- */

static struct took peer(const char *dtype, int blocks, int tokens, int threads)
{
    char command[256], line[1024] = "";
    snprintf(command, sizeof(command),
             "build/peers/bin/python tests/peers/vit_torch.py --dtype %s --blocks %d --tokens %d --threads %d --passes %d", dtype,
             blocks, tokens, threads, PASSES);
    FILE *f = popen(command, "r");
    if (f == NULL || fgets(line, sizeof(line), f) == NULL) die("the peer answered nothing");
    pclose(f);
    json_t *answer = json_loads(line, 0, NULL);
    struct took took = {json_number_value(json_object_get(answer, "seconds")),
                        json_number_value(json_object_get(answer, "cpu_seconds"))};
    json_decref(answer);
    if (took.wall <= 0) die("the peer's answer has no time");
    return took;
}

static void line(const char *what, struct took t, double gflop)
{
    printf("%-20s %8.2f %8.1f | %6.2f %8.1f\n", what, t.wall, gflop / t.wall, t.cpu, gflop / t.cpu);
}

int main(int argc, char **argv)
{
    struct tpo_config c;
    struct tpo_error err;
    struct tpo_stream *s;
    tpo_config_default(&c);
    if (tpo_stream_open(&s, "cpu", argc > 1 ? atoi(argv[1]) : 0, &err) != TPO_OK) die(err.message);
    const int blocks = argc > 2 ? atoi(argv[2]) : tpo_config_vit_blocks(&c), threads = tpo_team_size(s->team);
    c.vision_encoder.encoder_depth = blocks - c.vision_encoder.return_index - 1;
    const int C = c.vision_encoder.encoder_embed_dim, H = c.vision_encoder.encoder_num_heads;
    const int tokens = c.vision_encoder.num_frames * tpo_config_patches(&c);
    const double products = 2e-9 * tokens * 12.0 * C * C, attention = 4e-9 * tokens * (double)tokens * C,
                 all = blocks * (products + attention);
    printf("%d tokens, %d blocks of width %d, %d threads: %.0f GFLOP\n", tokens, blocks, C, threads, all);
    const struct took mine = ours(s, &c, tokens, false), mine16 = ours(s, &c, tokens, true),
                      one = attention_alone(s, tokens, H, C / H), bare = bare_block(tokens, C, threads);
    const struct took torch32 = peer("f32", blocks, tokens, threads);
    struct took torch16 = peer("bf16", 1, tokens, threads);
    torch16.wall *= blocks, torch16.cpu *= blocks;
    printf("                       wall s  GFLOP/s |  CPU s  GFLOP/s of one CPU\n");
    line("blocks, f32", mine, all);
    line("blocks, bf16", mine16, all);
    line("torch's, f32", torch32, all);
    line("torch's, bf16", torch16, all);
    line("attention of a block", one, attention);
    line("oneDNN's products", bare, products);
    printf("torch / ours, f32: %.2f by wall, %.2f by CPU; share of oneDNN's rate: %.2f by wall, %.2f by CPU\n",
           torch32.wall / mine.wall, torch32.cpu / mine.cpu, all / mine.wall / (products / bare.wall),
           all / mine.cpu / (products / bare.cpu));
    printf("torch / ours, bf16: %.2f by wall, %.2f by CPU; torch's better one / ours, bf16: %.2f by wall, %.2f by CPU\n",
           torch16.wall / mine16.wall, torch16.cpu / mine16.cpu, fmin(torch16.wall, torch32.wall) / mine16.wall,
           fmin(torch16.cpu, torch32.cpu) / mine16.cpu);
    tpo_stream_close(s);
    return 0;
}
