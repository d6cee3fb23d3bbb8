/* This file owns the encoder: the ViT and the Q-Former as one model, its serving pass, its training pass with the dense aid. */
#include "services/encoder/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/resize.h"
#include "kernels/vector.h"
#include "services/encoder/qformer.h"
#include "services/encoder/vit.h"

/* The dense aid: one head of CLASSES logits per attribute of the object that covers a patch, and its box. */
#define ATTRIBUTES TPO_DENSE_ATTRIBUTES
#define CLASSES    TPO_DENSE_CLASSES
#define BOX_WEIGHT 10.0F

struct tpo_encoder {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_params params;
    struct tpo_vit vit;
    struct tpo_qformer qformer;
    struct tpo_param *dense_w, *dense_b, *box_w, *box_b; /* NULL without dense */
    struct tpo_tape *tape;                               /* serving's */
    struct tpo_model model;
};

static int parts_declare(struct tpo_encoder *e, struct tpo_params *p, const struct tpo_config *c, int dense)
{
    const int C = c->vision_encoder.encoder_embed_dim;
    if (tpo_vit_declare(&e->vit, p, c) != TPO_OK || tpo_qformer_declare(&e->qformer, p, c) != TPO_OK) return TPO_ENOMEM;
    if (!dense) return TPO_OK;
    e->dense_w =
        tpo_params_declare(p, TPO_INIT_NORMAL, 0.02F, TPO_SHAPE(ATTRIBUTES * CLASSES, C), "ext.encoder.dense.attributes.weight");
    e->dense_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(ATTRIBUTES * CLASSES), "ext.encoder.dense.attributes.bias");
    e->box_w = tpo_params_declare(p, TPO_INIT_NORMAL, 0.01F, TPO_SHAPE(4, C), "ext.encoder.dense.box.weight");
    e->box_b = tpo_params_declare(p, TPO_INIT_BOX, 0.12F, TPO_SHAPE(4), "ext.encoder.dense.box.bias");
    return e->box_b != NULL ? TPO_OK : TPO_ENOMEM;
}

static void parts_close(struct tpo_encoder *e)
{
    tpo_vit_close(&e->vit);
    tpo_qformer_close(&e->qformer);
}

void tpo_encoder_schema(struct tpo_params *p, const struct tpo_config *c, int dense)
{
    struct tpo_encoder e;
    memset(&e, 0, sizeof(e));
    parts_declare(&e, p, c, dense);
    parts_close(&e);
}

static int encoder_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err);

int tpo_encoder_open(struct tpo_encoder **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder, int dense,
                     uint64_t seed, struct tpo_error *err)
{
    struct tpo_encoder *e = calloc(1, sizeof(*e));
    *out = e;
    if (e == NULL) return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for an encoder");
    e->stream = s;
    e->config = *c;
    e->model = (struct tpo_model){.stage = "encoder", .self = e, .params = &e->params, .forward = encoder_forward};
    if (parts_declare(e, &e->params, &e->config, dense) != TPO_OK || tpo_tape_open(&e->tape, s, false) != TPO_OK) {
        tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for the encoder's tensors");
        goto fail;
    }
    e->params.keep_half = e->config.keep_bf16;
    const int code =
        folder != NULL ? tpo_params_load(&e->params, s, folder, "encoder", err) : tpo_params_random(&e->params, s, seed, err);
    if (code == TPO_OK) return TPO_OK;
    tpo_encoder_close(e);
    *out = NULL;
    return code;

fail:
    tpo_encoder_close(e);
    *out = NULL;
    return TPO_ENOMEM;
}

void tpo_encoder_close(struct tpo_encoder *e)
{
    if (e == NULL) return;
    tpo_tape_close(e->tape);
    parts_close(e);
    tpo_params_free(&e->params, e->stream);
    free(e);
}

struct tpo_model *tpo_encoder_model(struct tpo_encoder *e)
{
    return &e->model;
}

int tpo_encoder_takes(const struct tpo_config *c, int T, struct tpo_error *err)
{
    const int most = c->vision_encoder.num_frames, tubelet = c->vision_encoder.tubelet_size;
    if (T > 0 && T % tubelet != 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "frame_count", "%d frames; this model takes them by %d", T, tubelet);
    if (T == 1 || T == most || (c->vision_encoder.ext_position && T > 0 && T < most)) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "frame_count", "a clip of %d frames; this model takes 1%s %d", T,
                    c->vision_encoder.ext_position ? " to" : " or", most);
}

/* (B, T, 3, H, W) f32 on the device from B clips of (T, H, W, 3) u8 on the host. */
static float *pixels_in(struct tpo_encoder *e, struct tpo_tape *t, const uint8_t *const *clips, int B, int T)
{
    const int side = e->config.vision_encoder.img_size;
    const int64_t frame = (int64_t)3 * side * side;
    float *normal = tpo_tape_floats(t, (int64_t)B * T * frame), *bytes = tpo_tape_floats(t, (frame * T + 3) / 4);
    if (normal == NULL || bytes == NULL) return NULL;
    for (int b = 0; b < B; b++) {
        if (tpo_copy_in(e->stream, bytes, clips[b], (size_t)(frame * T)) != TPO_OK) return NULL;
        for (int k = 0; k < T; k++)
            if (tpo_normalise(e->stream, normal + ((int64_t)b * T + k) * frame, (const uint8_t *)bytes + k * frame,
                              e->config.image_mean, e->config.image_std, side, side) != TPO_OK)
                return NULL;
    }
    return normal;
}

/* What a pass over a clip of T frames holds at a time: the pixels three times over, what lasts, and the largest block of the ViT. */
static int64_t floats_of(const struct tpo_config *c, int T)
{
    const int64_t C = c->vision_encoder.encoder_embed_dim, side = c->vision_encoder.img_size;
    const int64_t rows = (int64_t)(T / c->vision_encoder.tubelet_size) * tpo_config_patches(c);
    const int64_t wide = (int64_t)((float)C * c->vision_encoder.mlp_ratio) + 1;
    return 9 * T * side * side + rows * (16 * C + 2 * wide) + (1 << 20);
}

int tpo_encoder_run(struct tpo_encoder *e, float *visual, const uint8_t *pixels, int T, struct tpo_error *err)
{
    int code = tpo_encoder_takes(&e->config, T, err);
    if (code != TPO_OK) return code;
    struct tpo_tape *t = e->tape;
    tpo_tape_reset(t, false);
    tpo_tape_room(t, floats_of(&e->config, T));
    const float *normal = pixels_in(e, t, &pixels, 1, T);
    struct tpo_tensor *tokens =
        normal != NULL ? tpo_vit_norm(t, &e->vit, tpo_vit_forward(t, &e->vit, tpo_vit_patches(t, &e->vit, normal, 1, T, false), 1))
                       : NULL;
    const struct tpo_qformer_input in = {.visual = tokens, .B = 1, .N = tokens != NULL ? tokens->rows : 0};
    struct tpo_tensor *rows = tokens != NULL ? tpo_qformer_forward(t, &e->qformer, &in) : NULL;
    code = rows != NULL ? tpo_read(t, visual, rows) : tpo_tape_error(t);
    if (code == TPO_OK && rows != NULL) return TPO_OK;
    code = code != TPO_OK ? code : TPO_ENOMEM;
    return tpo_fail(err, code, "encode", "the encoder's pass failed: %s", tpo_status_sentence(code));
}

/* --- training ----------------------------------------------------------------------------------------------------------------- */

static const struct tpo_named_tensor *target_find(const struct tpo_sample *s, const char *name, enum tpo_dtype dtype)
{
    for (int i = 0; i < s->n_targets; i++)
        if (strcmp(s->targets[i].name, name) == 0 && s->targets[i].dtype == dtype && s->targets[i].n_dims == 2)
            return &s->targets[i];
    return NULL;
}

/* Labels and boxes of a run of samples, side by side with their patch rows. */
struct dense_targets {
    int32_t *labels;   /* (rows, ATTRIBUTES) */
    float *boxes;      /* (rows, 4) */
    float *box_weight; /* (rows) */
    int n_labels[ATTRIBUTES], n_boxes;
};

static void dense_row(struct dense_targets *d, int64_t row, const int32_t *labels, int n_labels, const float *box)
{
    bool covered = false;
    for (int a = 0; a < ATTRIBUTES; a++) {
        const int32_t label = a < n_labels ? labels[a] : -100;
        d->labels[row * ATTRIBUTES + a] = label;
        d->n_labels[a] += label != -100;
        covered = covered || label != -100;
    }
    d->box_weight[row] = covered && box != NULL ? 1 : 0;
    d->n_boxes += covered && box != NULL;
    for (int k = 0; k < 4; k++) d->boxes[row * 4 + k] = d->box_weight[row] > 0 ? box[k] : 0;
}

/* False when a target is missing or misshapen. */
static bool dense_targets_make(struct dense_targets *d, struct tpo_tape *t, const struct tpo_sample *samples, int n, int rows)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    memset(d, 0, sizeof(*d));
    d->labels = tpo_arena_alloc(arena, (size_t)n * (size_t)rows * ATTRIBUTES * sizeof(*d->labels));
    d->boxes = tpo_arena_alloc(arena, (size_t)n * (size_t)rows * 4 * sizeof(*d->boxes));
    d->box_weight = tpo_arena_alloc(arena, (size_t)n * (size_t)rows * sizeof(*d->box_weight));
    if (d->labels == NULL || d->boxes == NULL || d->box_weight == NULL) return false;
    for (int i = 0; i < n; i++) {
        const struct tpo_named_tensor *labels = target_find(&samples[i], "dense.attributes", TPO_I32);
        const struct tpo_named_tensor *boxes = target_find(&samples[i], "dense.boxes", TPO_F32);
        if (labels == NULL || labels->shape[0] != rows || labels->shape[1] < 1 || labels->shape[1] > ATTRIBUTES) return false;
        if (boxes != NULL && (boxes->shape[0] != rows || boxes->shape[1] != 4)) return false;
        for (int r = 0; r < rows; r++) {
            const int32_t *label = (const int32_t *)labels->data + (int64_t)r * labels->shape[1];
            dense_row(d, (int64_t)i * rows + r, label, (int)labels->shape[1],
                      boxes != NULL ? (const float *)boxes->data + (int64_t)r * 4 : NULL);
        }
    }
    return true;
}

/* Sum over attributes of the mean cross entropy over patches that have the label, plus BOX_WEIGHT times the mean L1 of the box.
 * `share` is this run's part of the micro-batch. */
static struct tpo_tensor *dense_loss(struct tpo_encoder *e, struct tpo_tape *t, struct tpo_tensor *tokens,
                                     const struct tpo_sample *samples, int n, float share, struct tpo_error *err)
{
    struct dense_targets d;
    if (!dense_targets_make(&d, t, samples, n, tokens->rows / n)) {
        tpo_fail(err, TPO_INVALID_ARGUMENT, "dense_targets",
                 "a sample lacks dense.attributes (patches, 1..%d) or dense.boxes (patches, 4) for its %d rows", ATTRIBUTES,
                 tokens->rows / n);
        return NULL;
    }
    const int64_t rows = (int64_t)tokens->rows * ATTRIBUTES;
    float *weight = tpo_arena_alloc(tpo_tape_arena(t), (size_t)rows * sizeof(*weight));
    if (weight == NULL) return NULL;
    for (int64_t m = 0; m < rows; m++) weight[m] = d.n_labels[m % ATTRIBUTES] > 0 ? share / (float)d.n_labels[m % ATTRIBUTES] : 0;
    struct tpo_tensor *logits = tpo_reshape(t, tpo_linear(t, tokens, e->dense_w, e->dense_b), (int)rows, CLASSES);
    struct tpo_tensor *loss = tpo_loss_cross_entropy(t, logits, d.labels, weight, 1);
    if (d.n_boxes == 0) return loss;
    return tpo_loss_sum(t, loss,
                        tpo_loss_l1(t, tpo_linear(t, tokens, e->box_w, e->box_b), d.boxes, d.box_weight,
                                    share * BOX_WEIGHT / (4 * (float)d.n_boxes)));
}

struct run_output {
    struct tpo_tensor *visual, *dense;
};

/* Samples of equal frame count, all clips in one pass. */
static int run_forward(struct tpo_encoder *e, struct tpo_tape *t, struct tpo_forward *f, int first, int n, bool dense,
                       struct run_output *out, struct tpo_error *err)
{
    const int side = e->config.vision_encoder.img_size, T = f->samples[first].n_frames;
    const uint8_t **clips = tpo_arena_alloc(tpo_tape_arena(t), (size_t)n * sizeof(*clips));
    if (clips == NULL) return TPO_ENOMEM;
    for (int i = 0; i < n; i++) {
        const struct tpo_sample *s = &f->samples[first + i];
        if (s->pixels == NULL || s->height != side || s->width != side)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "sample_pixels", "sample %d has no pixels of %d x %d", first + i, side,
                            side);
        clips[i] = s->pixels;
    }
    const float *normal = pixels_in(e, t, clips, n, T);
    struct tpo_tensor *tokens =
        normal != NULL ? tpo_vit_norm(t, &e->vit, tpo_vit_forward(t, &e->vit, tpo_vit_patches(t, &e->vit, normal, n, T, false), n))
                       : NULL;
    if (tokens == NULL) return TPO_ENOMEM;
    if (dense) {
        out->dense = dense_loss(e, t, tokens, f->samples + first, n, (float)n / (float)f->n_samples, err);
        if (out->dense == NULL) return TPO_INVALID_ARGUMENT;
    }
    const struct tpo_qformer_input in = {.visual = tokens,
                                         .B = n,
                                         .N = tokens->rows / n,
                                         .dropout = f->training ? e->config.bridge.dropout : 0,
                                         .drop_path = f->training ? e->config.bridge.drop_path_rate : 0,
                                         .noise = tpo_random_u64(f->noise, 1000 + (uint64_t)first)};
    out->visual = tpo_qformer_forward(t, &e->qformer, &in);
    return out->visual != NULL ? TPO_OK : TPO_ENOMEM;
}

static int encoder_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct tpo_encoder *e = self;
    const bool dense = e->dense_w != NULL && f->wants_loss != NULL && f->wants_loss(f->plan, "dense");
    struct run_output all = {NULL, NULL};
    for (int first = 0, n; first < f->n_samples; first += n) {
        int code = tpo_encoder_takes(&e->config, f->samples[first].n_frames, err);
        for (n = 1; first + n < f->n_samples && f->samples[first + n].n_frames == f->samples[first].n_frames;) n++;
        struct run_output run = {NULL, NULL};
        if (code == TPO_OK) code = run_forward(e, t, f, first, n, dense, &run, err);
        if (code != TPO_OK) {
            if (tpo_tape_error(t) != TPO_OK) code = tpo_tape_error(t);
            if (err != NULL && err->code == TPO_OK) tpo_fail(err, code, "encoder_forward", "%s", tpo_status_sentence(code));
            return code;
        }
        all.visual = first == 0 ? run.visual : tpo_concat_rows(t, all.visual, run.visual);
        all.dense = tpo_loss_sum(t, all.dense, run.dense);
    }
    if (all.visual != NULL) tpo_forward_output(f, "visual", all.visual);
    if (all.dense != NULL) tpo_forward_loss(f, "dense", all.dense);
    return tpo_tape_error(t);
}
