/* The router at the published size (Mistral 7B with its LoRA) on the CUDA device: `make bench B=cuda_router`, on a machine with a GPU of 24 GB or
 * more.
 *
 * Weights are random bf16, made in the device's memory; they pass through the code that serves (services/router/batch.h: paged keys, one pass for the
 * rows of all sequences). Prints a prompt's rate and, for 1, 8 and 16 sequences with some hundred tokens behind them, tokens/s and the weights read
 * per second. tests/peers/cuda_router_torch.py does the same with transformers on the same GPU. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "kernels/vector.h"
#include "services/router/batch.h"
#include "tests/bench/check.h"

#define PROMPT   512
#define STEPS    64
#define SEQS     TPO_MATVEC_ROWS
#define PATTERN  ((int64_t)1 << 22) /* floats of one random block, which all tensors repeat */
#define KV_BYTES ((size_t)4 << 30)

/* Fills a tensor from the pattern, scaled so that what runs through 32 layers stays finite. Product weights become bf16. */
static double fill(struct tpo_stream *s, struct tpo_param *p, const float *pattern, float *scaled)
{
    const float scale = p->n_dims > 1 ? 1.0f / sqrtf((float)(p->size / p->shape[0])) : 0.0f;
    const size_t width = p->product ? sizeof(uint16_t) : sizeof(float);
    char *to = tpo_device_alloc(s, (size_t)p->size * width);
    if (to == NULL) check(TPO_ENOMEM, p->name);
    check(tpo_scale(s, scaled, scale, pattern, PATTERN), "scale");
    for (int64_t at = 0, n; at < p->size; at += n) {
        n = p->size - at < PATTERN ? p->size - at : PATTERN;
        void *place = to + (size_t)at * width;
        if (p->init == TPO_INIT_ONE)
            check(tpo_fill(s, place, 1, n), "fill");
        else
            check(p->product ? tpo_f32_to_bf16(s, place, scaled, n) : tpo_scale(s, place, 1, scaled, n), p->name);
    }
    if (p->product)
        p->half = (uint16_t *)to;
    else
        p->data = (float *)to;
    return p->product && strstr(p->name, "embed_tokens") == NULL ? (double)p->size * 2 : 0; /* a row is read of that table */
}

static void run(struct tpo_batch *b, const struct tpo_decoder *d, struct tpo_batch_row *rows, int n, bool prompt)
{
    const float *hidden;
    for (int i = 0; i < n; i++) {
        rows[i].table = tpo_param_weight(d->embed_tokens);
        rows[i].table_rows = (int)d->embed_tokens->shape[0];
        rows[i].index = (rows[i].position * 31 + rows[i].seq) % 32000;
    }
    check(tpo_batch_run(b, rows, n, prompt, &hidden), "pass");
}

int main(void)
{
    static struct tpo_batch_row rows[PROMPT];
    static float host[PATTERN];
    static const int counts[] = {1, 8, 16};
    struct tpo_config c;
    struct tpo_params params = {.keep_half = true};
    struct tpo_decoder d = {0};
    struct tpo_kv kv;
    struct tpo_batch *b = NULL;
    struct tpo_stream *s = NULL;
    struct tpo_error err = {0};
    if (tpo_stream_open(&s, "cuda", 1, &err) != TPO_OK) {
        fprintf(stderr, "bench_cuda_router: %s\n", err.message);
        return 1;
    }
    tpo_config_default(&c);
    c.llm.lora_dropout = 0;
    check(tpo_decoder_declare(&d, &params, &c, 0), "tensors");
    for (int64_t i = 0; i < PATTERN; i++) host[i] = tpo_random_normal(1, (uint64_t)i);
    float *pattern = tpo_device_alloc(s, sizeof(host)), *scaled = tpo_device_alloc(s, sizeof(host));
    if (pattern == NULL || scaled == NULL) check(TPO_ENOMEM, "memory");
    check(tpo_copy_in(s, pattern, host, sizeof(host)), "copy");
    double bytes = 0;
    for (int i = 0; i < params.n; i++)
        if (!params.items[i]->ignored) bytes += fill(s, params.items[i], pattern, scaled);
    if (tpo_kv_open(&kv, s, &c, KV_BYTES, SEQS, &err) != TPO_OK || tpo_batch_open(&b, s, &d, &kv, PROMPT, false, &err) != TPO_OK)
        check(err.code, err.message);
    for (int q = 0; q < SEQS; q++) check(tpo_kv_take(&kv, q, PROMPT + 3 * STEPS, &err), "keys and values");
    double prompt_s = 0;
    for (int q = 0; q < SEQS; q++) {
        for (int i = 0; i < PROMPT; i++) rows[i] = (struct tpo_batch_row){.seq = q, .position = i};
        check(tpo_stream_wait(s), "wait");
        const double begun = tpo_now_s();
        run(b, &d, rows, PROMPT, true);
        check(tpo_stream_wait(s), "wait");
        if (q == 0 || tpo_now_s() - begun < prompt_s) prompt_s = tpo_now_s() - begun;
    }
    printf("weights %.2f GB; prompt of %d: %.1f ms, %.0f tokens/s\n", bytes * 1e-9, PROMPT, prompt_s * 1e3, PROMPT / prompt_s);
    float *logits = malloc(sizeof(*logits) * SEQS * (size_t)c.llm.vocab_size);
    if (logits == NULL) check(TPO_ENOMEM, "memory");
    for (int k = 0; k < 3; k++) {
        int32_t wanted[SEQS];
        const double begun = tpo_now_s();
        for (int step = 0; step < STEPS; step++) {
            for (int q = 0; q < counts[k]; q++) {
                rows[q] = (struct tpo_batch_row){.seq = q, .position = PROMPT + k * STEPS + step};
                wanted[q] = q;
            }
            run(b, &d, rows, counts[k], false);
            check(tpo_batch_logits(b, wanted, counts[k], logits), "logits");
        }
        const double took = tpo_now_s() - begun;
        printf("%2d sequences: %.2f ms a pass, %.1f tokens/s, %.0f GB/s of weights; logit 0 is %g\n", counts[k], took / STEPS * 1e3,
               counts[k] * STEPS / took, bytes * STEPS / took * 1e-9, (double)logits[0]);
    }
    free(logits);
    return 0;
}
