/* This file owns one training step. */
#include "trainer/steps/step.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "services/host/fault.h"
#include "trainer/steps/collective.h"

struct step {
    struct tpo_crew *crew;
    const struct tpo_recipe_stage *stage;
    struct tpo_key key;
    struct tpo_step_report *out;
    bool finite;
    /* what Norms answered; the learner's until its next call */
    const struct tpo_norm *norms[TPO_PARTS][TPO_REPLICAS_MAX];
    int n_norms[TPO_PARTS][TPO_REPLICAS_MAX];
};

/* --- what the micro-batches told ------------------------------------------------------------------------------------------------------ */

static void loss_add(struct tpo_step_report *out, const char *name, double value)
{
    int k = 0;
    while (k < out->n_losses && out->losses[k].name != name) k++;
    if (k == TPO_LOSSES_MAX) return;
    if (k == out->n_losses) {
        out->n_losses++;
        out->losses[k].name = name;
        out->losses[k].value = 0;
        out->losses[k].n = 0;
    }
    out->losses[k].value += value;
    out->losses[k].n++;
}

/* Without memory the step's times are not told: it is committed by now. */
static void spans_add(struct step *s, const struct tpo_pass *passes, double begun_s, double ended_s)
{
    const int M = s->stage->plan.micro_batches;
    struct tpo_span *all = malloc(sizeof(*all) * 2 * TPO_PARTS * (size_t)M);
    int n = 0;
    if (all == NULL) return;
    for (int m = 0; m < M; m++)
        for (int i = 0; i < passes[m].n_spans; i++) all[n++] = passes[m].spans[i];
    tpo_timing_add(&s->out->timing, s->crew, all, n, begun_s, ended_s);
    free(all);
}

/* In order of the micro-batches, so that sums don't depend on who was first. */
static void passes_add(struct step *s, const struct tpo_pass *passes)
{
    struct tpo_step_report *out = s->out;
    for (int m = 0; m < s->stage->plan.micro_batches; m++) {
        for (int i = 0; i < passes[m].n_losses; i++) loss_add(out, passes[m].losses[i].name, passes[m].losses[i].value);
        out->samples += passes[m].samples;
        out->boxes += passes[m].boxes;
        out->timing.seconds[TPO_PHASE_FORWARD] += passes[m].forward_s;
        out->timing.seconds[TPO_PHASE_BACKWARD] += passes[m].backward_s;
        s->finite = s->finite && passes[m].finite;
    }
    for (int i = 0; i < out->n_losses; i++) out->losses[i].value /= out->losses[i].n;
}

static int totals_wait(struct step *s, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int p = 0; p < TPO_PARTS; p++) {
        if (!tpo_lanes_gathers(s->crew, p)) continue;
        struct tpo_collective *c = s->crew->collective;
        if (rc == TPO_OK)
            rc = c->finish(c, s->crew, p, &s->key, err);
        else
            c->drop(c, s->crew, p);
    }
    return rc;
}

/* --- norms --------------------------------------------------------------------------------------------------------------------------- */

static int norms_ask(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct step *s = arg;
    struct tpo_learner *l = &t->replicas[part][replica].learner;
    return l->norms(l->self, &s->key, &s->norms[part][replica], &s->n_norms[part][replica], err);
}

static bool norms_equal(const struct step *s, int part, int replica)
{
    const struct tpo_norm *a = s->norms[part][0], *b = s->norms[part][replica];
    bool equal = s->n_norms[part][0] == s->n_norms[part][replica];
    for (int i = 0; i < s->n_norms[part][0] && equal; i++)
        equal = strcmp(a[i].name, b[i].name) == 0 && a[i].group == b[i].group &&
                memcmp(&a[i].squared, &b[i].squared, sizeof(double)) == 0;
    return equal;
}

struct named_square {
    const char *name;
    double squared;
};

static int square_by_name(const void *a, const void *b)
{
    return strcmp(((const struct named_square *)a)->name, ((const struct named_square *)b)->name);
}

/* Root of the sum in name order. */
static double root_of(struct named_square *all, int n)
{
    double sum = 0;
    qsort(all, (size_t)n, sizeof(*all), square_by_name);
    for (int i = 0; i < n; i++) sum += all[i].squared;
    return sqrt(sum);
}

/* What counts for clipping is the norm of the groups that are clipped; of each service all that it learns is told. Whether anything is not finite is
 * seen in every group. */
static int norms_add(struct step *s, struct tpo_error *err)
{
    int total = 0, n = 0;
    for (int p = 0; p < TPO_PARTS; p++) total += s->n_norms[p][0];
    struct named_square *all = malloc(sizeof(*all) * 2 * (size_t)(total + 1)), *own = all + total;
    if (all == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for norms");
    for (int p = 0; p < TPO_PARTS; p++) {
        for (int i = 0; i < s->n_norms[p][0]; i++) {
            const struct tpo_norm *x = &s->norms[p][0][i];
            if (!isfinite(x->squared)) s->finite = false;
            own[i] = (struct named_square){x->name, x->squared};
            if (x->group >= 0 && x->group < s->stage->plan.n_groups && s->stage->groups[x->group].clipped)
                all[n++] = (struct named_square){x->name, x->squared};
        }
        s->out->norms[p] = root_of(own, s->n_norms[p][0]);
    }
    s->out->norm = root_of(all, n);
    free(all);
    return TPO_OK;
}

static int norms_run(struct step *s, struct tpo_error *err)
{
    int rc = tpo_crew_each(s->crew, norms_ask, s, err);
    for (int p = 0; p < TPO_PARTS && rc == TPO_OK; p++)
        for (int r = 1; r < s->crew->options.n_replicas[p] && rc == TPO_OK; r++)
            if (!norms_equal(s, p, r))
                rc = tpo_fail(err, TPO_INTERNAL, "replicas", "step %llu: replicas 0 and %d of %s hold different gradients",
                              (unsigned long long)s->key.step, r, tpo_part_names[p]);
    return rc == TPO_OK ? norms_add(s, err) : rc;
}

/* --- two phases ---------------------------------------------------------------------------------------------------------------------- */

static int prepare_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct step *s = arg;
    struct tpo_learner *l = &t->replicas[part][replica].learner;
    int rc = l->prepare(l->self, &s->key, s->out->clip, s->out->rates, s->stage->plan.n_groups, err);
    if (rc == TPO_OK) tpo_fault_reach(TPO_FAULT_MID_PREPARE);
    return rc;
}

static int commit_one(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct step *s = arg;
    struct tpo_learner *l = &t->replicas[part][replica].learner;
    int rc = l->commit(l->self, &s->key, err);
    if (rc == TPO_OK) tpo_fault_reach(TPO_FAULT_MID_COMMIT);
    return rc;
}

int tpo_step_give_up(struct tpo_crew *t, struct tpo_error *err)
{
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) t->replicas[p][r].begun.version = t->version;
    return tpo_crew_abort(t, err);
}

static int update(struct step *s, struct tpo_error *err)
{
    struct tpo_step_report *out = s->out;
    const double begun_s = tpo_now_s();
    out->clip = s->stage->clip > 0 && out->norm > s->stage->clip ? (float)(s->stage->clip / out->norm) : 1;
    int rc = tpo_crew_each(s->crew, prepare_one, s, err);
    const double prepared_s = tpo_now_s();
    out->timing.seconds[TPO_PHASE_PREPARE] += prepared_s - begun_s;
    if (rc != TPO_OK) {
        tpo_step_give_up(s->crew, NULL);
        return rc;
    }
    tpo_fault_reach(TPO_FAULT_AFTER_PREPARE);
    rc = tpo_crew_each(s->crew, commit_one, s, err);
    out->timing.seconds[TPO_PHASE_COMMIT] += tpo_now_s() - prepared_s;
    s->crew->torn = rc != TPO_OK;
    if (rc != TPO_OK) return rc;
    s->crew->version++;
    tpo_fault_reach(TPO_FAULT_AFTER_COMMIT);
    return TPO_OK;
}

static int step_run(struct step *s, const struct tpo_world_batch *batches, struct tpo_pass *passes, struct tpo_error *err)
{
    const double begun_s = tpo_now_s();
    int rc = tpo_lanes_run(s->crew, s->stage, &s->key, batches, passes, err);
    if (rc != TPO_OK) return rc;
    tpo_fault_reach(TPO_FAULT_AFTER_BACKWARD);
    passes_add(s, passes);
    const double passed_s = tpo_now_s();
    rc = totals_wait(s, err);
    const double gathered_s = tpo_now_s();
    s->out->timing.seconds[TPO_PHASE_GATHER] += gathered_s - passed_s;
    if (rc == TPO_OK) rc = norms_run(s, err);
    s->out->timing.seconds[TPO_PHASE_PREPARE] += tpo_now_s() - gathered_s;
    if (rc != TPO_OK) {
        tpo_step_give_up(s->crew, NULL);
        return rc;
    }
    tpo_fault_reach(TPO_FAULT_AFTER_NORMS);
    if (s->finite) {
        rc = update(s, err);
    } else {
        s->out->aborted = true;
        s->crew->aborted++;
        rc = tpo_step_give_up(s->crew, err);
    }
    if (rc != TPO_OK) return rc;
    spans_add(s, passes, begun_s, tpo_now_s());
    return TPO_OK;
}

int tpo_step_run(struct tpo_crew *t, const struct tpo_recipe_stage *stage, int step, const struct tpo_world_batch *batches,
                 struct tpo_step_report *out, struct tpo_error *err)
{
    struct step s = {.crew = t, .stage = stage, .key = {.step = (uint64_t)step, .version = t->version}, .out = out, .finite = true};
    memset(out, 0, sizeof(*out));
    t->torn = false;
    out->rate = tpo_recipe_rate(stage, step);
    for (int g = 0; g < stage->plan.n_groups; g++) out->rates[g] = stage->rates[g] * out->rate;
    memcpy(s.key.run, t->run, sizeof(s.key.run));
    struct tpo_pass *passes = calloc((size_t)stage->plan.micro_batches, sizeof(*passes));
    if (passes == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a step");
    int rc = step_run(&s, batches, passes, err);
    free(passes);
    return rc;
}
