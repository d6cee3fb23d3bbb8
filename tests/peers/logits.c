/* The router's logits for a peer's test: logits MODEL IDS VISUAL OUT, all files little-endian.
 *
 *   IDS      int32, one sequence; -1 - k stands for row k of VISUAL      VISUAL   f32 (rows, bridge width), or "-"
 *   OUT      f32 (ids, vocabulary)
 * The model's own pass, LoRA unmerged, as training runs it. */
#include <stdio.h>
#include <stdlib.h>

#include "nn/tape.h"
#include "services/router/decoder.h"

static void *file_read(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) return NULL;
    *size = (size_t)ftell(f);
    rewind(f);
    void *bytes = malloc(*size + 1);
    if (bytes != NULL && fread(bytes, 1, *size, f) != *size) *size = 0;
    fclose(f);
    return bytes;
}

static int fail(const char *what)
{
    fprintf(stderr, "logits: %s\n", what);
    return 1;
}

int main(int argc, char **argv)
{
    struct tpo_config config;
    struct tpo_params params = {0};
    struct tpo_decoder decoder;
    struct tpo_stream *s = NULL;
    struct tpo_tape *t = NULL;
    struct tpo_error err = {0};
    size_t ids_bytes = 0, visual_bytes = 0;
    if (argc != 5) return fail("MODEL IDS VISUAL OUT");
    int32_t *ids = file_read(argv[2], &ids_bytes);
    float *rows = argv[3][0] == '-' ? NULL : file_read(argv[3], &visual_bytes);
    const int n = (int)(ids_bytes / sizeof(*ids));
    if (ids == NULL || n == 0) return fail("no ids");
    if (tpo_stream_open(&s, "cpu", 1, &err) != TPO_OK || tpo_config_load(&config, argv[1], &err) != TPO_OK)
        return fail(err.message);
    if (tpo_decoder_declare(&decoder, &params, &config, 0) != TPO_OK) return fail("no memory");
    if (tpo_params_load(&params, s, argv[1], "router", &err) != TPO_OK) return fail(err.message);
    if (tpo_tape_open(&t, s, false) != TPO_OK) return fail("no memory");
    int32_t *visual = calloc((size_t)n, sizeof(*visual)), *positions = calloc((size_t)n, sizeof(*positions));
    for (int i = 0; i < n; i++) {
        visual[i] = ids[i] < 0 ? -1 - ids[i] : -1;
        positions[i] = i;
        if (ids[i] < 0) ids[i] = 0;
    }
    const int C = config.bridge.hidden_size, K = (int)(visual_bytes / sizeof(float)) / C;
    struct tpo_tensor *projected = rows != NULL ? tpo_decoder_project(t, &decoder, tpo_input(t, rows, K, C, false)) : NULL;
    struct tpo_tensor *x = tpo_decoder_splice(t, &decoder, ids, visual, n, projected, NULL);
    const struct tpo_decoder_batch batch = {.B = 1, .T = n, .positions = positions};
    struct tpo_tensor *logits = tpo_decoder_logits(t, &decoder, tpo_decoder_forward(t, &decoder, x, &batch, 0, 0, NULL), 0, 0);
    if (tpo_tape_error(t) != TPO_OK) return fail("the pass failed");
    FILE *out = fopen(argv[4], "wb");
    const size_t all = (size_t)logits->rows * (size_t)logits->cols;
    if (out == NULL || fwrite(logits->data, sizeof(float), all, out) != all || fclose(out) != 0) return fail("cannot write");
    free(positions);
    free(visual);
    free(rows);
    free(ids);
    tpo_tape_close(t);
    tpo_params_free(&params, s);
    tpo_decoder_close(&decoder);
    tpo_stream_close(s);
    return 0;
}
