/* This file owns the reading of recipes: libyaml's document tree, walked strictly. */
#include "trainer/steps/recipe.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

#include "kernels/vector.h"

struct reader {
    const char *path, *data; /* where relative paths of data start from, NULL: the recipe's folder */
    yaml_document_t *doc;
    struct tpo_recipe *recipe;
    bool is_base; /* read for a recipe that extends it */
    struct tpo_error *err;
    int rc;
};

static int load(struct tpo_recipe **out, const char *path, const char *data, bool is_base, struct tpo_error *err);

__attribute__((format(printf, 3, 4))) static void refuse(struct reader *r, const yaml_node_t *at, const char *format, ...)
{
    char text[160];
    va_list args;
    if (r->rc != TPO_OK) return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    r->rc = tpo_fail(r->err, TPO_INVALID_ARGUMENT, "recipe", "%.80s:%zu: %s", r->path, at->start_mark.line + 1, text);
}

static const char *scalar(struct reader *r, const yaml_node_t *n)
{
    if (n->type == YAML_SCALAR_NODE) return (const char *)n->data.scalar.value;
    refuse(r, n, "a single value is needed here");
    return "";
}

static double number(struct reader *r, const yaml_node_t *n, double low, double high)
{
    const char *text = scalar(r, n);
    char *end = NULL;
    const double x = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(x))
        refuse(r, n, "\"%.40s\" is not a number", text);
    else if (x < low || x > high)
        refuse(r, n, "%.40s is outside %g to %g", text, low, high);
    else
        return x;
    return low;
}

static int integer(struct reader *r, const yaml_node_t *n, double low, double high)
{
    const double x = number(r, n, low, high);
    if (x != floor(x)) refuse(r, n, "\"%.40s\" is not a whole number", scalar(r, n));
    return (int)x;
}

static int word(struct reader *r, const yaml_node_t *n, const char *const *words, int n_words)
{
    const char *text = scalar(r, n);
    for (int i = 0; i < n_words; i++)
        if (strcmp(text, words[i]) == 0) return i;
    refuse(r, n, "\"%.40s\" is not one of the words known here (%s, ...)", text, words[0]);
    return 0;
}

static bool truth(struct reader *r, const yaml_node_t *n)
{
    static const char *const words[] = {"false", "true"};
    return word(r, n, words, 2) == 1;
}

static void name_copy(struct reader *r, char *out, size_t size, const yaml_node_t *n)
{
    const char *text = scalar(r, n);
    const size_t length = strlen(text);
    if (length == 0 || length >= size)
        refuse(r, n, "a name of 1 to %zu letters is needed", size - 1);
    else if (strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != length || text[0] == '.')
        refuse(r, n, "\"%.40s\": letters, digits, - _ . only", text);
    else
        memcpy(out, text, length + 1);
}

/* Calls `key` for every pair of a mapping; it returns false for a key it does not know. A key twice is refused. */
static void mapping(struct reader *r, yaml_node_t *n,
                    bool (*key)(struct reader *r, void *self, const char *name, yaml_node_t *value), void *self)
{
    if (n == NULL || n->type != YAML_MAPPING_NODE) {
        if (n != NULL) refuse(r, n, "a mapping (key: value) is needed here");
        return;
    }
    yaml_node_pair_t *first = n->data.mapping.pairs.start, *end = n->data.mapping.pairs.top;
    for (yaml_node_pair_t *p = first; p < end && r->rc == TPO_OK; p++) {
        yaml_node_t *k = yaml_document_get_node(r->doc, p->key);
        const char *name = scalar(r, k);
        for (yaml_node_pair_t *q = first; q < p && r->rc == TPO_OK; q++)
            if (strcmp(name, scalar(r, yaml_document_get_node(r->doc, q->key))) == 0)
                refuse(r, k, "key \"%.40s\" is here twice", name);
        if (r->rc == TPO_OK && !key(r, self, name, yaml_document_get_node(r->doc, p->value)))
            refuse(r, k, "unknown key \"%.40s\"", name);
    }
}

/* The value of a key, NULL where the mapping lacks it. */
static yaml_node_t *value_of(struct reader *r, const yaml_node_t *n, const char *name)
{
    if (n->type != YAML_MAPPING_NODE) return NULL;
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++)
        if (strcmp(scalar(r, yaml_document_get_node(r->doc, p->key)), name) == 0) return yaml_document_get_node(r->doc, p->value);
    return NULL;
}

static int length_of(struct reader *r, yaml_node_t *n, int most)
{
    if (n->type != YAML_SEQUENCE_NODE) {
        refuse(r, n, "a list is needed here");
        return 0;
    }
    const long count = n->data.sequence.items.top - n->data.sequence.items.start;
    if (count < 1 || count > most) refuse(r, n, "a list of 1 to %d is needed here, this one has %ld", most, count);
    return r->rc == TPO_OK ? (int)count : 0;
}

static yaml_node_t *item(struct reader *r, yaml_node_t *n, int i)
{
    return yaml_document_get_node(r->doc, n->data.sequence.items.start[i]);
}

/* --- one noun of the file each ------------------------------------------------------------------------------------------------------- */

static bool mix_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    float *mix = self;
    for (int k = 0; k < TPO_WORLD_KINDS; k++)
        if (strcmp(name, tpo_world_kind_name(k)) == 0) {
            mix[k] = (float)number(r, v, 0, 1000);
            return true;
        }
    return false;
}

static unsigned aids_read(struct reader *r, yaml_node_t *n)
{
    static const char *const aids[] = {"target", "noun", "count", "choice", "told"}; /* bit i: enum tpo_world_aid */
    unsigned set = 0;
    const int count = length_of(r, n, 5);
    for (int i = 0; i < count; i++) set |= 1u << word(r, item(r, n, i), aids, 5);
    return set;
}

static bool data_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    static const char *const keeps[] = {"all", "text", "boxes"}, *const aids[] = {"none", "questions", "all"};
    struct tpo_recipe_data *d = self;
    if (strcmp(name, "frames") == 0) return true; /* read first, by data_read */
    if (strcmp(name, "share") == 0)
        d->share = (float)number(r, v, 0, 1000);
    else if (strcmp(name, "samples") == 0)
        d->samples = integer(r, v, 1, 1024);
    else if (strcmp(name, "conversations") == 0)
        d->draw.n_conversations = integer(r, v, 0, 64);
    else if (strcmp(name, "objects") == 0)
        d->draw.min_objects = integer(r, v, 1, TPO_WORLD_OBJECTS_MAX);
    else if (strcmp(name, "outermost") == 0)
        d->draw.outermost = (float)number(r, v, 0, 1);
    else if (strcmp(name, "keep") == 0)
        tpo_world_mix_keep(d->draw.mix, word(r, v, keeps, 3));
    else if (strcmp(name, "aids") == 0)
        d->draw.aids = word(r, v, aids, 3);
    else if (strcmp(name, "without") == 0)
        d->draw.without = aids_read(r, v);
    else if (strcmp(name, "dense") == 0)
        d->draw.dense = truth(r, v);
    else if (strcmp(name, "slots") == 0)
        d->draw.slots = truth(r, v);
    else if (strcmp(name, "description") == 0)
        d->draw.weight_description = (float)number(r, v, 0, 10);
    else if (strcmp(name, "end") == 0)
        d->draw.weight_end = (float)number(r, v, 0, 10);
    else if (strcmp(name, "mix") == 0)
        mapping(r, v, mix_key, d->draw.mix);
    else
        return false;
    return true;
}

/* A path as the program opens it. */
static const char *path_of(struct reader *r, const yaml_node_t *n)
{
    const char *text = scalar(r, n), *slash = strrchr(r->path, '/');
    char path[4096];
    int length;
    if (text[0] == '\0') refuse(r, n, "a path is needed here");
    if (text[0] == '/')
        length = snprintf(path, sizeof(path), "%s", text);
    else if (r->data != NULL)
        length = snprintf(path, sizeof(path), "%s/%s", r->data, text);
    else
        length = snprintf(path, sizeof(path), "%.*s%s", slash != NULL ? (int)(slash - r->path + 1) : 0, r->path, text);
    if (length >= (int)sizeof(path)) refuse(r, n, "this path is too long");
    const char *copy = r->rc == TPO_OK ? tpo_arena_copy(&r->recipe->arena, path, (size_t)length) : NULL;
    if (copy == NULL && r->rc == TPO_OK) r->rc = tpo_fail(r->err, TPO_ENOMEM, "memory", "no memory for a recipe");
    return copy;
}

static bool source_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    static const char *const sources[TPO_ANNOTATION_SOURCES] = {"refcoco", "videochat2", "mvbench"};
    struct tpo_recipe_data *d = self;
    if (strcmp(name, "source") == 0)
        d->source = word(r, v, sources, TPO_ANNOTATION_SOURCES);
    else if (strcmp(name, "annotations") == 0)
        d->annotations = path_of(r, v);
    else if (strcmp(name, "instances") == 0)
        d->instances = path_of(r, v);
    else if (strcmp(name, "split") == 0)
        name_copy(r, d->split, sizeof(d->split), v);
    else if (strcmp(name, "media") == 0)
        d->media = path_of(r, v);
    else if (strcmp(name, "skip_most") == 0)
        d->skip_most = number(r, v, 0, 1);
    else if (strcmp(name, "share") == 0)
        d->share = (float)number(r, v, 0, 1000);
    else if (strcmp(name, "samples") == 0)
        d->samples = integer(r, v, 1, 1024);
    else if (strcmp(name, "frames") == 0)
        d->draw.n_frames = integer(r, v, 1, 1024);
    else if (strcmp(name, "conversations") == 0)
        d->draw.n_conversations = integer(r, v, 1, 64);
    else if (strcmp(name, "end") == 0)
        d->draw.weight_end = (float)number(r, v, 0, 10);
    else
        return false;
    return true;
}

static void source_read(struct reader *r, struct tpo_recipe_data *d, yaml_node_t *n)
{
    *d = (struct tpo_recipe_data){.share = 1, .samples = 1, .draw = {.n_conversations = 8, .weight_end = 1}};
    mapping(r, n, source_key, d);
    if (r->rc == TPO_OK && (d->annotations == NULL || d->media == NULL)) refuse(r, n, "a source needs annotations and media");
    if (r->rc == TPO_OK && (d->instances != NULL || d->split[0] != '\0') && d->source != TPO_ANNOTATIONS_REFCOCO)
        refuse(r, n, "instances and split are refcoco's alone");
}

static void data_read(struct reader *r, struct tpo_recipe_data *d, yaml_node_t *n)
{
    if (value_of(r, n, "source") != NULL) {
        source_read(r, d, n);
        return;
    }
    *d = (struct tpo_recipe_data){0};
    const yaml_node_t *given = value_of(r, n, "frames");
    const int frames = given != NULL ? integer(r, given, 1, TPO_WORLD_FRAMES_MAX) : 1;
    d->share = 1;
    d->samples = 1;
    tpo_world_draw_default(&d->draw, frames);
    d->draw.dense = d->draw.slots = false;
    d->draw.aids = TPO_WORLD_AIDS_NONE;
    mapping(r, n, data_key, d);
}

struct group_reader {
    struct tpo_group *group;
    float *rate;
};

static void patterns_read(struct reader *r, struct tpo_group *g, yaml_node_t *v)
{
    const int n = length_of(r, v, 256);
    const char **patterns = tpo_arena_calloc(&r->recipe->arena, sizeof(*patterns) * (size_t)(n + 1));
    for (int i = 0; i < n && patterns != NULL; i++) {
        const char *text = scalar(r, item(r, v, i));
        patterns[i] = tpo_arena_copy(&r->recipe->arena, text, strlen(text));
    }
    g->patterns = patterns;
    g->n_patterns = n;
}

static bool group_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    static const char *const optimisers[] = {"adamw", "muon"};
    struct group_reader *x = self;
    struct tpo_group *g = x->group;
    if (strcmp(name, "name") == 0)
        name_copy(r, g->name, sizeof(g->name), v);
    else if (strcmp(name, "optimiser") == 0)
        g->optimiser = word(r, v, optimisers, 2) == 1 ? TPO_MUON : TPO_ADAMW;
    else if (strcmp(name, "rate") == 0)
        *x->rate = (float)number(r, v, 0, 10);
    else if (strcmp(name, "momentum") == 0)
        g->beta1 = (float)number(r, v, 0, .9999);
    else if (strcmp(name, "betas") == 0) {
        if (length_of(r, v, 2) == 2) {
            g->beta1 = (float)number(r, item(r, v, 0), 0, .9999);
            g->beta2 = (float)number(r, item(r, v, 1), 0, .99999);
        } else
            refuse(r, v, "betas are two numbers");
    } else if (strcmp(name, "eps") == 0)
        g->eps = (float)number(r, v, 1e-20, 1);
    else if (strcmp(name, "decay") == 0)
        g->weight_decay = (float)number(r, v, 0, 10);
    else if (strcmp(name, "clipped") == 0)
        g->clipped = truth(r, v);
    else if (strcmp(name, "split") == 0)
        g->split = integer(r, v, 1, 64);
    else if (strcmp(name, "tensors") == 0)
        patterns_read(r, g, v);
    else
        return false;
    return true;
}

static void group_read(struct reader *r, struct tpo_recipe_stage *s, int i, yaml_node_t *n)
{
    struct group_reader x = {&s->groups[i], &s->rates[i]};
    s->groups[i] =
        (struct tpo_group){.optimiser = TPO_ADAMW, .beta1 = -1, .beta2 = .999f, .eps = 1e-8f, .clipped = true, .split = 1};
    s->rates[i] = -1;
    mapping(r, n, group_key, &x);
    if (s->groups[i].beta1 < 0) s->groups[i].beta1 = s->groups[i].optimiser == TPO_MUON ? .95f : .9f;
    if (s->rates[i] < 0) refuse(r, n, "this group has no rate");
    if (s->groups[i].n_patterns == 0) refuse(r, n, "this group names no tensors");
}

static bool loss_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    static const char *const known[] = {"dense", "language", "slot", "attention", "region"};
    struct tpo_recipe_stage *s = self;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(name, known[i]) == 0) {
            s->losses[s->plan.n_losses++] = (struct tpo_loss_weight){known[i], (float)number(r, v, 0, 1000)};
            return true;
        }
    return false;
}

static bool stage_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    struct tpo_recipe_stage *s = self;
    if (strcmp(name, "name") == 0)
        name_copy(r, s->name, sizeof(s->name), v);
    else if (strcmp(name, "steps") == 0)
        s->steps = integer(r, v, 1, 100000000);
    else if (strcmp(name, "micro_batches") == 0)
        s->plan.micro_batches = integer(r, v, 1, 4096);
    else if (strcmp(name, "lanes") == 0)
        s->plan.lanes = integer(r, v, 1, 16);
    else if (strcmp(name, "warmup") == 0)
        s->warmup = integer(r, v, 0, 100000000);
    else if (strcmp(name, "floor") == 0)
        s->floor = (float)number(r, v, 0, 1);
    else if (strcmp(name, "clip") == 0)
        s->clip = (float)number(r, v, 0, 1e6);
    else if (strcmp(name, "losses") == 0) {
        s->plan.n_losses = 0;
        mapping(r, v, loss_key, s);
    } else if (strcmp(name, "data") == 0) {
        s->n_data = length_of(r, v, TPO_DATA_MAX);
        for (int i = 0; i < s->n_data && r->rc == TPO_OK; i++) data_read(r, &s->data[i], item(r, v, i));
    } else if (strcmp(name, "groups") == 0) {
        s->plan.n_groups = length_of(r, v, TPO_GROUPS_MAX);
        for (int i = 0; i < s->plan.n_groups && r->rc == TPO_OK; i++) group_read(r, s, i, item(r, v, i));
    } else
        return false;
    return true;
}

/* The stage of that name in the recipe that this one extends, NULL where there is none. */
static const struct tpo_recipe_stage *inherited(struct reader *r, yaml_node_t *n)
{
    const struct tpo_recipe *base = r->recipe->base;
    yaml_node_t *name = value_of(r, n, "name");
    for (int i = 0; base != NULL && name != NULL && i < base->n_stages; i++)
        if (strcmp(base->stages[i].name, scalar(r, name)) == 0) return &base->stages[i];
    return NULL;
}

static void stage_read(struct reader *r, struct tpo_recipe_stage *s, yaml_node_t *n)
{
    const struct tpo_recipe_stage *from = inherited(r, n);
    if (from != NULL)
        *s = *from;
    else
        *s = (struct tpo_recipe_stage){.floor = .03f, .clip = 1, .plan = {.lanes = 1, .micro_batches = 1}};
    s->plan.groups = s->groups;
    s->plan.losses = s->losses;
    mapping(r, n, stage_key, s);
    if (r->rc != TPO_OK) return;
    if (s->name[0] == '\0' || s->steps == 0 || s->n_data == 0 || s->plan.n_groups == 0 || s->plan.n_losses == 0)
        refuse(r, n, "a stage needs name, steps, data, losses and groups");
    if ((s->plan.lanes & (s->plan.lanes - 1)) != 0) refuse(r, n, "lanes is a power of two");
    for (int i = 0; i < s->n_data; i++)
        if (s->data[i].annotations != NULL && (tpo_recipe_loss(s, "dense") > 0 || tpo_recipe_loss(s, "slot") > 0))
            refuse(r, n, "dense and slot need the world's truth: a stage with a source weights neither");
    for (int i = 0; r->recipe->stages + i < s; i++)
        if (strcmp(r->recipe->stages[i].name, s->name) == 0) refuse(r, n, "two stages are named %s", s->name);
}

static bool recipe_key(struct reader *r, void *self, const char *name, yaml_node_t *v)
{
    struct tpo_recipe *recipe = self;
    if (strcmp(name, "name") == 0)
        name_copy(r, recipe->name, sizeof(recipe->name), v);
    else if (strcmp(name, "seed") == 0)
        recipe->seed = (uint64_t)integer(r, v, 0, 1000000);
    else if (strcmp(name, "model") == 0) {
        const char *slash = strrchr(r->path, '/');
        char folder[32] = "";
        name_copy(r, folder, sizeof(folder), v);
        snprintf(recipe->model, sizeof(recipe->model), "%.*s%s", slash != NULL ? (int)(slash - r->path + 1) : 0, r->path, folder);
    } else if (strcmp(name, "extends") == 0) {
        /* read first, by base_read */
    } else if (strcmp(name, "stages") == 0) {
        recipe->n_stages = length_of(r, v, TPO_STAGES_MAX);
        for (int i = 0; i < recipe->n_stages && r->rc == TPO_OK; i++) stage_read(r, &recipe->stages[i], item(r, v, i));
    } else
        return false;
    return true;
}

/* The recipe that this one extends: its seed and model until others are named, its stages for those of the same names. */
static void base_read(struct reader *r, const yaml_node_t *root)
{
    struct tpo_recipe *recipe = r->recipe;
    const yaml_node_t *given = value_of(r, root, "extends");
    const char *slash = strrchr(r->path, '/');
    char path[2048];
    if (given == NULL || r->rc != TPO_OK) return;
    snprintf(path, sizeof(path), "%.*s%s", slash != NULL ? (int)(slash - r->path + 1) : 0, r->path, scalar(r, given));
    if (r->is_base) refuse(r, given, "a recipe that is extended can't extend another");
    if (r->rc == TPO_OK) r->rc = load(&recipe->base, path, r->data, true, r->err);
    if (r->rc != TPO_OK) return;
    recipe->seed = recipe->base->seed;
    memcpy(recipe->model, recipe->base->model, sizeof(recipe->model));
}

static int document_read(struct reader *r)
{
    yaml_node_t *root = yaml_document_get_root_node(r->doc);
    if (root == NULL) return tpo_fail(r->err, TPO_INVALID_ARGUMENT, "recipe", "%.80s is empty", r->path);
    base_read(r, root);
    mapping(r, root, recipe_key, r->recipe);
    if (r->rc == TPO_OK && (r->recipe->name[0] == '\0' || r->recipe->model[0] == '\0' || r->recipe->n_stages == 0))
        refuse(r, root, "a recipe needs name, model and stages");
    for (int i = 0; i < r->recipe->n_stages; i++) r->recipe->stages[i].plan.seed = tpo_random_u64(r->recipe->seed, (uint64_t)i);
    return r->rc;
}

static int load(struct tpo_recipe **out, const char *path, const char *data, bool is_base, struct tpo_error *err)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    FILE *f = fopen(path, "rb");
    if (f == NULL) return tpo_fail(err, TPO_NOT_FOUND, "recipe", "%.200s cannot be read", path);
    struct tpo_recipe *recipe = calloc(1, sizeof(*recipe));
    if (recipe == NULL || !yaml_parser_initialize(&parser)) {
        free(recipe);
        fclose(f);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a recipe");
    }
    tpo_arena_init(&recipe->arena, 4096, 0);
    recipe->seed = 1;
    yaml_parser_set_input_file(&parser, f);
    int rc;
    if (yaml_parser_load(&parser, &doc)) {
        struct reader r = {.path = path, .data = data, .doc = &doc, .recipe = recipe, .is_base = is_base, .err = err};
        rc = document_read(&r);
        yaml_document_delete(&doc);
    } else {
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "recipe", "%.80s:%zu: %.80s", path, parser.problem_mark.line + 1,
                      parser.problem != NULL ? parser.problem : "not YAML");
    }
    yaml_parser_delete(&parser);
    fclose(f);
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
            const char *const paths[] = {d->annotations, d->instances, d->media};
            for (int p = 0; p < 3; p++)
                if (paths[p] != NULL && access(paths[p], R_OK) != 0)
                    return tpo_fail(err, TPO_NOT_FOUND, "annotations", "stage %s: %.180s cannot be read", r->stages[i].name,
                                    paths[p]);
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
