/* This file owns the region head: two linear layers, the box they mean, and its loss. */
#include "services/region/region.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* docs/model.md, Region head: 2 mean|p - g| + 1/5 mean(1 - GIoU). */
#define L1_WEIGHT   2.0F
#define GIOU_WEIGHT 0.2F

struct layers {
    struct tpo_param *w0, *b0, *w1, *b1;
};

struct tpo_region {
    struct tpo_stream *stream;
    int width;
    struct tpo_params params;
    struct layers layers;
    struct tpo_tape *tape; /* serving's */
    struct tpo_model model;
};

static struct layers layers_declare(struct tpo_params *p, const struct tpo_config *c)
{
    const int D = c->llm.hidden_size, H = c->region_hidden_size;
    return (struct layers){
        .w0 = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(H, D), "loc_decoder.0.weight")),
        .b0 = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(H), "loc_decoder.0.bias"),
        .w1 = tpo_params_declare(p, TPO_INIT_NORMAL, 0.01F, TPO_SHAPE(4, H), "loc_decoder.2.weight"),
        .b1 = tpo_params_declare(p, TPO_INIT_BOX, 0.12F, TPO_SHAPE(4), "loc_decoder.2.bias")};
}

void tpo_region_schema(struct tpo_params *p, const struct tpo_config *c)
{
    layers_declare(p, c);
}

static struct tpo_tensor *head(const struct tpo_region *r, struct tpo_tape *t, struct tpo_tensor *e)
{
    return tpo_linear(t, tpo_act_relu(t, tpo_linear(t, e, r->layers.w0, r->layers.b0)), r->layers.w1, r->layers.b1);
}

static int region_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct tpo_region *r = self;
    struct tpo_tensor *e = tpo_forward_input(f, "e.region"), *target = tpo_forward_input(f, "boxes");
    if (e == NULL) return TPO_OK; /* no box in this micro-batch: the loss is absent */
    if (e->cols != r->width)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "e_width", "e.region has %d columns, the head takes %d", e->cols, r->width);
    struct tpo_tensor *boxes = head(r, t, e);
    if (boxes != NULL) tpo_forward_output(f, "boxes", boxes);
    const bool wanted = f->wants_loss != NULL && f->wants_loss(f->plan, "region");
    if (boxes != NULL && wanted) {
        if (target == NULL || target->rows != e->rows || target->cols != 4)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "boxes_shape", "%d rows of e.region need as many target boxes", e->rows);
        float *goal = tpo_arena_alloc(tpo_tape_arena(t), 4 * (size_t)target->rows * sizeof(*goal));
        const int rc = goal != NULL ? tpo_read(t, goal, target) : TPO_ENOMEM;
        struct tpo_tensor *loss = tpo_tape_check(t, rc) ? tpo_loss_box(t, boxes, goal, L1_WEIGHT, GIOU_WEIGHT) : NULL;
        if (loss != NULL) tpo_forward_loss(f, "region", loss);
    }
    if (tpo_tape_error(t) == TPO_OK) return TPO_OK;
    return tpo_fail(err, tpo_tape_error(t), "region_forward", "%s", tpo_status_sentence(tpo_tape_error(t)));
}

int tpo_region_open(struct tpo_region **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder, uint64_t seed,
                    struct tpo_error *err)
{
    struct tpo_region *r = calloc(1, sizeof(*r));
    *out = r;
    if (r == NULL) return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for a region head");
    r->stream = s;
    r->width = c->llm.hidden_size;
    r->layers = layers_declare(&r->params, c);
    r->model = (struct tpo_model){.stage = "region", .self = r, .params = &r->params, .forward = region_forward};
    int code = tpo_tape_open(&r->tape, s, false);
    if (code != TPO_OK)
        tpo_fail(err, code, "no_memory", "no memory for a region head");
    else
        r->params.keep_half = c->keep_bf16;
    if (code == TPO_OK)
        code = folder != NULL ? tpo_params_load(&r->params, s, folder, "region", err) : tpo_params_random(&r->params, s, seed, err);
    if (code == TPO_OK) return TPO_OK;
    tpo_region_close(r);
    *out = NULL;
    return code;
}

void tpo_region_close(struct tpo_region *r)
{
    if (r == NULL) return;
    tpo_tape_close(r->tape);
    tpo_params_free(&r->params, r->stream);
    free(r);
}

struct tpo_model *tpo_region_model(struct tpo_region *r)
{
    return &r->model;
}

/* A number the head cannot have meant (NaN) becomes the edge. */
static float clamp01(float x)
{
    return x > 0 ? (x < 1 ? x : 1) : 0;
}

static void box_settle(float *box)
{
    for (int k = 0; k < 4; k++) box[k] = clamp01(box[k]);
    for (int k = 0; k < 2; k++) {
        const float low = fminf(box[k], box[k + 2]), high = fmaxf(box[k], box[k + 2]);
        box[k] = low;
        box[k + 2] = high;
    }
}

int tpo_region_run(struct tpo_region *r, float *boxes, const float *e, int n, struct tpo_error *err)
{
    if (n < 1) return tpo_fail(err, TPO_INVALID_ARGUMENT, "no_rows", "%d task embeddings", n);
    tpo_tape_reset(r->tape, false);
    int code = tpo_read(r->tape, boxes, head(r, r->tape, tpo_input(r->tape, e, n, r->width, false)));
    if (code != TPO_OK) return tpo_fail(err, code, "region", "the region head's pass failed: %s", tpo_status_sentence(code));
    for (int i = 0; i < n; i++) box_settle(boxes + 4 * (size_t)i);
    return TPO_OK;
}
