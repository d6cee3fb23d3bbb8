/* This file owns one training step. */
#include "trainer/steps/step.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int tpo_step_begin(struct tpo_team_of_learners *t, const struct tpo_recipe *r, int stage, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &r->stages[stage];
    const bool region = tpo_recipe_loss(s, "region") > 0;
    t->runs[TPO_PART_ENCODER] = true;
    t->runs[TPO_PART_REGION] = region;
    t->runs[TPO_PART_ROUTER] = region || tpo_recipe_loss(s, "language") > 0 || tpo_recipe_loss(s, "slot") > 0 || tpo_recipe_loss(s, "attention") > 0;
    snprintf(t->run, sizeof(t->run), "%s/%s", r->name, s->name);
    int owned = 0;
    for (int p = 0; p < TPO_PARTS; p++) {
        struct tpo_begun begun;
        int rc = t->learners[p].begin(t->learners[p].self, t->run, &s->plan, &begun, err);
        if (rc != TPO_OK) return rc;
        t->trainable[p] = begun.trainable;
        t->version = begun.version;
        owned += t->runs[p] ? begun.trainable : 0;
    }
    if (owned == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "recipe", "stage %s trains nothing: no group matches a tensor its losses reach", s->name);
    return TPO_OK;
}

static const struct tpo_named_tensor *output_of(const struct tpo_forwarded *f, const char *name)
{
    for (int i = 0; i < f->n_outputs; i++)
        if (strcmp(f->outputs[i].name, name) == 0) return &f->outputs[i];
    return NULL;
}

static bool losses_add(struct tpo_step_report *out, const struct tpo_forwarded *f)
{
    bool finite = true;
    for (int i = 0; i < f->n_losses; i++) {
        int k = 0;
        while (k < out->n_losses && strcmp(out->losses[k].name, f->losses[i].name) != 0) k++;
        if (k == TPO_LOSSES_MAX) continue;
        if (k == out->n_losses) {
            out->n_losses++;
            out->losses[k].value = 0;
            out->losses[k].n = 0;
        }
        /* A reply's names live until Commit; the report outlives it, so it points at the constant names. */
        static const char *const names[] = {"dense", "language", "slot", "attention", "region"};
        for (size_t j = 0; j < sizeof(names) / sizeof(names[0]); j++)
            if (strcmp(names[j], f->losses[i].name) == 0) out->losses[k].name = names[j];
        out->losses[k].value += f->losses[i].value;
        out->losses[k].n++;
        if (!isfinite(f->losses[i].value)) finite = false;
    }
    return finite;
}

/* The target box of every row of e.region: the row's sample and conversation, and how many region rows of that conversation came before. */
static float *boxes_match(const struct tpo_team_of_learners *t, const struct tpo_forwarded *f, const struct tpo_world_batch *b, int n,
                          struct tpo_error *err)
{
    float *boxes = malloc(sizeof(float) * 4 * (size_t)(n > 0 ? n : 1));
    int at = 0, order = 0, sample = -1, conversation = -1;
    if (boxes == NULL) {
        tpo_fail(err, TPO_ENOMEM, "memory", "no memory for target boxes");
        return NULL;
    }
    for (int i = 0; i < f->n_rows && at < n; i++) {
        const struct tpo_row *row = &f->rows[i];
        if (strcmp(t->config->tasks[row->task].name, "region") != 0) continue;
        order = row->sample == sample && row->conversation == conversation ? order + 1 : 0;
        sample = row->sample;
        conversation = row->conversation;
        const struct tpo_conversation *c = &b->samples[sample].conversations[conversation];
        if (order >= c->n_boxes) break;
        memcpy(boxes + 4 * at++, c->boxes[order], 4 * sizeof(float));
    }
    if (at == n) return boxes;
    tpo_fail(err, TPO_INVALID_ARGUMENT, "boxes", "sample %d, conversation %d: %d task tokens, fewer target boxes", sample, conversation, n);
    free(boxes);
    return NULL;
}

static int timed_forward(struct tpo_learner *l, struct tpo_step_report *out, const struct tpo_key *key, const struct tpo_sample *samples, int n,
                         const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants, struct tpo_forwarded *f,
                         struct tpo_error *err)
{
    const double begun_s = tpo_now_s();
    const int rc = l->forward(l->self, key, samples, n, inputs, n_inputs, wants, n_wants, f, err);
    out->timing.seconds[TPO_PHASE_FORWARD] += tpo_now_s() - begun_s;
    return rc;
}

static int timed_backward(struct tpo_learner *l, struct tpo_step_report *out, const struct tpo_key *key, const struct tpo_named_tensor *gradients,
                          int n, struct tpo_named_tensor *answers, int *n_answers, struct tpo_error *err)
{
    const double begun_s = tpo_now_s();
    const int rc = l->backward(l->self, key, gradients, n, answers, n_answers, err);
    out->timing.seconds[TPO_PHASE_BACKWARD] += tpo_now_s() - begun_s;
    return rc;
}

/* Region forward and backward for one micro-batch; *gradient is that of e. */
static int region_pass(struct tpo_team_of_learners *t, const struct tpo_key *key, const struct tpo_world_batch *b, const struct tpo_forwarded *router,
                       struct tpo_named_tensor *gradient, int *n_gradients, struct tpo_step_report *out, bool *finite, struct tpo_error *err)
{
    const struct tpo_named_tensor *e = output_of(router, "e.region");
    struct tpo_learner *l = &t->learners[TPO_PART_REGION];
    struct tpo_forwarded f = {0};
    *n_gradients = 0;
    if (e == NULL || e->shape[0] == 0) return TPO_OK;
    float *boxes = boxes_match(t, router, b, (int)e->shape[0], err);
    if (boxes == NULL) return err != NULL && err->code != TPO_OK ? err->code : TPO_ENOMEM;
    const struct tpo_named_tensor inputs[2] = {*e, {.name = "boxes", .dtype = TPO_F32, .n_dims = 2, .shape = {e->shape[0], 4}, .data = boxes}};
    static const char *const wants[] = {"e.region"};
    int rc = timed_forward(l, out, key, b->samples, b->n, inputs, 2, wants, 1, &f, err);
    free(boxes);
    if (rc != TPO_OK) return rc;
    out->boxes += (int)e->shape[0];
    *finite = losses_add(out, &f) && *finite;
    struct tpo_named_tensor gradients[TPO_PORTS_MAX];
    rc = timed_backward(l, out, key, NULL, 0, gradients, n_gradients, err);
    if (rc == TPO_OK && *n_gradients > 0) *gradient = gradients[0];
    return rc;
}

/* Forward and backward of one micro-batch through everything that runs. */
static int micro_batch_run(struct tpo_team_of_learners *t, const struct tpo_key *key, const struct tpo_world_batch *b, struct tpo_step_report *out,
                           bool *finite, struct tpo_error *err)
{
    struct tpo_learner *encoder = &t->learners[TPO_PART_ENCODER], *router = &t->learners[TPO_PART_ROUTER];
    static const char *const wants[] = {"visual"};
    struct tpo_forwarded seen = {0}, said = {0};
    struct tpo_named_tensor gradients[TPO_PORTS_MAX], ignored[TPO_PORTS_MAX], of_e;
    int n_gradients = 0, n_ignored = 0, n_e = 0;
    int rc = timed_forward(encoder, out, key, b->samples, b->n, NULL, 0, NULL, 0, &seen, err);
    if (rc != TPO_OK) return rc;
    *finite = losses_add(out, &seen) && *finite;
    if (t->runs[TPO_PART_ROUTER]) {
        const struct tpo_named_tensor *visual = output_of(&seen, "visual");
        if (visual == NULL) return tpo_fail(err, TPO_INTERNAL, "visual", "the encoder answered no visual tokens");
        rc = timed_forward(router, out, key, b->samples, b->n, visual, 1, wants, t->trainable[TPO_PART_ENCODER] > 0, &said, err);
        if (rc != TPO_OK) return rc;
        *finite = losses_add(out, &said) && *finite;
        if (t->runs[TPO_PART_REGION]) rc = region_pass(t, key, b, &said, &of_e, &n_e, out, finite, err);
        if (rc == TPO_OK && (t->trainable[TPO_PART_ROUTER] > 0 || t->trainable[TPO_PART_ENCODER] > 0))
            rc = timed_backward(router, out, key, &of_e, n_e, gradients, &n_gradients, err);
    }
    if (rc == TPO_OK && t->trainable[TPO_PART_ENCODER] > 0)
        rc = timed_backward(encoder, out, key, gradients, n_gradients, ignored, &n_ignored, err);
    out->samples += b->n;
    return rc;
}

struct named_square {
    const char *name;
    double squared;
};

static int square_by_name(const void *a, const void *b)
{
    return strcmp(((const struct named_square *)a)->name, ((const struct named_square *)b)->name);
}

/* Root of the sum, in name order over all parts, of the clipped groups' squared norms; *finite covers the other groups too. */
static int norm_of_all(struct tpo_team_of_learners *t, const struct tpo_recipe_stage *s, const struct tpo_key *key, double *norm, double *norms_of, bool *finite,
                       struct tpo_error *err)
{
    struct named_square *all = NULL;
    int total = 0, rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) {
        const struct tpo_norm *norms = NULL;
        int n = 0;
        rc = t->learners[p].norms(t->learners[p].self, key, &norms, &n, err);
        if (rc != TPO_OK) break;
        struct named_square *grown = realloc(all, sizeof(*all) * (size_t)(total + n + 1));
        if (grown == NULL) {
            rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for norms");
            break;
        }
        all = grown;
        for (int i = 0; i < n; i++) {
            if (!isfinite(norms[i].squared)) *finite = false;
            if (!s->groups[norms[i].group].clipped) continue;
            all[total++] = (struct named_square){norms[i].name, norms[i].squared};
            norms_of[p] += norms[i].squared;
        }
        norms_of[p] = sqrt(norms_of[p]);
    }
    double sum = 0;
    if (rc == TPO_OK) {
        qsort(all, (size_t)total, sizeof(*all), square_by_name);
        for (int i = 0; i < total; i++) sum += all[i].squared;
    }
    free(all);
    *norm = sqrt(sum);
    return rc;
}

static int abort_all(struct tpo_team_of_learners *t, const struct tpo_key *key)
{
    int rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS; p++) {
        int one = t->learners[p].abort(t->learners[p].self, key, NULL);
        if (rc == TPO_OK) rc = one;
    }
    return rc;
}

static int update_all(struct tpo_team_of_learners *t, const struct tpo_recipe_stage *s, const struct tpo_key *key, struct tpo_step_report *out,
                      struct tpo_error *err)
{
    float *rates = out->rates;
    int rc = TPO_OK;
    const double begun_s = tpo_now_s();
    out->rate = tpo_recipe_rate(s, (int)key->step);
    out->clip = s->clip > 0 && out->norm > s->clip ? (float)(s->clip / out->norm) : 1;
    for (int g = 0; g < s->plan.n_groups; g++) rates[g] = s->rates[g] * out->rate;
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) rc = t->learners[p].prepare(t->learners[p].self, key, out->clip, rates, s->plan.n_groups, err);
    if (rc != TPO_OK) {
        abort_all(t, key);
        return rc;
    }
    const double prepared_s = tpo_now_s();
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++) rc = t->learners[p].commit(t->learners[p].self, key, err);
    if (rc == TPO_OK) t->version++;
    out->timing.seconds[TPO_PHASE_PREPARE] += prepared_s - begun_s;
    out->timing.seconds[TPO_PHASE_COMMIT] += tpo_now_s() - prepared_s;
    return rc;
}

int tpo_step_run(struct tpo_team_of_learners *t, const struct tpo_recipe_stage *s, int step, const struct tpo_world_batch *batches,
                 struct tpo_step_report *out, struct tpo_error *err)
{
    struct tpo_key key = {.step = (uint64_t)step, .version = t->version};
    bool finite = true;
    int rc = TPO_OK;
    memset(out, 0, sizeof(*out));
    snprintf(key.run, sizeof(key.run), "%s", t->run);
    for (int m = 0; m < s->plan.micro_batches && rc == TPO_OK; m++) {
        key.micro_batch = (uint32_t)m;
        rc = micro_batch_run(t, &key, &batches[m], out, &finite, err);
    }
    const double walked_s = tpo_now_s();
    if (rc == TPO_OK) rc = norm_of_all(t, s, &key, &out->norm, out->norms, &finite, err);
    if (rc != TPO_OK) {
        abort_all(t, &key);
        return rc;
    }
    out->timing.seconds[TPO_PHASE_PREPARE] += tpo_now_s() - walked_s;
    for (int i = 0; i < out->n_losses; i++) out->losses[i].value /= out->losses[i].n;
    if (finite) return update_all(t, s, &key, out, err);
    out->aborted = true;
    t->aborted++;
    rc = abort_all(t, &key);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "abort", "a step that was not finite could not be given up");
}
