/* This file owns the end of a direct learner's step: norms, then weights of the next version, taken or given up. */
#include <math.h>
#include <string.h>

#include "services/host/learner_direct.h"

int tpo_direct_norms(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK) return rc;
    if (d->n_live > 0)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "open_tapes", "%s: %d micro-batches await their Backward", d->model->stage,
                        d->n_live);
    if (!d->folded) {
        d->step = key->step;
        if (d->plan.own_lanes < d->plan.lanes && !d->scattered && d->state.n > 0)
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "no_total", "%s: Norms of a share come after Scatter", d->model->stage);
        for (int i = 0; i < d->state.n && rc == TPO_OK; i++) rc = tpo_learner_state_fold(&d->state, &d->state.items[i]);
        if (rc == TPO_OK) rc = tpo_learner_state_norms(&d->state, d->norms);
        if (rc != TPO_OK) return tpo_fail(err, rc, "norms", "%s: the norms failed", d->model->stage);
        d->folded = true;
    }
    *out = d->norms;
    *n = d->state.n;
    return TPO_OK;
}

int tpo_direct_prepare(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK || d->prepared == key->step) return rc;
    if (n_rates != d->plan.n_groups)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "rates", "%d rates for %d groups", n_rates, d->plan.n_groups);
    if (!(clip >= 0 && clip <= 1)) return tpo_fail(err, TPO_INVALID_ARGUMENT, "clip", "a clip factor of %g", (double)clip);
    for (int g = 0; g < n_rates; g++)
        if (!(rates[g] >= 0) || !isfinite(rates[g]))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "rates", "group %d: a rate of %g", g, (double)rates[g]);
    if (!d->folded) return tpo_fail(err, TPO_FAILED_PRECONDITION, "no_norms", "%s: Prepare comes after Norms", d->model->stage);
    rc = tpo_learner_state_prepare(&d->state, &d->plan, clip, rates, (int64_t)d->version + 1);
    if (rc != TPO_OK) return tpo_fail(err, rc, "prepare", "%s: the optimiser's step failed", d->model->stage);
    d->prepared = key->step;
    return TPO_OK;
}

int tpo_direct_commit(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    if (d->begun && d->committed == key->step && key->step != 0 && strcmp(key->run, d->run) == 0) return TPO_OK;
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK) return rc;
    if (d->prepared != key->step)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "not_prepared", "%s: Commit comes after Prepare", d->model->stage);
    tpo_learner_state_commit(&d->state);
    d->version++;
    d->committed = key->step;
    rc = tpo_direct_step_close(d);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "commit", "%s: the device failed", d->model->stage);
}

int tpo_direct_abort(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    struct tpo_key open = *key;
    if (open.step == 0) open.step = d->step != 0 ? d->step : d->committed + 1;
    int rc = tpo_direct_key_check(d, &open, err);
    if (rc == TPO_OK && d->step != 0 && tpo_direct_step_close(d) != TPO_OK)
        rc = tpo_fail(err, TPO_INTERNAL, "abort", "%s: the device failed", d->model->stage);
    return rc;
}
