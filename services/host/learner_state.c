/* This file owns the memory and the arithmetic of trainable tensors: lanes, norms, the optimiser's step. */
#include "services/host/learner_state.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/optim.h"
#include "kernels/team.h"
#include "kernels/vector.h"

bool tpo_pattern_match(const char *pattern, const char *name)
{
    const char *star = NULL, *retry = NULL;
    while (*name != '\0') {
        if (*pattern == '*') {
            star = ++pattern;
            retry = name;
        } else if (*pattern == *name) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star;
            name = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*') pattern++;
    return *pattern == '\0';
}

int tpo_plan_group(const struct tpo_plan *plan, const char *name)
{
    for (int g = 0; g < plan->n_groups; g++)
        for (int i = 0; i < plan->groups[g].n_patterns; i++)
            if (tpo_pattern_match(plan->groups[g].patterns[i], name)) return g;
    return -1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tpo_trainable *)a)->param->name, ((const struct tpo_trainable *)b)->param->name);
}

/* A kernel of four dimensions is a matrix of [out, the rest]. */
static int matrix_rows(const struct tpo_param *p)
{
    return (int)p->shape[0];
}
static int matrix_columns(const struct tpo_param *p)
{
    return (int)(p->size / p->shape[0]);
}
static int parts_of(const struct tpo_group *g)
{
    return g->split > 1 ? g->split : 1;
}

static int check_muon(const struct tpo_param *p, const struct tpo_group *g, struct tpo_error *err)
{
    if (p->n_dims < 2) return tpo_fail(err, TPO_INVALID_ARGUMENT, "muon_vector", "%s: Muon needs a matrix", p->name);
    if (matrix_rows(p) % parts_of(g) != 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "muon_split", "%s: %d rows are not divisible by split %d", p->name,
                        matrix_rows(p), g->split);
    return TPO_OK;
}

static float *fresh(struct tpo_stream *s, int64_t n)
{
    float *block = tpo_device_alloc(s, sizeof(float) * (size_t)n);
    if (block == NULL || tpo_fill(s, block, 0, n) == TPO_OK) return block;
    tpo_device_free(s, block);
    return NULL;
}

static int open_item(struct tpo_learner_state *s, struct tpo_trainable *x, enum tpo_optimiser optimiser)
{
    const int64_t n = x->param->size;
    for (int i = 0; i < 2; i++) {
        x->weight[i] = fresh(s->stream, n);
        x->m[i] = fresh(s->stream, n);
        x->v[i] = optimiser == TPO_MUON ? NULL : fresh(s->stream, n);
        if (x->weight[i] == NULL || x->m[i] == NULL || (optimiser != TPO_MUON && x->v[i] == NULL)) return TPO_ENOMEM;
    }
    for (int l = 0; l < s->n_lanes; l++)
        if ((x->lanes[l] = fresh(s->stream, n)) == NULL) return TPO_ENOMEM;
    return tpo_param_read(x->param, s->stream, x->weight[0]);
}

static int hands_open(struct tpo_learner_state *s, int64_t scratch, struct tpo_error *err)
{
    const int team = s->stream->team != NULL ? tpo_team_size(s->stream->team) : 1, members = team > TPO_HANDS_MAX ? 1 : team;
    while (s->n_hands < members) {
        struct tpo_stream **hand = &s->hands[s->n_hands];
        if (members == 1)
            *hand = s->stream;
        else if (tpo_stream_open(hand, tpo_stream_device_name(s->stream), 1, err) != TPO_OK)
            return err != NULL ? err->code : TPO_ENOMEM;
        s->n_hands++;
        if (scratch == 0) continue;
        s->scratch[s->n_hands - 1] = tpo_device_alloc(s->stream, sizeof(float) * (size_t)scratch);
        if (s->scratch[s->n_hands - 1] == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the optimiser's scratch");
    }
    return TPO_OK;
}

int tpo_learner_state_check(const struct tpo_params *params, const struct tpo_plan *plan, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = 0; i < params->n && rc == TPO_OK; i++) {
        const struct tpo_param *p = params->items[i];
        const int group = p->ignored ? -1 : tpo_plan_group(plan, p->name);
        if (group >= 0 && plan->groups[group].optimiser == TPO_MUON) rc = check_muon(p, &plan->groups[group], err);
    }
    return rc;
}

int tpo_learner_state_open(struct tpo_learner_state *s, struct tpo_stream *stream, struct tpo_params *params,
                           const struct tpo_plan *plan, struct tpo_error *err)
{
    int64_t scratch = 0;
    int rc = tpo_learner_state_check(params, plan, err);
    *s = (struct tpo_learner_state){.stream = stream, .n_lanes = plan->own_lanes > 0 ? plan->own_lanes : plan->lanes};
    if (rc != TPO_OK) return rc;
    s->items = calloc((size_t)params->n + 1, sizeof(*s->items));
    if (s->items == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of trainable tensors");
    for (int i = 0; i < params->n; i++) {
        struct tpo_param *p = params->items[i];
        const int group = p->ignored ? -1 : tpo_plan_group(plan, p->name);
        if (group < 0) continue;
        if (plan->groups[group].optimiser == TPO_MUON) {
            const int64_t need = tpo_muon_scratch(matrix_rows(p) / parts_of(&plan->groups[group]), matrix_columns(p));
            if (need > scratch) scratch = need;
        }
        s->items[s->n++] = (struct tpo_trainable){.param = p, .group = group};
    }
    qsort(s->items, (size_t)s->n, sizeof(*s->items), by_name);
    rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the optimiser's state");
    for (int i = 0; i < s->n; i++)
        if (open_item(s, &s->items[i], plan->groups[s->items[i].group].optimiser) != TPO_OK) goto fail;
    rc = hands_open(s, scratch, err);
    if (rc != TPO_OK) goto fail;
    for (int i = 0; i < s->n; i++) s->items[i].param->data = s->items[i].weight[0];
    return TPO_OK;
fail:
    tpo_learner_state_free(s);
    return rc;
}

void tpo_learner_state_free(struct tpo_learner_state *s)
{
    for (int i = 0; i < s->n; i++) {
        struct tpo_trainable *x = &s->items[i];
        x->param->grad = NULL;
        for (int j = 0; j < 2; j++) {
            tpo_device_free(s->stream, x->weight[j]);
            tpo_device_free(s->stream, x->m[j]);
            tpo_device_free(s->stream, x->v[j]);
        }
        for (int l = 0; l < s->n_lanes; l++) tpo_device_free(s->stream, x->lanes[l]);
    }
    for (int i = 0; i < s->n_hands; i++) {
        tpo_device_free(s->stream, s->scratch[i]);
        if (s->hands[i] != s->stream) tpo_stream_close(s->hands[i]);
    }
    free(s->items);
    *s = (struct tpo_learner_state){0};
}

int tpo_learner_state_clear(struct tpo_learner_state *s)
{
    int rc = TPO_OK;
    for (int i = 0; i < s->n && rc == TPO_OK; i++) {
        s->items[i].folded = false;
        for (int l = 0; l < s->n_lanes && rc == TPO_OK; l++)
            rc = tpo_fill(s->stream, s->items[i].lanes[l], 0, s->items[i].param->size);
    }
    return rc;
}

void tpo_learner_state_lane(struct tpo_learner_state *s, int lane)
{
    for (int i = 0; i < s->n; i++) s->items[i].param->grad = lane < 0 ? NULL : s->items[i].lanes[lane];
}

int tpo_learner_state_fold(struct tpo_learner_state *s, struct tpo_trainable *x)
{
    int rc = TPO_OK;
    if (x->folded) return TPO_OK;
    for (int stride = 1; stride < s->n_lanes; stride *= 2)
        for (int l = 0; l < s->n_lanes && rc == TPO_OK; l += 2 * stride)
            rc = tpo_axpy(s->stream, x->lanes[l], 1.0f, x->lanes[l + stride], x->param->size);
    x->folded = rc == TPO_OK;
    return rc;
}

int tpo_learner_state_norms(struct tpo_learner_state *s, struct tpo_norm *out)
{
    int rc = TPO_OK;
    for (int i = 0; i < s->n && rc == TPO_OK; i++) {
        out[i] = (struct tpo_norm){.name = s->items[i].param->name, .group = s->items[i].group};
        rc = tpo_sumsq(s->stream, &out[i].squared, s->items[i].lanes[0], s->items[i].param->size);
    }
    return rc;
}

static int step_muon(struct tpo_learner_state *s, int hand, struct tpo_trainable *x, const struct tpo_group *g, float clip,
                     float rate)
{
    const int now = s->now, next = 1 - now, parts = parts_of(g);
    const int rows = matrix_rows(x->param) / parts, columns = matrix_columns(x->param);
    const struct tpo_muon step = {.rate = rate, .momentum = g->beta1, .decay = g->weight_decay, .clip = clip};
    int rc = TPO_OK;
    for (int i = 0; i < parts && rc == TPO_OK; i++) {
        const int64_t at = (int64_t)i * rows * columns;
        rc = tpo_muon(s->hands[hand], x->weight[next] + at, x->m[next] + at, x->weight[now] + at, x->m[now] + at, x->lanes[0] + at,
                      &step, s->scratch[hand], rows, columns);
    }
    return rc;
}

static int step_adamw(struct tpo_learner_state *s, int hand, struct tpo_trainable *x, const struct tpo_group *g, float clip,
                      float rate, int64_t t)
{
    const int now = s->now, next = 1 - now;
    const struct tpo_adamw step = {
        .rate = rate, .beta1 = g->beta1, .beta2 = g->beta2, .eps = g->eps, .decay = g->weight_decay, .clip = clip, .t = t};
    return tpo_adamw(s->hands[hand], x->weight[next], x->m[next], x->v[next], x->weight[now], x->m[now], x->v[now], x->lanes[0],
                     &step, x->param->size);
}

struct update {
    struct tpo_learner_state *state;
    const struct tpo_plan *plan;
    float clip;
    const float *rates;
    int64_t t;
    int rc[TPO_HANDS_MAX]; /* each hand's first error */
};

static void update_one(void *arg, int item, int member)
{
    struct update *u = arg;
    struct tpo_trainable *x = &u->state->items[item];
    const struct tpo_group *g = &u->plan->groups[x->group];
    const float factor = g->clipped ? u->clip : 1.0f, rate = u->rates[x->group];
    const int rc = g->optimiser == TPO_MUON ? step_muon(u->state, member, x, g, factor, rate)
                                            : step_adamw(u->state, member, x, g, factor, rate, u->t);
    if (u->rc[member] == TPO_OK) u->rc[member] = rc;
}

int tpo_learner_state_prepare(struct tpo_learner_state *s, const struct tpo_plan *plan, float clip, const float *rates, int64_t t)
{
    struct update u = {.state = s, .plan = plan, .clip = clip, .rates = rates, .t = t};
    if (s->stream->team != NULL && s->n_hands == tpo_team_size(s->stream->team))
        tpo_team_run(s->stream->team, update_one, &u, s->n);
    else
        for (int i = 0; i < s->n; i++) update_one(&u, i, 0);
    for (int i = 0; i < s->n_hands; i++)
        if (u.rc[i] != TPO_OK) return u.rc[i];
    return tpo_stream_wait(s->stream);
}

void tpo_learner_state_commit(struct tpo_learner_state *s)
{
    s->now = 1 - s->now;
    for (int i = 0; i < s->n; i++) s->items[i].param->data = s->items[i].weight[s->now];
}
