/* This file owns the direct learner: the protocol of docs/mesh.md, Learner, over a model of this process. The arithmetic is
 * learner_state.c's, the plan learner_plan.c's, the end of a step learner_step.c's, what comes and goes in pieces learner_chunks.c's.
 *
 *   begun --Forward/Backward (m = 0..M-1)--> open step --Norms--> folded --Prepare--> prepared --Commit--> begun, version + 1
 *                                                \------------- Abort, from any of them -------------/ */
#include "services/host/learner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "kernels/vector.h"
#include "nn/budget.h"
#include "services/host/learner_direct.h"

static const char *text_copy(struct tpo_arena *a, const char *text)
{
    return tpo_arena_copy(a, text, strlen(text));
}

/* --- runs and steps ---------------------------------------------------------------------------------------------------------------- */

static void tape_return(struct tpo_direct *d, struct tpo_micro *p)
{
    if (p->tape == NULL) return;
    if (tpo_tape_error(p->tape) == TPO_ENOMEM)
        tpo_tape_close(p->tape); /* what it holds is too much for the next one, too */
    else
        d->idle[d->n_idle++] = p->tape;
    d->n_live--;
    p->tape = NULL;
}

int tpo_direct_step_close(struct tpo_direct *d)
{
    for (int m = 0; m < d->plan.micro_batches && d->passes != NULL; m++) {
        tape_return(d, &d->passes[m]);
        memset(&d->passes[m], 0, sizeof(d->passes[m]));
    }
    memset(d->lane_next, 0, sizeof(d->lane_next));
    tpo_arena_reset(&d->step_arena);
    d->step = d->prepared = 0;
    d->folded = d->scattered = false;
    d->sum_sink = NULL;
    d->n_done = d->n_skipped = 0;
    return tpo_learner_state_clear(&d->state);
}

static int run_end(struct tpo_direct *d)
{
    int rc = TPO_OK;
    if (!d->begun) return TPO_OK;
    tpo_direct_step_close(d);
    for (int i = 0; i < d->state.n && rc == TPO_OK; i++) {
        struct tpo_trainable *x = &d->state.items[i];
        int at = 0;
        while (d->model->params->items[at] != x->param) at++;
        struct tpo_kept *k = &d->kept[at];
        if (k->copy == NULL && (k->copy = tpo_device_alloc(d->stream, sizeof(float) * (size_t)x->param->size)) == NULL)
            return TPO_ENOMEM;
        rc = tpo_scale(d->stream, k->copy, 1.0f, x->weight[d->state.now], x->param->size);
        x->param->data = k->copy;
    }
    if (rc != TPO_OK) return rc;
    tpo_learner_state_free(&d->state);
    free(d->passes);
    free(d->norms);
    d->passes = NULL;
    d->norms = NULL;
    d->begun = false;
    return TPO_OK;
}

/* Counted from the first of this share. */
static int lane_of(const struct tpo_direct *d, uint32_t micro_batch)
{
    return (int)((uint64_t)micro_batch * (uint64_t)d->plan.lanes / (uint64_t)d->plan.micro_batches) - d->plan.first_lane;
}

/* The run that is in progress, with the same lanes for this replica. */
static bool is_begun(const struct tpo_direct *d, const char *run, const struct tpo_plan *plan)
{
    const int own = plan->own_lanes > 0 ? plan->own_lanes : plan->lanes;
    return d->begun && strcmp(run, d->run) == 0 && d->plan.first_lane == plan->first_lane && d->plan.own_lanes == own;
}

static int direct_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    int rc = tpo_plan_check(plan, err);
    if (rc != TPO_OK) return rc;
    if (strlen(run) >= sizeof(d->run))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "run", "the run's name is longer than %zu", sizeof(d->run) - 1);
    if (!is_begun(d, run, plan)) {
        rc = run_end(d);
        tpo_direct_replaced(d);
        if (rc == TPO_OK) rc = tpo_plan_copy(&d->plan, &d->plan_arena, plan);
        if (rc != TPO_OK) return tpo_fail(err, rc, "begin", "no memory for run %s", run);
        rc = tpo_learner_state_open(&d->state, d->stream, d->model->params, &d->plan, err);
        if (rc != TPO_OK) return rc;
        d->begun = true;
        d->version = d->step = d->prepared = d->committed = 0;
        snprintf(d->run, sizeof(d->run), "%s", run);
        for (int m = d->n_own = 0; m < d->plan.micro_batches; m++)
            d->n_own += lane_of(d, (uint32_t)m) >= 0 && lane_of(d, (uint32_t)m) < d->plan.own_lanes;
        d->passes = calloc((size_t)d->plan.micro_batches, sizeof(*d->passes));
        d->norms = calloc((size_t)d->state.n + 1, sizeof(*d->norms));
        if (d->passes == NULL || d->norms == NULL) {
            run_end(d);
            return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for run %s", run);
        }
        rc = tpo_direct_step_close(d);
    }
    *out = (struct tpo_begun){.version = d->version,
                              .prepared_step = d->prepared,
                              .committed_step = d->committed,
                              .tapes = TPO_DIRECT_TAPES,
                              .trainable = d->state.n};
    snprintf(out->instance, sizeof(out->instance), "%s", d->instance);
    snprintf(out->device, sizeof(out->device), "%s", tpo_stream_device_name(d->stream));
    return rc;
}

static int run_check(const struct tpo_direct *d, const char *run, const uint64_t *version, struct tpo_error *err)
{
    if (!d->begun || strcmp(run, d->run) != 0)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_run", "%s: run \"%.40s\" is not in progress", d->model->stage, run);
    if (version != NULL && *version != d->version)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_version", "%s holds version %llu, asked for %llu", d->model->stage,
                        (unsigned long long)d->version, (unsigned long long)*version);
    return TPO_OK;
}

static int direct_check(void *self, const char *run, const uint64_t *version, struct tpo_error *err)
{
    return run_check(self, run, version, err);
}

int tpo_direct_key_check(const struct tpo_direct *d, const struct tpo_key *key, struct tpo_error *err)
{
    const int rc = run_check(d, key->run, &key->version, err);
    if (rc != TPO_OK) return rc;
    if (key->step == 0 || key->step <= d->committed || (d->step != 0 && key->step != d->step))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_step", "%s is at step %llu, asked for %llu", d->model->stage,
                        (unsigned long long)(d->step != 0 ? d->step : d->committed), (unsigned long long)key->step);
    return TPO_OK;
}

/* tpo_direct_key_check for calls about one micro-batch; *out is its pass. */
static int pass_find(struct tpo_direct *d, const struct tpo_key *key, struct tpo_micro **out, struct tpo_error *err)
{
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK) return rc;
    if (key->micro_batch >= (uint32_t)d->plan.micro_batches)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "micro_batch", "micro-batch %u of %d", key->micro_batch, d->plan.micro_batches);
    if (lane_of(d, key->micro_batch) < 0 || lane_of(d, key->micro_batch) >= d->plan.own_lanes)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "share", "micro-batch %u is another replica's", key->micro_batch);
    *out = &d->passes[key->micro_batch];
    if ((*out)->state != TPO_MICRO_DONE && d->folded)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_step", "step %llu is already folded", (unsigned long long)key->step);
    return TPO_OK;
}

/* --- forward ----------------------------------------------------------------------------------------------------------------------- */

static bool wants_loss(void *plan, const char *name)
{
    return tpo_plan_loss_weight(plan, name) != 0;
}

static int tape_take(struct tpo_direct *d, bool record, struct tpo_tape **out, struct tpo_error *err)
{
    if (d->n_live == TPO_DIRECT_TAPES)
        return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "tapes", "%d tapes await their Backward", TPO_DIRECT_TAPES);
    int rc = TPO_OK;
    if (d->n_idle > 0) {
        *out = d->idle[--d->n_idle];
        tpo_tape_reset(*out, record);
    } else {
        rc = tpo_tape_open(out, d->stream, record);
    }
    if (rc != TPO_OK) return tpo_fail(err, rc, "memory", "no memory for a tape");
    d->n_live++;
    return TPO_OK;
}

static bool named(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

static int inputs_place(struct tpo_micro *p, const struct tpo_named_tensor *inputs, int n, struct tpo_arena *arena,
                        struct tpo_error *err)
{
    if (n > TPO_PORTS_MAX) return tpo_fail(err, TPO_INVALID_ARGUMENT, "inputs", "%d inputs, at most %d", n, TPO_PORTS_MAX);
    for (int i = 0; i < n; i++) {
        const struct tpo_named_tensor *x = &inputs[i];
        int64_t rows = 1;
        for (int k = 0; k + 1 < x->n_dims; k++) rows *= x->shape[k];
        if (x->dtype != TPO_F32 || x->n_dims < 1 || rows < 1 || x->shape[x->n_dims - 1] < 1)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "input", "%.64s: a non-empty F32 matrix is needed", x->name);
        const char *name = text_copy(arena, x->name);
        if (name == NULL) return TPO_ENOMEM;
        p->f.inputs[i] = (struct tpo_port){
            name, tpo_input(p->tape, x->data, (int)rows, (int)x->shape[x->n_dims - 1], named(p->wants, p->n_wants, name))};
    }
    p->f.n_inputs = n;
    return TPO_OK;
}

static int tensor_reply(struct tpo_direct *d, struct tpo_tape *t, struct tpo_named_tensor *out, const char *name, const float *data,
                        int rows, int cols)
{
    float *host = tpo_arena_alloc(&d->step_arena, sizeof(float) * (size_t)rows * (size_t)cols);
    if (host == NULL) return TPO_ENOMEM;
    *out = (struct tpo_named_tensor){
        .name = text_copy(&d->step_arena, name), .dtype = TPO_F32, .n_dims = 2, .shape = {rows, cols}, .data = host};
    if (out->name == NULL) return TPO_ENOMEM;
    if (data == NULL) {
        memset(host, 0, sizeof(float) * (size_t)rows * (size_t)cols);
        return TPO_OK;
    }
    return tpo_copy_out(tpo_tape_stream(t), host, data, sizeof(float) * (size_t)rows * (size_t)cols);
}

static int forward_reply(struct tpo_direct *d, struct tpo_micro *p)
{
    struct tpo_forwarded *r = &p->reply;
    int rc = TPO_OK;
    for (int i = 0; i < p->f.n_outputs && rc == TPO_OK; i++) {
        const struct tpo_tensor *x = p->f.outputs[i].tensor;
        rc = tensor_reply(d, p->tape, &r->outputs[r->n_outputs++], p->f.outputs[i].name, x->data, x->rows, x->cols);
    }
    for (int i = 0; i < p->f.n_losses && rc == TPO_OK; i++) {
        r->losses[r->n_losses].name = text_copy(&d->step_arena, p->f.losses[i].name);
        r->losses[r->n_losses++].value = tpo_value(p->tape, p->f.losses[i].tensor);
    }
    if (rc == TPO_OK && p->f.n_rows > 0) {
        r->rows = (const struct tpo_row *)tpo_arena_copy(&d->step_arena, p->f.rows, sizeof(*r->rows) * (size_t)p->f.n_rows);
        if (r->rows == NULL) return TPO_ENOMEM;
        r->n_rows = p->f.n_rows;
    }
    return rc;
}

static int does_not_fit(const struct tpo_direct *d, int n_samples, struct tpo_error *err)
{
    return tpo_fail(
        err, TPO_RESOURCE_EXHAUSTED, "batch_size",
        "%s: memory does not hold what a micro-batch of %d samples takes; on a CPU all that are under way may have %zu MiB",
        d->model->stage, n_samples, tpo_budget_most() >> 20);
}

static int pass_forward(struct tpo_direct *d, struct tpo_micro *p, const struct tpo_key *key, const struct tpo_sample *samples,
                        int n_samples, const struct tpo_named_tensor *inputs, int n_inputs, struct tpo_error *err)
{
    const bool record = d->state.n > 0 || p->n_wants > 0;
    int rc = tape_take(d, record, &p->tape, err);
    if (rc != TPO_OK) return rc;
    p->f = (struct tpo_forward){.samples = samples,
                                .n_samples = n_samples,
                                .wants_loss = wants_loss,
                                .plan = &d->plan,
                                .training = d->state.n > 0,
                                .noise = tpo_random_u64(d->plan.seed, (key->step << 16) + key->micro_batch)};
    rc = inputs_place(p, inputs, n_inputs, &d->step_arena, err);
    tpo_learner_state_lane(&d->state, lane_of(d, key->micro_batch));
    if (rc == TPO_OK) rc = d->model->forward(d->model->self, p->tape, &p->f, err);
    tpo_learner_state_lane(&d->state, -1);
    if (tpo_tape_error(p->tape) == TPO_ENOMEM) rc = does_not_fit(d, n_samples, err);
    if (rc == TPO_OK) rc = tpo_tape_error(p->tape);
    if (rc == TPO_OK) rc = forward_reply(d, p);
    if (rc == TPO_OK) {
        p->state = TPO_MICRO_FORWARDED;
        if (record) return TPO_OK;
    } else if (err != NULL && err->code == TPO_OK) {
        tpo_fail(err, rc, "forward", "%s: the forward pass failed", d->model->stage);
    }
    tape_return(d, p);
    return rc;
}

static int direct_forward(void *self, const struct tpo_key *key, const struct tpo_sample *samples, int n_samples,
                          const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants,
                          struct tpo_forwarded *out, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    struct tpo_micro *p = NULL;
    int rc = pass_find(d, key, &p, err);
    if (rc != TPO_OK) return rc;
    if (p->state == TPO_MICRO_EMPTY) {
        if (n_wants > TPO_PORTS_MAX)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "wants", "%d wants, at most %d", n_wants, TPO_PORTS_MAX);
        d->step = key->step;
        memset(p, 0, sizeof(*p));
        for (int i = 0; i < n_wants; i++)
            if ((p->wants[p->n_wants++] = text_copy(&d->step_arena, wants[i])) == NULL)
                return tpo_fail(err, TPO_ENOMEM, "memory", "no memory");
        rc = pass_forward(d, p, key, samples, n_samples, inputs, n_inputs, err);
        if (rc != TPO_OK) {
            memset(p, 0, sizeof(*p));
            return rc;
        }
    }
    *out = p->reply;
    return TPO_OK;
}

/* --- backward ---------------------------------------------------------------------------------------------------------------------- */

static struct tpo_tensor *output_find(const struct tpo_micro *p, const char *name)
{
    for (int i = 0; i < p->f.n_outputs; i++)
        if (strcmp(p->f.outputs[i].name, name) == 0) return p->f.outputs[i].tensor;
    return NULL;
}

/* A seed adds to what is there: nothing is placed before all can be, so that a call that was refused can be made again. */
static int seeds_check(const struct tpo_micro *p, const struct tpo_named_tensor *gradients, int n, struct tpo_error *err)
{
    for (int i = 0; i < n; i++) {
        const struct tpo_named_tensor *g = &gradients[i];
        const struct tpo_tensor *x = output_find(p, g->name);
        if (x == NULL || g->dtype != TPO_F32 || g->n_dims != 2 || g->shape[0] != x->rows || g->shape[1] != x->cols)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "gradient", "%.64s is no output of that shape", g->name);
        for (int k = 0; k < i; k++)
            if (strcmp(gradients[k].name, g->name) == 0)
                return tpo_fail(err, TPO_INVALID_ARGUMENT, "gradient", "%.64s has two gradients", g->name);
    }
    return TPO_OK;
}

static int seeds_place(struct tpo_direct *d, struct tpo_micro *p, const struct tpo_named_tensor *gradients, int n,
                       struct tpo_error *err)
{
    const int rc = seeds_check(p, gradients, n, err);
    if (rc != TPO_OK) return rc;
    for (int i = 0; i < n; i++) tpo_seed(p->tape, output_find(p, gradients[i].name), gradients[i].data, 1);
    for (int i = 0; i < p->f.n_losses; i++)
        tpo_seed(p->tape, p->f.losses[i].tensor, NULL,
                 tpo_plan_loss_weight(&d->plan, p->f.losses[i].name) / (float)d->plan.micro_batches);
    return TPO_OK;
}

static int pass_backward(struct tpo_direct *d, struct tpo_micro *p, const struct tpo_named_tensor *gradients, int n,
                         struct tpo_error *err)
{
    int rc = seeds_place(d, p, gradients, n, err);
    if (rc != TPO_OK) return rc;
    rc = tpo_tape_backward(p->tape);
    for (int i = 0; i < p->f.n_inputs && rc == TPO_OK; i++) {
        const struct tpo_tensor *x = p->f.inputs[i].tensor;
        if (named(p->wants, p->n_wants, p->f.inputs[i].name))
            rc = tensor_reply(d, p->tape, &p->gradients[p->n_gradients++], p->f.inputs[i].name, x->grad, x->rows, x->cols);
    }
    if (rc != TPO_OK) tpo_fail(err, rc, "backward", "%s: the backward pass failed", d->model->stage);
    return rc;
}

static int direct_backward(void *self, const struct tpo_key *key, const struct tpo_named_tensor *gradients, int n_gradients,
                           struct tpo_named_tensor *inputs_out, int *n_inputs_out, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    struct tpo_micro *p = NULL;
    int rc = pass_find(d, key, &p, err);
    if (rc != TPO_OK) return rc;
    if (p->state == TPO_MICRO_EMPTY)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "no_forward", "micro-batch %u has had no Forward", key->micro_batch);
    if (p->state == TPO_MICRO_FORWARDED && p->tape != NULL) {
        const int lane = lane_of(d, key->micro_batch);
        if ((int)key->micro_batch < d->lane_next[lane])
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "order", "micro-batch %u comes after %d in its lane", key->micro_batch,
                            d->lane_next[lane] - 1);
        tpo_learner_state_lane(&d->state, lane);
        if (d->sum_sink != NULL && d->n_done + d->n_skipped + 1 == d->n_own)
            tpo_tape_on_complete(p->tape, tpo_direct_on_gradient, d);
        rc = pass_backward(d, p, gradients, n_gradients, err);
        tpo_learner_state_lane(&d->state, -1);
        if (rc != TPO_OK) return rc;
        d->lane_next[lane] = (int)key->micro_batch + 1;
        tape_return(d, p);
    }
    if (p->state != TPO_MICRO_DONE && ++d->n_done + d->n_skipped == d->n_own) tpo_direct_sums_finish(d);
    p->state = TPO_MICRO_DONE;
    memcpy(inputs_out, p->gradients, sizeof(*inputs_out) * (size_t)p->n_gradients);
    *n_inputs_out = p->n_gradients;
    return TPO_OK;
}

/* --- the run ------------------------------------------------------------------------------------------------------------------------------- */

static int direct_publish(void *self, const struct tpo_key *key, uint64_t version, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    (void)key, (void)version;
    return tpo_fail(err, TPO_UNIMPLEMENTED, "publish", "%s is trained in this process, which serves nothing", d->model->stage);
}

static int direct_end(void *self, struct tpo_error *err)
{
    int rc = run_end(self);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "end", "no memory to keep the trained weights");
}

static void direct_close(void *self)
{
    struct tpo_direct *d = self;
    if (d == NULL) return;
    if (d->begun) tpo_direct_step_close(d);
    for (int i = 0; i < d->state.n; i++) d->state.items[i].param->data = NULL;
    for (int i = 0; i < d->model->params->n && d->kept != NULL; i++) {
        d->model->params->items[i]->data = d->kept[i].loaded;
        tpo_device_free(d->stream, d->kept[i].copy);
    }
    if (d->begun) tpo_learner_state_free(&d->state);
    for (int i = 0; i < d->n_idle; i++) tpo_tape_close(d->idle[i]);
    tpo_arena_free(&d->plan_arena);
    tpo_arena_free(&d->step_arena);
    free(d->passes);
    free(d->norms);
    free(d->kept);
    free(d->exported);
    free(d);
}

/* Equal nowhere else: containers that started within one second may all have process 1. */
static void instance_make(struct tpo_direct *d)
{
    static unsigned count;
    uint64_t chance = 0;
    (void)!getrandom(&chance, sizeof(chance), 0);
    snprintf(d->instance, sizeof(d->instance), "%ld-%lld-%u-%08x", (long)getpid(), (long long)time(NULL),
             __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED), (unsigned)chance);
}

int tpo_learner_open_direct(struct tpo_learner *out, struct tpo_model *model, struct tpo_stream *s, struct tpo_error *err)
{
    struct tpo_direct *d = calloc(1, sizeof(*d));
    if (d == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a learner");
    d->model = model;
    d->stream = s;
    tpo_arena_init(&d->plan_arena, 4096, 0);
    tpo_arena_init(&d->step_arena, (size_t)1 << 20, 0);
    instance_make(d);
    d->kept = calloc((size_t)model->params->n + 1, sizeof(*d->kept));
    if (d->kept == NULL) {
        free(d);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a learner");
    }
    for (int i = 0; i < model->params->n; i++) d->kept[i].loaded = model->params->items[i]->data;
    *out = (struct tpo_learner){.service = model->stage,
                                .self = d,
                                .begin = direct_begin,
                                .check = direct_check,
                                .forward = direct_forward,
                                .backward = direct_backward,
                                .gather = tpo_direct_gather,
                                .scatter = tpo_direct_scatter,
                                .norms = tpo_direct_norms,
                                .prepare = tpo_direct_prepare,
                                .commit = tpo_direct_commit,
                                .abort = tpo_direct_abort,
                                .export_state = tpo_direct_export,
                                .import_state = tpo_direct_import,
                                .holds = tpo_direct_holds,
                                .publish = direct_publish,
                                .end = direct_end,
                                .close = direct_close};
    return TPO_OK;
}
