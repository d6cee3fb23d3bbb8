/* recipe.h -- a training recipe: a .yaml file that lists stages (docs: docs/training.md).
 *
 *   name: joint                seed: 1        model: plain (a folder beside the recipe: config.json, added_tokens.json, tokenizer.model)
 *   dtype: f32|bf16            bf16: weights of products and tables that are BF16 in the folder stay so in this process while frozen; equal bits
 *   stages:
 *     - name: encoder          steps: 3000    micro_batches: 1   lanes: 1
 *       warmup: 50 (steps)     floor: .03 (the cosine ends at this share of the rate)   clip: 1 (global norm, 0: none)
 *       data:                  one is drawn per micro-batch, by share
 *         - {share: 1, frames: 1, samples: 16, conversations: 0, objects: 5, outermost: .2, keep: all|text|boxes, aids: none|questions|all,
 *            without: [target, noun, count, choice, told], dense: true, slots: false, description: .5, end: .2, mix: {"attribute box": .18, ...}}
 *         - {share: 1, source: refcoco|videochat2|mvbench, annotations: FILE, instances: FILE (refcoco; else instances.json beside it),
 *            split: train (refcoco; else all), media: DIR, skip_most: .01 (share of bad rows that is passed over),
 *            frames: 4 (of a film, at most), samples: 16, conversations: 8 (of a row's questions, at most), end: .2}
 *       losses: {dense: 1, language: 1, slot: .3, attention: 1, region: 1.5}
 *       groups:                the first group that matches a tensor owns it; what no group matches is frozen
 *         - {name: x, optimiser: muon|adamw, rate: 2e-3, momentum: .95 | betas: [.9, .98], eps: 1e-8, decay: .05, clipped: true,
 *            split: 3, tensors: [pattern, ...]}
 *
 * `extends: FILE` (relative to this one, one level) takes seed, model and dtype from another recipe until they are named here, and begins a stage of a name
 * that is there as that one's; the stages are those listed here.
 *
 * A stage with a source weights neither `dense` nor `slot`: only the world knows the truth they need. Paths that don't begin with / start from the
 * recipe's folder. Files are opened when a run begins, not here.
 *
 * `mix` sets the weights of the kinds that it names, others keep their defaults (world.h); then `keep` leaves kinds out, wherever it stands.
 *
 * Strict: an unknown key, a wrong type, a negative rate, a number out of range, a warm-up longer than its stage, a constant of the other
 * optimiser, data of no share, losses of no weight, conversations of which no kind has a weight, a second YAML document: INVALID_ARGUMENT "recipe",
 * with the line. */
#ifndef TPO_TRAINER_STEPS_RECIPE_H
#define TPO_TRAINER_STEPS_RECIPE_H

#include "services/host/learner.h"
#include "trainer/data/annotations.h"
#include "trainer/world/world.h"

#define TPO_STAGES_MAX 16
#define TPO_GROUPS_MAX 16
#define TPO_DATA_MAX   8
#define TPO_LOSSES_MAX 8

struct tpo_recipe_data {
    float share;
    int samples;
    struct tpo_world_draw
        draw; /* word_id is the trainer's to set; with a source its n_frames (0: the model's), n_conversations and weight_end count */
    const char *annotations; /* NULL: the world; else the source's file, and what follows */
    enum tpo_annotation_source source;
    const char *instances, *media; /* instances NULL: beside the annotations */
    char split[32];                /* "": all */
    double skip_most;
};

struct tpo_recipe_stage {
    char name[32];
    int steps, warmup;
    float floor, clip;
    int n_data;
    struct tpo_recipe_data data[TPO_DATA_MAX];
    struct tpo_plan plan; /* points into this struct and the recipe's arena */
    struct tpo_group groups[TPO_GROUPS_MAX];
    float rates[TPO_GROUPS_MAX];
    struct tpo_loss_weight losses[TPO_LOSSES_MAX];
};

struct tpo_recipe {
    char name[32];
    char model[1024]; /* the folder's path */
    bool bf16;        /* what is BF16 in the model's folder and frozen stays so in the trainer's memory */
    uint64_t seed;
    int n_stages;
    struct tpo_recipe_stage stages[TPO_STAGES_MAX];
    struct tpo_recipe *base; /* the recipe it extends, NULL: names and patterns may be its */
    struct tpo_arena arena;
};

int tpo_recipe_load(struct tpo_recipe **out, const char *path, struct tpo_error *err);
/* The same, but relative paths of annotations and media start from `data`; NULL: from the recipe's folder. */
int tpo_recipe_load_with(struct tpo_recipe **out, const char *path, const char *data, struct tpo_error *err);
void tpo_recipe_close(struct tpo_recipe *r); /* accepts NULL */

/* The share of its rate that a stage uses at `step` (from 1): linear warm-up, then a cosine to the floor. */
float tpo_recipe_rate(const struct tpo_recipe_stage *s, int step);
float tpo_recipe_loss(const struct tpo_recipe_stage *s, const char *name); /* weight, 0 where absent */
/* Which of the stage's data micro-batch m of a step draws: a pure function of its arguments. */
int tpo_recipe_pick(const struct tpo_recipe *r, int stage, int step, int micro_batch);

/* How many micro-batches of steps 1..step each of the stage's data has filled. */
void tpo_recipe_drawn(const struct tpo_recipe *r, int stage, int step, uint64_t drawn[TPO_DATA_MAX]);

/* NOT_FOUND "annotations" for the first annotation file, file of boxes or media folder of any stage that cannot be read. */
int tpo_recipe_files(const struct tpo_recipe *r, struct tpo_error *err);
/* INVALID_ARGUMENT "recipe" for the first group, from stage `first` on, that owns no tensor of any of these models: its patterns match none, or only
 * those of groups before it. */
int tpo_recipe_groups(const struct tpo_recipe *r, int first, struct tpo_model *const *models, int n_models, struct tpo_error *err);

#endif
