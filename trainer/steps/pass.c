/* This file owns the pass of one micro-batch. */
#include "trainer/steps/pass.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

/* What all steps of a pass need. */
struct pass {
    const struct tpo_crew *crew;
    struct tpo_learner *learners;
    const struct tpo_key *key;
    const struct tpo_world_batch *batch;
    const struct tpo_pass_order *order;
    struct tpo_pass *out;
    struct tpo_error *err;
};

static const struct tpo_named_tensor *output_of(const struct tpo_forwarded *f, const char *name)
{
    for (int i = 0; i < f->n_outputs; i++)
        if (strcmp(f->outputs[i].name, name) == 0) return &f->outputs[i];
    return NULL;
}

/* A reply's names live until the next call of its kind (learner.h); a pass outlives it, so it points at constant ones. */
static const char *loss_name(const char *name)
{
    static const char *const names[] = {"dense", "language", "slot", "attention", "region"};
    for (size_t j = 0; j < sizeof(names) / sizeof(names[0]); j++)
        if (strcmp(names[j], name) == 0) return names[j];
    return NULL;
}

static void losses_add(struct tpo_pass *out, const struct tpo_forwarded *f)
{
    for (int i = 0; i < f->n_losses; i++) {
        const char *name = loss_name(f->losses[i].name);
        if (!isfinite(f->losses[i].value)) out->finite = false;
        if (name == NULL || out->n_losses == TPO_LOSSES_MAX) continue;
        out->losses[out->n_losses].name = name;
        out->losses[out->n_losses++].value = f->losses[i].value;
    }
}

/* --- calls, timed -------------------------------------------------------------------------------------------------------------------- */

static double span_add(struct pass *p, int part, double begun_s)
{
    const struct tpo_learner *l = &p->learners[part];
    const double ended_s = tpo_now_s();
    double run_s = l->run_ms != NULL ? l->run_ms(l->self) / 1000 : ended_s - begun_s;
    if (run_s > ended_s - begun_s) run_s = ended_s - begun_s;
    p->out->spans[p->out->n_spans++] = (struct tpo_span){part, ended_s - run_s, ended_s};
    return ended_s - begun_s;
}

static int forward(struct pass *p, int part, const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants,
                   int n_wants, struct tpo_forwarded *out)
{
    struct tpo_learner *l = &p->learners[part];
    const double begun_s = tpo_now_s();
    int rc = l->forward(l->self, p->key, p->batch->samples, p->batch->n, inputs, n_inputs, wants, n_wants, out, p->err);
    if (rc != TPO_OK) return rc;
    p->out->forward_s += span_add(p, part, begun_s);
    losses_add(p->out, out);
    return TPO_OK;
}

/* In its turn; `skip`: this service has nothing to do, and only its turn is waited for. */
static int backward(struct pass *p, int part, bool skip, const struct tpo_named_tensor *gradients, int n_gradients,
                    struct tpo_named_tensor *out, int *n_out)
{
    struct tpo_learner *l = &p->learners[part];
    const int m = (int)p->key->micro_batch;
    int rc = p->order->backward_wait(p->order->arg, part, m, skip);
    *n_out = 0;
    if (rc == TPO_OK && !skip) {
        const double begun_s = tpo_now_s();
        rc = l->backward(l->self, p->key, gradients, n_gradients, out, n_out, p->err);
        if (rc == TPO_OK) p->out->backward_s += span_add(p, part, begun_s);
    }
    if (rc == TPO_OK) p->order->backward_end(p->order->arg, part, m);
    return rc;
}

/* --- the region head ----------------------------------------------------------------------------------------------------------------- */

/* The target box of a row of e.region: `order` region rows of its conversation came before. NULL: there is none, as the error tells. */
static const float *target_box(struct pass *p, int sample, int conversation, int order)
{
    const struct tpo_world_batch *b = p->batch;
    if (sample < 0 || sample >= b->n || conversation < 0 || conversation >= b->samples[sample].n_conversations) {
        tpo_fail(p->err, TPO_INTERNAL, "rows", "the router answered a task embedding of sample %d, conversation %d: there is none",
                 sample, conversation);
        return NULL;
    }
    const struct tpo_conversation *c = &b->samples[sample].conversations[conversation];
    if (order < c->n_boxes) return c->boxes[order];
    tpo_fail(p->err, TPO_INVALID_ARGUMENT, "boxes", "sample %d, conversation %d: %d target boxes, but more task tokens of region",
             sample, conversation, c->n_boxes);
    return NULL;
}

/* The target boxes of e.region (n, D), row by row. NULL, with the error told, where the two do not match. */
static float *boxes_match(struct pass *p, const struct tpo_forwarded *f, int n)
{
    const struct tpo_config *config = p->crew->config;
    float *boxes = malloc(sizeof(float) * 4 * (size_t)(n > 0 ? n : 1));
    int at = 0, order = 0, sample = -1, conversation = -1;
    if (boxes == NULL) {
        tpo_fail(p->err, TPO_ENOMEM, "memory", "no memory for target boxes");
        return NULL;
    }
    for (int i = 0; i < f->n_rows && at < n; i++) {
        const struct tpo_row *row = &f->rows[i];
        if (row->task < 0 || row->task >= config->n_tasks || strcmp(config->tasks[row->task].name, "region") != 0) continue;
        order = row->sample == sample && row->conversation == conversation ? order + 1 : 0;
        sample = row->sample;
        conversation = row->conversation;
        const float *box = target_box(p, sample, conversation, order);
        if (box == NULL) goto fail;
        memcpy(boxes + 4 * at++, box, 4 * sizeof(float));
    }
    if (at == n) return boxes;
    tpo_fail(p->err, TPO_INTERNAL, "rows", "the router answered %d task embeddings of region, and the places of %d", n, at);
fail:
    free(boxes);
    return NULL;
}

static int region_forward(struct pass *p, const struct tpo_forwarded *router, const struct tpo_named_tensor *e)
{
    static const char *const wants[] = {"e.region"};
    struct tpo_forwarded f = {0};
    const bool wanted = p->crew->trainable[TPO_PART_ROUTER] > 0 || p->crew->trainable[TPO_PART_ENCODER] > 0;
    const int n = (int)e->shape[0];
    float *boxes = boxes_match(p, router, n);
    if (boxes == NULL) return p->err->code;
    const struct tpo_named_tensor inputs[2] = {*e,
                                               {.name = "boxes", .dtype = TPO_F32, .n_dims = 2, .shape = {n, 4}, .data = boxes}};
    int rc = forward(p, TPO_PART_REGION, inputs, 2, wants, wanted, &f);
    free(boxes);
    p->out->boxes += n;
    return rc;
}

/* --- the whole pass ------------------------------------------------------------------------------------------------------------------ */

static int router_forward(struct pass *p, const struct tpo_forwarded *encoder_out, struct tpo_forwarded *router_out)
{
    static const char *const wants[] = {"visual"};
    const struct tpo_named_tensor *visual = output_of(encoder_out, "visual");
    if (visual == NULL) return tpo_fail(p->err, TPO_INTERNAL, "visual", "the encoder answered no visual tokens");
    return forward(p, TPO_PART_ROUTER, visual, 1, wants, p->crew->trainable[TPO_PART_ENCODER] > 0, router_out);
}

int tpo_pass_run(const struct tpo_crew *t, struct tpo_learner *learners, const struct tpo_key *key, const struct tpo_world_batch *b,
                 const struct tpo_pass_order *order, struct tpo_pass *out, struct tpo_error *err)
{
    struct pass p = {t, learners, key, b, order, out, err};
    struct tpo_forwarded encoder_out = {0}, router_out = {0};
    struct tpo_named_tensor grad_e[TPO_PORTS_MAX], grad_visual[TPO_PORTS_MAX], ignored[TPO_PORTS_MAX];
    const bool encoder_learns = t->trainable[TPO_PART_ENCODER] > 0, router_runs = t->runs[TPO_PART_ROUTER];
    int n_e = 0, n_visual = 0, n_ignored = 0;
    *out = (struct tpo_pass){.finite = true, .samples = b->n};
    int rc = forward(&p, TPO_PART_ENCODER, NULL, 0, NULL, 0, &encoder_out);
    if (rc == TPO_OK && router_runs) rc = router_forward(&p, &encoder_out, &router_out);
    const struct tpo_named_tensor *e = rc == TPO_OK && t->runs[TPO_PART_REGION] ? output_of(&router_out, "e.region") : NULL;
    const bool boxes = e != NULL && e->shape[0] > 0;
    if (rc == TPO_OK && boxes) rc = region_forward(&p, &router_out, e);
    if (rc != TPO_OK) return rc;
    order->forward_end(order->arg);
    rc = backward(&p, TPO_PART_REGION, !boxes, NULL, 0, grad_e, &n_e);
    if (rc == TPO_OK)
        rc = backward(&p, TPO_PART_ROUTER, !router_runs || (t->trainable[TPO_PART_ROUTER] == 0 && !encoder_learns), grad_e, n_e,
                      grad_visual, &n_visual);
    if (rc == TPO_OK) rc = backward(&p, TPO_PART_ENCODER, !encoder_learns, grad_visual, n_visual, ignored, &n_ignored);
    return rc;
}
