/* This file owns recipes: the keys that each noun of the file knows. */
#include "trainer/steps/recipe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/vector.h"
#include "services/host/learner_state.h"
#include "trainer/steps/yaml.h"

static int load(struct tpo_recipe **out, const char *path, const char *data, bool is_base, struct tpo_error *err);

/* --- one noun of the file each ------------------------------------------------------------------------------------------------------- */

static bool mix_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    float *mix = self;
    for (int k = 0; k < TPO_WORLD_KINDS; k++)
        if (strcmp(name, tpo_world_kind_name(k)) == 0) {
            mix[k] = (float)tpo_yaml_number(y, v, 0, 1000);
            return true;
        }
    return false;
}

static unsigned aids_read(struct tpo_yaml *y, yaml_node_t *n)
{
    static const char *const aids[] = {"target", "noun", "count", "choice", "told"}; /* bit i: enum tpo_world_aid */
    unsigned set = 0;
    const int count = tpo_yaml_length(y, n, 5);
    for (int i = 0; i < count; i++) set |= 1u << tpo_yaml_word(y, tpo_yaml_item(y, n, i), aids, 5);
    return set;
}

static bool data_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    static const char *const aids[] = {"none", "questions", "all"};
    struct tpo_recipe_data *d = self;
    if (strcmp(name, "frames") == 0 || strcmp(name, "keep") == 0) return true; /* read by data_read, first and last */
    if (strcmp(name, "share") == 0)
        d->share = (float)tpo_yaml_number(y, v, 0, 1000);
    else if (strcmp(name, "samples") == 0)
        d->samples = tpo_yaml_integer(y, v, 1, 1024);
    else if (strcmp(name, "conversations") == 0)
        d->draw.n_conversations = tpo_yaml_integer(y, v, 0, 64);
    else if (strcmp(name, "objects") == 0)
        d->draw.min_objects = tpo_yaml_integer(y, v, TPO_WORLD_OBJECTS_MIN, TPO_WORLD_OBJECTS_MAX);
    else if (strcmp(name, "outermost") == 0)
        d->draw.outermost = (float)tpo_yaml_number(y, v, 0, 1);
    else if (strcmp(name, "aids") == 0)
        d->draw.aids = tpo_yaml_word(y, v, aids, 3);
    else if (strcmp(name, "without") == 0)
        d->draw.without = aids_read(y, v);
    else if (strcmp(name, "dense") == 0)
        d->draw.dense = tpo_yaml_truth(y, v);
    else if (strcmp(name, "slots") == 0)
        d->draw.slots = tpo_yaml_truth(y, v);
    else if (strcmp(name, "description") == 0)
        d->draw.weight_description = (float)tpo_yaml_number(y, v, 0, 10);
    else if (strcmp(name, "end") == 0)
        d->draw.weight_end = (float)tpo_yaml_number(y, v, 0, 10);
    else if (strcmp(name, "mix") == 0)
        tpo_yaml_mapping(y, v, mix_key, d->draw.mix);
    else
        return false;
    return true;
}

static bool source_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    static const char *const sources[TPO_ANNOTATION_SOURCES] = {"refcoco", "videochat2", "mvbench"};
    struct tpo_recipe_data *d = self;
    if (strcmp(name, "source") == 0)
        d->source = tpo_yaml_word(y, v, sources, TPO_ANNOTATION_SOURCES);
    else if (strcmp(name, "annotations") == 0)
        d->annotations = tpo_yaml_path(y, v);
    else if (strcmp(name, "instances") == 0)
        d->instances = tpo_yaml_path(y, v);
    else if (strcmp(name, "split") == 0)
        tpo_yaml_name(y, d->split, sizeof(d->split), v);
    else if (strcmp(name, "media") == 0)
        d->media = tpo_yaml_path(y, v);
    else if (strcmp(name, "skip_most") == 0)
        d->skip_most = tpo_yaml_number(y, v, 0, 1);
    else if (strcmp(name, "share") == 0)
        d->share = (float)tpo_yaml_number(y, v, 0, 1000);
    else if (strcmp(name, "samples") == 0)
        d->samples = tpo_yaml_integer(y, v, 1, 1024);
    else if (strcmp(name, "frames") == 0)
        d->draw.n_frames = tpo_yaml_integer(y, v, 1, 1024);
    else if (strcmp(name, "conversations") == 0)
        d->draw.n_conversations = tpo_yaml_integer(y, v, 1, 64);
    else if (strcmp(name, "end") == 0)
        d->draw.weight_end = (float)tpo_yaml_number(y, v, 0, 10);
    else
        return false;
    return true;
}

static void source_read(struct tpo_yaml *y, struct tpo_recipe_data *d, yaml_node_t *n)
{
    *d = (struct tpo_recipe_data){.share = 1, .samples = 1, .draw = {.n_conversations = 8, .weight_end = 1}};
    tpo_yaml_mapping(y, n, source_key, d);
    if (y->rc == TPO_OK && (d->annotations == NULL || d->media == NULL))
        tpo_yaml_refuse(y, n, "a source needs annotations and media");
    if (y->rc == TPO_OK && (d->instances != NULL || d->split[0] != '\0') && d->source != TPO_ANNOTATIONS_REFCOCO)
        tpo_yaml_refuse(y, n, "instances and split are refcoco's alone");
}

/* After `mix`, wherever it stands: what is kept out stays out. */
static void keep_read(struct tpo_yaml *y, struct tpo_recipe_data *d, yaml_node_t *n)
{
    static const char *const keeps[] = {"all", "text", "boxes"};
    yaml_node_t *keep = tpo_yaml_value(y, n, "keep");
    if (keep != NULL) tpo_world_mix_keep(d->draw.mix, tpo_yaml_word(y, keep, keeps, 3));
    if (d->draw.n_conversations > 0 && !tpo_world_mix_asks(d->draw.mix, d->draw.n_frames))
        tpo_yaml_refuse(y, n, "no kind of question has a weight here: conversations: 0 asks none");
}

static void data_read(struct tpo_yaml *y, struct tpo_recipe_data *d, yaml_node_t *n)
{
    if (tpo_yaml_value(y, n, "source") != NULL) {
        source_read(y, d, n);
        return;
    }
    *d = (struct tpo_recipe_data){0};
    const yaml_node_t *given = tpo_yaml_value(y, n, "frames");
    const int frames = given != NULL ? tpo_yaml_integer(y, given, 1, TPO_WORLD_FRAMES_MAX) : 1;
    d->share = 1;
    d->samples = 1;
    tpo_world_draw_default(&d->draw, frames);
    d->draw.dense = d->draw.slots = false;
    d->draw.aids = TPO_WORLD_AIDS_NONE;
    tpo_yaml_mapping(y, n, data_key, d);
    if (y->rc == TPO_OK) keep_read(y, d, n);
}

struct group_reader {
    struct tpo_group *group;
    float *rate;
};

static void patterns_read(struct tpo_yaml *y, struct tpo_group *g, yaml_node_t *v)
{
    const int n = tpo_yaml_length(y, v, 256);
    const char **patterns = tpo_arena_calloc(y->arena, sizeof(*patterns) * (size_t)(n + 1));
    bool whole = patterns != NULL;
    for (int i = 0; i < n && whole; i++) {
        const char *text = tpo_yaml_scalar(y, tpo_yaml_item(y, v, i));
        patterns[i] = tpo_arena_copy(y->arena, text, strlen(text));
        whole = patterns[i] != NULL;
    }
    if (!whole && y->rc == TPO_OK) y->rc = tpo_fail(y->err, TPO_ENOMEM, "memory", "no memory for names of tensors");
    g->patterns = patterns;
    g->n_patterns = whole ? n : 0;
}

static bool group_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    static const char *const optimisers[] = {"adamw", "muon"};
    struct group_reader *x = self;
    struct tpo_group *g = x->group;
    if (strcmp(name, "name") == 0)
        tpo_yaml_name(y, g->name, sizeof(g->name), v);
    else if (strcmp(name, "optimiser") == 0)
        g->optimiser = tpo_yaml_word(y, v, optimisers, 2) == 1 ? TPO_MUON : TPO_ADAMW;
    else if (strcmp(name, "rate") == 0)
        *x->rate = (float)tpo_yaml_number(y, v, 0, 10);
    else if (strcmp(name, "momentum") == 0)
        g->beta1 = (float)tpo_yaml_number(y, v, 0, .9999);
    else if (strcmp(name, "betas") == 0) {
        if (tpo_yaml_length(y, v, 2) == 2) {
            g->beta1 = (float)tpo_yaml_number(y, tpo_yaml_item(y, v, 0), 0, .9999);
            g->beta2 = (float)tpo_yaml_number(y, tpo_yaml_item(y, v, 1), 0, .99999);
        } else
            tpo_yaml_refuse(y, v, "betas are two numbers");
    } else if (strcmp(name, "eps") == 0)
        g->eps = (float)tpo_yaml_number(y, v, 1e-20, 1);
    else if (strcmp(name, "decay") == 0)
        g->weight_decay = (float)tpo_yaml_number(y, v, 0, 10);
    else if (strcmp(name, "clipped") == 0)
        g->clipped = tpo_yaml_truth(y, v);
    else if (strcmp(name, "split") == 0)
        g->split = tpo_yaml_integer(y, v, 1, 64);
    else if (strcmp(name, "tensors") == 0)
        patterns_read(y, g, v);
    else
        return false;
    return true;
}

/* What the group's optimiser would not look at. */
static void constants_check(struct tpo_yaml *y, const struct tpo_group *g, const yaml_node_t *n)
{
    static const struct {
        const char *key;
        enum tpo_optimiser of;
    } known[] = {{"momentum", TPO_MUON}, {"split", TPO_MUON}, {"betas", TPO_ADAMW}, {"eps", TPO_ADAMW}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        const yaml_node_t *v = tpo_yaml_value(y, n, known[i].key);
        if (v != NULL && known[i].of != g->optimiser)
            tpo_yaml_refuse(y, v, "%s is %s's, this group's optimiser is %s", known[i].key,
                            known[i].of == TPO_MUON ? "muon" : "adamw", g->optimiser == TPO_MUON ? "muon" : "adamw");
    }
}

static void group_read(struct tpo_yaml *y, struct tpo_recipe_stage *s, int i, yaml_node_t *n)
{
    struct group_reader x = {&s->groups[i], &s->rates[i]};
    s->groups[i] =
        (struct tpo_group){.optimiser = TPO_ADAMW, .beta1 = -1, .beta2 = .999f, .eps = 1e-8f, .clipped = true, .split = 1};
    s->rates[i] = -1;
    tpo_yaml_mapping(y, n, group_key, &x);
    if (y->rc == TPO_OK) constants_check(y, &s->groups[i], n);
    if (s->groups[i].beta1 < 0) s->groups[i].beta1 = s->groups[i].optimiser == TPO_MUON ? .95f : .9f;
    if (s->rates[i] < 0) tpo_yaml_refuse(y, n, "this group has no rate");
    for (int k = 0; k < i && s->groups[i].name[0] != '\0'; k++)
        if (strcmp(s->groups[k].name, s->groups[i].name) == 0) tpo_yaml_refuse(y, n, "two groups are named %s", s->groups[i].name);
    if (s->groups[i].n_patterns == 0) tpo_yaml_refuse(y, n, "this group names no tensors");
}

static bool loss_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    static const char *const known[] = {"dense", "language", "slot", "attention", "region"};
    struct tpo_recipe_stage *s = self;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(name, known[i]) == 0) {
            s->losses[s->plan.n_losses++] = (struct tpo_loss_weight){known[i], (float)tpo_yaml_number(y, v, 0, 1000)};
            return true;
        }
    return false;
}

static bool stage_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    struct tpo_recipe_stage *s = self;
    if (strcmp(name, "name") == 0)
        tpo_yaml_name(y, s->name, sizeof(s->name), v);
    else if (strcmp(name, "steps") == 0)
        s->steps = tpo_yaml_integer(y, v, 1, 100000000);
    else if (strcmp(name, "micro_batches") == 0)
        s->plan.micro_batches = tpo_yaml_integer(y, v, 1, 4096);
    else if (strcmp(name, "lanes") == 0)
        s->plan.lanes = tpo_yaml_integer(y, v, 1, 16);
    else if (strcmp(name, "warmup") == 0)
        s->warmup = tpo_yaml_integer(y, v, 0, 100000000);
    else if (strcmp(name, "floor") == 0)
        s->floor = (float)tpo_yaml_number(y, v, 0, 1);
    else if (strcmp(name, "clip") == 0)
        s->clip = (float)tpo_yaml_number(y, v, 0, 1e6);
    else if (strcmp(name, "losses") == 0) {
        s->plan.n_losses = 0;
        tpo_yaml_mapping(y, v, loss_key, s);
    } else if (strcmp(name, "data") == 0) {
        s->n_data = tpo_yaml_length(y, v, TPO_DATA_MAX);
        for (int i = 0; i < s->n_data && y->rc == TPO_OK; i++) data_read(y, &s->data[i], tpo_yaml_item(y, v, i));
    } else if (strcmp(name, "groups") == 0) {
        s->plan.n_groups = tpo_yaml_length(y, v, TPO_GROUPS_MAX);
        for (int i = 0; i < s->plan.n_groups && y->rc == TPO_OK; i++) group_read(y, s, i, tpo_yaml_item(y, v, i));
    } else
        return false;
    return true;
}

/* The stage of that name in the recipe that this one extends, NULL where there is none. */
static const struct tpo_recipe_stage *inherited(struct tpo_yaml *y, const struct tpo_recipe *recipe, yaml_node_t *n)
{
    const struct tpo_recipe *base = recipe->base;
    yaml_node_t *name = tpo_yaml_value(y, n, "name");
    for (int i = 0; base != NULL && name != NULL && i < base->n_stages; i++)
        if (strcmp(base->stages[i].name, tpo_yaml_scalar(y, name)) == 0) return &base->stages[i];
    return NULL;
}

/* Where a key's value is, or the whole where it is inherited: for what is wrong of several keys together. */
static const yaml_node_t *value_or(struct tpo_yaml *y, const yaml_node_t *n, const char *name)
{
    const yaml_node_t *v = tpo_yaml_value(y, n, name);
    return v != NULL ? v : n;
}

static void stage_check(struct tpo_yaml *y, const struct tpo_recipe_stage *s, const yaml_node_t *n)
{
    float shares = 0, losses = 0;
    for (int i = 0; i < s->n_data; i++) shares += s->data[i].share;
    for (int i = 0; i < s->plan.n_losses; i++) losses += s->losses[i].weight;
    if (s->name[0] == '\0' || s->steps == 0 || s->n_data == 0 || s->plan.n_groups == 0 || s->plan.n_losses == 0)
        tpo_yaml_refuse(y, n, "a stage needs name, steps, data, losses and groups");
    if (s->warmup > s->steps)
        tpo_yaml_refuse(y, value_or(y, n, "warmup"), "a warm-up of %d is longer than the stage's %d steps", s->warmup, s->steps);
    if (!(shares > 0)) tpo_yaml_refuse(y, value_or(y, n, "data"), "no entry of data has a share");
    if (!(losses > 0)) tpo_yaml_refuse(y, value_or(y, n, "losses"), "no loss has a weight");
    if ((s->plan.lanes & (s->plan.lanes - 1)) != 0) tpo_yaml_refuse(y, n, "lanes is a power of two");
    for (int i = 0; i < s->n_data; i++)
        if (s->data[i].annotations != NULL && (tpo_recipe_loss(s, "dense") > 0 || tpo_recipe_loss(s, "slot") > 0))
            tpo_yaml_refuse(y, n, "dense and slot need the world's truth: a stage with a source weights neither");
}

static void stage_read(struct tpo_yaml *y, struct tpo_recipe *recipe, int at, yaml_node_t *n)
{
    struct tpo_recipe_stage *s = &recipe->stages[at];
    const struct tpo_recipe_stage *from = inherited(y, recipe, n);
    if (from != NULL)
        *s = *from;
    else
        *s = (struct tpo_recipe_stage){.floor = .03f, .clip = 1, .plan = {.lanes = 1, .micro_batches = 1}};
    s->plan.groups = s->groups;
    s->plan.losses = s->losses;
    tpo_yaml_mapping(y, n, stage_key, s);
    if (y->rc != TPO_OK) return;
    stage_check(y, s, n);
    for (int i = 0; i < at; i++)
        if (strcmp(recipe->stages[i].name, s->name) == 0) tpo_yaml_refuse(y, n, "two stages are named %s", s->name);
}

static bool recipe_key(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *v)
{
    static const char *const dtypes[] = {"f32", "bf16"};
    struct tpo_recipe *recipe = self;
    if (strcmp(name, "name") == 0)
        tpo_yaml_name(y, recipe->name, sizeof(recipe->name), v);
    else if (strcmp(name, "seed") == 0)
        recipe->seed = (uint64_t)tpo_yaml_integer(y, v, 0, 1000000);
    else if (strcmp(name, "dtype") == 0)
        recipe->bf16 = tpo_yaml_word(y, v, dtypes, 2) == 1;
    else if (strcmp(name, "model") == 0) {
        char folder[32] = "";
        tpo_yaml_name(y, folder, sizeof(folder), v);
        tpo_yaml_beside(y, recipe->model, sizeof(recipe->model), folder);
    } else if (strcmp(name, "extends") == 0) {
        /* read first, by base_read */
    } else if (strcmp(name, "stages") == 0) {
        recipe->n_stages = tpo_yaml_length(y, v, TPO_STAGES_MAX);
        for (int i = 0; i < recipe->n_stages && y->rc == TPO_OK; i++) stage_read(y, recipe, i, tpo_yaml_item(y, v, i));
    } else
        return false;
    return true;
}

struct recipe_reader {
    struct tpo_recipe *recipe;
    bool is_base; /* read for a recipe that extends it */
};

/* The recipe that this one extends: its seed, model and dtype until others are named, its stages for those of the same names. */
static void base_read(struct tpo_yaml *y, const struct recipe_reader *x, const yaml_node_t *root)
{
    struct tpo_recipe *recipe = x->recipe;
    const yaml_node_t *given = tpo_yaml_value(y, root, "extends");
    char path[2048];
    if (given == NULL || y->rc != TPO_OK) return;
    tpo_yaml_beside(y, path, sizeof(path), tpo_yaml_scalar(y, given));
    if (x->is_base) tpo_yaml_refuse(y, given, "a recipe that is extended can't extend another");
    if (y->rc == TPO_OK) y->rc = load(&recipe->base, path, y->data, true, y->err);
    if (y->rc != TPO_OK) return;
    recipe->seed = recipe->base->seed;
    recipe->bf16 = recipe->base->bf16;
    memcpy(recipe->model, recipe->base->model, sizeof(recipe->model));
}

static void recipe_read(struct tpo_yaml *y, yaml_node_t *root, void *self)
{
    const struct recipe_reader *x = self;
    struct tpo_recipe *recipe = x->recipe;
    base_read(y, x, root);
    tpo_yaml_mapping(y, root, recipe_key, recipe);
    if (y->rc == TPO_OK && (recipe->name[0] == '\0' || recipe->model[0] == '\0' || recipe->n_stages == 0))
        tpo_yaml_refuse(y, root, "a recipe needs name, model and stages");
    for (int i = 0; i < recipe->n_stages; i++) recipe->stages[i].plan.seed = tpo_random_u64(recipe->seed, (uint64_t)i);
}

static int load(struct tpo_recipe **out, const char *path, const char *data, bool is_base, struct tpo_error *err)
{
    struct tpo_recipe *recipe = calloc(1, sizeof(*recipe));
    if (recipe == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a recipe");
    tpo_arena_init(&recipe->arena, 4096, 0);
    recipe->seed = 1;
    struct tpo_yaml y = {.path = path, .reason = "recipe", .data = data, .arena = &recipe->arena, .err = err};
    struct recipe_reader x = {recipe, is_base};
    const int rc = tpo_yaml_read(&y, recipe_read, &x);
    if (rc != TPO_OK)
        tpo_recipe_close(recipe);
    else
        *out = recipe;
    return rc;
}

int tpo_recipe_load(struct tpo_recipe **out, const char *path, struct tpo_error *err)
{
    return load(out, path, NULL, false, err);
}

int tpo_recipe_load_with(struct tpo_recipe **out, const char *path, const char *data, struct tpo_error *err)
{
    return load(out, path, data, false, err);
}

void tpo_recipe_close(struct tpo_recipe *r)
{
    if (r == NULL) return;
    tpo_recipe_close(r->base);
    tpo_arena_free(&r->arena);
    free(r);
}

int tpo_recipe_files(const struct tpo_recipe *r, struct tpo_error *err)
{
    for (int i = 0; i < r->n_stages; i++)
        for (int k = 0; k < r->stages[i].n_data; k++) {
            const struct tpo_recipe_data *d = &r->stages[i].data[k];
            char beside[4096];
            const bool unnamed = d->annotations != NULL && d->source == TPO_ANNOTATIONS_REFCOCO && d->instances == NULL;
            if (unnamed) tpo_annotations_instances(beside, sizeof(beside), d->annotations);
            const char *const paths[] = {d->annotations, unnamed ? beside : d->instances, d->media};
            for (int p = 0; p < 3; p++)
                if (paths[p] != NULL && access(paths[p], R_OK) != 0)
                    return tpo_fail(err, TPO_NOT_FOUND, "annotations", "stage %s: %.180s cannot be read", r->stages[i].name,
                                    paths[p]);
        }
    return TPO_OK;
}

int tpo_recipe_groups(const struct tpo_recipe *r, int first, struct tpo_model *const *models, int n_models, struct tpo_error *err)
{
    for (int i = first; i < r->n_stages; i++) {
        const struct tpo_recipe_stage *s = &r->stages[i];
        bool owns[TPO_GROUPS_MAX] = {false};
        for (int k = 0; k < n_models; k++)
            for (int t = 0; t < models[k]->params->n; t++) {
                const struct tpo_param *p = models[k]->params->items[t];
                const int g = p->ignored ? -1 : tpo_plan_group(&s->plan, p->name);
                if (g >= 0) owns[g] = true;
            }
        for (int g = 0; g < s->plan.n_groups; g++) {
            char number[16];
            snprintf(number, sizeof(number), "%d", g + 1);
            if (!owns[g])
                return tpo_fail(err, TPO_INVALID_ARGUMENT, "recipe",
                                "stage %s: group %s owns no tensor: its patterns match none, or only those of groups before it",
                                s->name, s->groups[g].name[0] != '\0' ? s->groups[g].name : number);
        }
    }
    return TPO_OK;
}

float tpo_recipe_rate(const struct tpo_recipe_stage *s, int step)
{
    if (step <= s->warmup) return (float)step / (float)s->warmup;
    const float along = s->steps > s->warmup ? (float)(step - s->warmup) / (float)(s->steps - s->warmup) : 1;
    return s->floor + (1 - s->floor) * .5f * (1 + cosf((float)M_PI * along));
}

float tpo_recipe_loss(const struct tpo_recipe_stage *s, const char *name)
{
    for (int i = 0; i < s->plan.n_losses; i++)
        if (strcmp(s->losses[i].name, name) == 0) return s->losses[i].weight;
    return 0;
}

int tpo_recipe_pick(const struct tpo_recipe *r, int stage, int step, int micro_batch)
{
    const struct tpo_recipe_stage *s = &r->stages[stage];
    float total = 0;
    for (int i = 0; i < s->n_data; i++) total += s->data[i].share;
    float left = total * tpo_random(s->plan.seed ^ 0x64617461, (uint64_t)step * 4096 + (uint64_t)micro_batch);
    for (int i = 0; i + 1 < s->n_data; i++) {
        if (left < s->data[i].share) return i;
        left -= s->data[i].share;
    }
    return s->n_data - 1;
}

void tpo_recipe_drawn(const struct tpo_recipe *r, int stage, int step, uint64_t drawn[TPO_DATA_MAX])
{
    memset(drawn, 0, TPO_DATA_MAX * sizeof(*drawn));
    for (int i = 1; i <= step; i++)
        for (int m = 0; m < r->stages[stage].plan.micro_batches; m++) drawn[tpo_recipe_pick(r, stage, i, m)]++;
}
