/* Times operations of the CUDA device at the published model's sizes: `make bench B=cuda`, on a machine with a GPU.
 *
 * Each line: microseconds of one call in a row of many, and the rate that its arithmetic (TFLOP/s) or its traffic (GB/s) makes.
 * tests/peers/cuda_torch.py prints the same lines for PyTorch on the same GPU; a last column gives PyTorch's time over ours. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "kernels/ops.h"
#include "tests/bench/check.h"

struct bench {
    struct tpo_stream *s;
    float *f[9];
    int32_t *i[3];
    int M, N, K;
    struct tpo_attention_shape shape;
    struct tpo_paged_shape paged;
    int64_t n;
};

static float *floats(struct bench *b, int64_t n)
{
    float *host = malloc((size_t)n * sizeof(*host)), *x = tpo_device_alloc(b->s, (size_t)n * sizeof(*x));
    if (host == NULL || x == NULL) check(TPO_ENOMEM, "memory");
    for (int64_t k = 0; k < n; k++) host[k] = (float)(k * 2654435761u % 2001) / 1000 - 1;
    check(tpo_copy_in(b->s, x, host, (size_t)n * sizeof(*x)), "copy");
    free(host);
    return x;
}

static int32_t *ints(struct bench *b, int n, int32_t step)
{
    int32_t *host = malloc((size_t)n * sizeof(*host)), *x = tpo_device_alloc(b->s, (size_t)n * sizeof(*x));
    if (host == NULL || x == NULL) check(TPO_ENOMEM, "memory");
    for (int k = 0; k < n; k++) host[k] = k * step;
    check(tpo_copy_in(b->s, x, host, (size_t)n * sizeof(*x)), "copy");
    free(host);
    return x;
}

static void drop(struct bench *b)
{
    for (int k = 0; k < 9; k++) tpo_device_free(b->s, b->f[k]);
    for (int k = 0; k < 3; k++) tpo_device_free(b->s, b->i[k]);
    memset(b->f, 0, sizeof(b->f));
    memset(b->i, 0, sizeof(b->i));
}

/* Runs for about a quarter of a second after a warm-up. `work`: operations (unit 1e12) or bytes (unit 1e9) of one call. */
static void line(struct bench *b, const char *name, int (*run)(struct bench *b), double work, double unit, const char *rate)
{
    for (int k = 0; k < 3; k++) check(run(b), name);
    check(tpo_stream_wait(b->s), name);
    double begun = tpo_now_s(), took;
    int n = 0;
    for (int some = 1;; some *= 2) {
        for (int k = 0; k < some; k++) check(run(b), name);
        check(tpo_stream_wait(b->s), name);
        n += some;
        took = tpo_now_s() - begun;
        if (took > .25) break;
    }
    printf("%-36s %10.1f us %9.1f %s\n", name, took / n * 1e6, work * n / took / unit, rate);
    drop(b);
}

static int run_matmul(struct bench *b)
{
    return tpo_matmul(b->s, b->f[0], b->N, b->f[1], b->K, tpo_f32(b->f[2]), b->f[3], 0, b->M, b->N, b->K);
}
static int run_matmul_half(struct bench *b)
{
    return tpo_matmul(b->s, b->f[0], b->N, b->f[1], b->K, tpo_bf16((const uint16_t *)b->f[2]), b->f[3], 0, b->M, b->N, b->K);
}
static int run_matvec_half(struct bench *b)
{
    return tpo_matvec(b->s, b->f[0], b->N, b->f[1], b->K, tpo_bf16((const uint16_t *)b->f[2]), NULL, 0, b->M, b->N, b->K);
}
static int run_attention(struct bench *b)
{
    return tpo_attention(b->s, b->f[0], b->f[1], b->f[2], b->f[3], b->f[4], &b->shape);
}
static int run_attention_grad(struct bench *b)
{
    return tpo_attention_grad(b->s, b->f[5], b->f[6], b->f[7], b->f[8], b->f[0], b->f[1], b->f[2], b->f[3], b->f[4], 0, &b->shape);
}
static int run_paged(struct bench *b)
{
    return tpo_attention_paged(b->s, b->f[0], b->f[1], b->f[2], b->f[3], &b->paged);
}
static int run_layernorm(struct bench *b)
{
    return tpo_layernorm(b->s, b->f[0], NULL, NULL, b->f[1], b->f[2], b->f[3], 1e-6f, b->M, b->N);
}
static int run_gelu(struct bench *b)
{
    return tpo_gelu(b->s, b->f[0], b->f[1], b->n);
}
static int run_adamw(struct bench *b)
{
    static const struct tpo_adamw step = {1e-4f, .9f, .98f, 1e-8f, .05f, 1, 10};
    return tpo_adamw(b->s, b->f[0], b->f[1], b->f[2], b->f[3], b->f[4], b->f[5], b->f[6], &step, b->n);
}
static int run_muon(struct bench *b)
{
    static const struct tpo_muon step = {1e-4f, .95f, .05f, 1};
    return tpo_muon(b->s, b->f[0], b->f[1], b->f[2], b->f[3], b->f[4], &step, b->f[5], b->M, b->N);
}

static void product(struct bench *b, const char *name, int M, int N, int K, int kind)
{
    const double half = kind > 0 ? .5 : 1, bytes = 4 * half * N * K;
    b->M = M, b->N = N, b->K = K;
    b->f[0] = floats(b, (int64_t)M * N), b->f[1] = floats(b, (int64_t)M * K), b->f[2] = floats(b, (int64_t)((double)N * K * half)),
    b->f[3] = floats(b, N);
    if (kind == 2)
        line(b, name, run_matvec_half, bytes, 1e9, "GB/s of weights");
    else
        line(b, name, kind == 1 ? run_matmul_half : run_matmul, 2.0 * M * N * K, 1e12, "TFLOP/s");
}

static void attention(struct bench *b, const char *name, const char *name_grad, int T, int H, int G, int D, int causal)
{
    const int64_t q = (int64_t)T * H * D, k = (int64_t)T * G * D;
    const double work = 4.0 * T * T * H * D / (causal ? 2 : 1);
    const int64_t sizes[9] = {q, (int64_t)T * H, q, k, k, q, k, k, q};
    b->shape = (struct tpo_attention_shape){.B = 1,
                                            .T = T,
                                            .S = T,
                                            .H = H,
                                            .G = G,
                                            .D = D,
                                            .ldq = H * D,
                                            .ldk = G * D,
                                            .ldv = G * D,
                                            .ldo = H * D,
                                            .scale = .1f,
                                            .causal = causal};
    for (int grad = 0; grad < 2; grad++) {
        for (int x = 0; x < 9; x++) b->f[x] = floats(b, sizes[x]);
        check(run_attention(b), name);
        line(b, grad ? name_grad : name, grad ? run_attention_grad : run_attention, grad ? 2.5 * work : work, 1e12, "TFLOP/s");
    }
}

static void paged(struct bench *b, const char *name, int keys, int H, int G, int D)
{
    const int block = 32, blocks = (keys + block - 1) / block;
    b->f[0] = floats(b, (int64_t)H * D), b->f[1] = floats(b, (int64_t)H * D);
    b->f[2] = floats(b, (int64_t)blocks * block * G * D), b->f[3] = floats(b, (int64_t)blocks * block * G * D);
    b->i[0] = ints(b, 1, 0), b->i[1] = ints(b, 2, keys - 1), b->i[2] = ints(b, blocks, 1);
    b->paged = (struct tpo_paged_shape){1, H, G, D, H * D, H * D, block, blocks, .1f, b->i[0], b->i[1] + 1, b->i[2]};
    line(b, name, run_paged, 8.0 * keys * G * D, 1e9, "GB/s of keys and values");
}

int main(void)
{
    struct bench b = {0};
    struct tpo_error err = {0};
    if (tpo_stream_open(&b.s, "cuda", 1, &err) != TPO_OK) {
        fprintf(stderr, "bench_cuda: %s\n", err.message);
        return 1;
    }
    product(&b, "matmul f32 3136x1024x1024", 3136, 1024, 1024, 0);
    product(&b, "matmul f32 3136x4096x1024", 3136, 4096, 1024, 0);
    product(&b, "matmul f32 2048x256x256", 2048, 256, 256, 0);
    product(&b, "matmul bf16 weights 512x14336x4096", 512, 14336, 4096, 1);
    product(&b, "matvec bf16 weights 1x14336x4096", 1, 14336, 4096, 2);
    product(&b, "matvec bf16 weights 8x14336x4096", 8, 14336, 4096, 2);
    product(&b, "matvec bf16 weights 1x4096x4096", 1, 4096, 4096, 2);
    attention(&b, "attention ViT 3136 keys", "attention ViT backward", 3136, 16, 16, 64, 0);
    attention(&b, "attention Mistral 1024 causal", "attention Mistral backward", 1024, 32, 8, 128, 1);
    paged(&b, "paged decode 4096 keys", 4096, 32, 8, 128);
    b.M = 3136, b.N = 1024, b.n = 3136 * 4096;
    b.f[0] = floats(&b, b.n), b.f[1] = floats(&b, b.n), b.f[2] = floats(&b, b.N), b.f[3] = floats(&b, b.N);
    line(&b, "layernorm 3136x1024", run_layernorm, 8.0 * b.M * b.N, 1e9, "GB/s");
    b.f[0] = floats(&b, b.n), b.f[1] = floats(&b, b.n);
    line(&b, "gelu 3136x4096", run_gelu, 8.0 * (double)b.n, 1e9, "GB/s");
    b.n = 50000000;
    for (int k = 0; k < 7; k++) b.f[k] = floats(&b, b.n);
    line(&b, "adamw 50,000,000", run_adamw, 28.0 * (double)b.n, 1e9, "GB/s");
    b.M = 1024, b.N = 4096;
    for (int k = 0; k < 5; k++) b.f[k] = floats(&b, (int64_t)b.M * b.N);
    b.f[5] = floats(&b, tpo_muon_scratch(b.M, b.N));
    line(&b, "muon 1024x4096", run_muon, 2.0 * 1024 * 1024 * (2.0 * 4096 + 14 * 1024), 1e12, "TFLOP/s");
    tpo_stream_close(b.s);
    return 0;
}
