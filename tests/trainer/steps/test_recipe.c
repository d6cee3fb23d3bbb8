/* Recipes: keys mean the same in any order, what nothing would heed is refused, and a late stage's faults are told before the first step. */
#include <string.h>

#include "services/host/learner_state.h"
#include "tests/support/test.h"
#include "tests/support/training.h"
#include "trainer/steps/feed.h"

static void text_write(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct tpo_recipe *recipe_of(const char *path)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    if (tpo_recipe_load(&r, path, &err) != TPO_OK) fail_msg("%s", err.message);
    return r;
}

/* One stage: line 5 its keys, line 6 its entries of data, line 7 its groups; what is not given is as it should be. */
static void stage_write(const char *keys, const char *data, const char *groups)
{
    char text[2048];
    snprintf(text, sizeof(text),
             "name: x\nmodel: m\nstages:\n  - name: s\n    %s\n    data: [%s]\n    groups: [%s]\n    losses: {language: 1}\n",
             keys != NULL ? keys : "steps: 9", data != NULL ? data : "{frames: 1}",
             groups != NULL ? groups : "{name: g, rate: 1, tensors: [a]}");
    text_write("r.yaml", text);
}

static void refused(const char *says)
{
    struct tpo_recipe *r = NULL;
    struct tpo_error err = {0};
    assert_int_equal(tpo_recipe_load(&r, "r.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_null(r);
    assert_string_equal(err.reason, "recipe");
    if (strstr(err.message, says) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.message, says);
}

static void data_refused(const char *data, const char *says)
{
    stage_write(NULL, data, NULL);
    refused(says);
}

static void group_refused(const char *group, const char *says)
{
    stage_write(NULL, NULL, group);
    refused(says);
}

static void keys_mean_the_same_in_any_order(void **state)
{
    (void)state;
    static const char *const orders[] = {"{keep: text, mix: {'attribute box': .5, 'how many': .25}}",
                                         "{mix: {'how many': .25, 'attribute box': .5}, keep: text}"};
    for (int i = 0; i < 2; i++) {
        stage_write(NULL, orders[i], NULL);
        struct tpo_recipe *r = recipe_of("r.yaml");
        struct tpo_world_draw usual;
        const float *mix = r->stages[0].data[0].draw.mix;
        tpo_world_draw_default(&usual, 1);
        assert_float_equal(mix[TPO_KIND_ATTRIBUTE_BOX], 0, 0);
        assert_float_equal(mix[TPO_KIND_COUNT], .25f, 0);
        assert_float_equal(mix[TPO_KIND_EXIST], usual.mix[TPO_KIND_EXIST], 0); /* not named: as usual */
        tpo_recipe_close(r);
    }
}

#define NONE_BUT(kinds)                                                                                                            \
    "mix: {'attribute box': 0, 'relation box': 0, 'next-to box': 0, 'attribute': 0, 'attribute relation': 0, 'how many': 0, "      \
    "'is there': 0, 'which half': 0, 'multiple choice': 0, 'description': 0" kinds "}"

static void a_mix_that_asks_nothing_is_refused(void **state)
{
    (void)state;
    data_refused("{frames: 1, " NONE_BUT(", direction: 1") "}", "r.yaml:6: no kind of question has a weight");
    data_refused("{frames: 4, " NONE_BUT(", direction: 0") "}", "r.yaml:6: no kind of question has a weight");
    data_refused("{keep: boxes, mix: {'attribute box': 0, 'relation box': 0, 'next-to box': 0}}", "r.yaml:6: no kind of question");
    static const char *const fine[] = {"{frames: 4, " NONE_BUT(", direction: 1") "}", "{conversations: 0, " NONE_BUT("") "}"};
    for (int i = 0; i < 2; i++) {
        stage_write(NULL, fine[i], NULL);
        tpo_recipe_close(recipe_of("r.yaml"));
    }
}

static void what_nothing_would_heed_is_refused(void **state)
{
    (void)state;
    stage_write("steps: 9\n    warmup: 10", NULL, NULL);
    refused("r.yaml:6: a warm-up of 10 is longer than the stage's 9 steps");
    group_refused("{name: g, rate: 1, momentum: .9, tensors: [a]}",
                  "r.yaml:7: momentum is muon's, this group's optimiser is adamw");
    group_refused("{name: g, rate: 1, split: 3, tensors: [a]}", "r.yaml:7: split is muon's");
    group_refused("{name: g, optimiser: muon, rate: 1, betas: [.9, .99], tensors: [a]}", "r.yaml:7: betas is adamw's");
    group_refused("{name: g, rate: 1, eps: 1e-5, tensors: [a], optimiser: muon}", "r.yaml:7: eps is adamw's");
    data_refused("{share: 0, frames: 1}, {share: 0, frames: 1}", "r.yaml:6: no entry of data has a share");
    text_write("r.yaml", "name: x\nmodel: m\nstages:\n  - name: s\n    steps: 9\n    data: [{frames: 1}]\n"
                         "    groups: [{name: g, rate: 1, tensors: [a]}]\n    losses: {dense: 0, slot: 0}\n");
    refused("r.yaml:8: no loss has a weight");
    data_refused("{objects: 3}", "r.yaml:6: 3 is outside 4 to 8");
    stage_write("steps: 9\n    warmup: 9", "{share: 0}, {share: 1}",
                "{name: g, rate: 1, optimiser: muon, momentum: .9, split: 3, tensors: [a]}, {name: h, rate: 1, betas: [.9, .99], "
                "eps: 1e-5, "
                "tensors: [b]}");
    tpo_recipe_close(recipe_of("r.yaml"));
}

static void frozen_weights_stay_bf16_where_a_recipe_says_so(void **state)
{
    (void)state;
    stage_write(NULL, NULL, NULL);
    assert_int_equal(
        system("{ echo 'dtype: bf16'; cat r.yaml; } >half.yaml && { echo 'extends: half.yaml'; cat r.yaml; } >as_half.yaml && "
               "{ echo 'dtype: f32'; cat as_half.yaml; } >not_half.yaml"),
        0);
    static const char *const files[] = {"r.yaml", "half.yaml", "as_half.yaml", "not_half.yaml"};
    for (int i = 0; i < 4; i++) {
        struct tpo_recipe *r = recipe_of(files[i]);
        assert_int_equal(r->bf16, i == 1 || i == 2);
        tpo_recipe_close(r);
    }
    text_write("r.yaml", "dtype: f16\nname: x\n");
    refused("r.yaml:1: ");
}

static void a_file_has_one_document(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_recipe *r = NULL;
    stage_write(NULL, NULL, NULL);
    assert_int_equal(system("{ cat r.yaml; echo ...; } >ended.yaml; { cat r.yaml; echo '---'; cat r.yaml; } >two.yaml; "
                            "{ cat r.yaml; printf -- '---\\nname: [\\n'; } >torn.yaml"),
                     0);
    tpo_recipe_close(recipe_of("ended.yaml"));
    assert_int_equal(tpo_recipe_load(&r, "two.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "two.yaml:10: a second document"));
    assert_int_equal(tpo_recipe_load(&r, "torn.yaml", &err), TPO_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "torn.yaml:1"));
    assert_null(r);
}

/* --- what the model does not take ----------------------------------------------------------------------------------------------------- */

static void check_says(const struct tpo_config *c, const char *data, const char *reason, const char *says)
{
    struct tpo_error err = {0};
    stage_write(NULL, data, NULL);
    struct tpo_recipe *r = recipe_of("r.yaml");
    assert_int_equal(tpo_feed_check(r, 1, c, &err), TPO_OK); /* it is done already */
    const int rc = tpo_feed_check(r, 0, c, &err);
    tpo_recipe_close(r);
    assert_int_equal(rc, says != NULL ? TPO_INVALID_ARGUMENT : TPO_OK);
    if (says == NULL) return;
    assert_string_equal(err.reason, reason);
    if (strstr(err.message, says) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.message, says);
}

static void a_recipe_is_held_against_its_model(void **state)
{
    (void)state;
    struct tpo_config c;
    struct tpo_error err = {0};
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/trainer/recipes/plain", tpo_test_source());
    if (tpo_config_load(&c, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    check_says(&c, "{frames: 1}, {frames: 8, aids: all, slots: true}", NULL, NULL);
    check_says(&c, "{source: videochat2, annotations: a.json, media: m, frames: 5}", NULL, NULL);
    c.vision_encoder.num_frames = 4;
    check_says(&c, "{frames: 1}, {frames: 8}", "frame_count",
               "stage s, entry 2 of data: a clip of 8 frames; this model takes 1 to 4");
    check_says(&c, "{source: videochat2, annotations: a.json, media: m, frames: 5}", "frames",
               "entry 1 of data: a.json: films of 5 frames");
    c.vision_encoder.ext_position = false;
    check_says(&c, "{frames: 2}", "frame_count", "this model takes 1 or 4");
    c.bridge.num_query_token = 30;
    check_says(&c, "{frames: 1}", NULL, NULL);
    check_says(&c, "{frames: 1, aids: questions}", "bad_slots", "30 query tokens");
    c.vision_encoder.img_size = 480;
    check_says(&c, "{frames: 1}", "bad_side", "480 pixels");
}

/* Of the second stage: nothing of the first is trained before. */
static void a_run_does_not_begin_with_a_stage_it_cannot_end(void **state)
{
    (void)state;
    static const char rest[] = "    losses: {language: 1}\n    groups:\n"
                               "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";
    char stages[2048];
    training_model(0);
    snprintf(stages, sizeof(stages),
             "  - name: first\n    steps: 1\n    data: [{frames: 1, conversations: 2}]\n%s"
             "  - name: later\n    steps: 1\n    data: [{frames: 1}, {frames: 8}]\n%s",
             rest, rest);
    training_recipe("r.yaml", stages);
    assert_int_equal(training_wait(training_start("r.yaml", "out", NULL, NULL), 60), 1);
    assert_true(training_says("out.err", "INVALID_ARGUMENT: stage later, entry 2 of data: a clip of 8 frames"));
    assert_false(training_says("out.log", "event=begin"));
}

/* --- ours ------------------------------------------------------------------------------------------------------------------------------- */

/* An ablation is its base but for what its name leaves out, and its mix has the kinds on which that aid acts. */
static void ablations_leave_out_one_aid_each(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        unsigned without;
        enum tpo_world_kind acts_on;
    } rows[] = {{"no-count", TPO_WORLD_AID_COUNT, TPO_KIND_COUNT},
                {"no-choice", TPO_WORLD_AID_CHOICE, TPO_KIND_CHOICE},
                {"no-told", TPO_WORLD_AID_TOLD, TPO_KIND_DESCRIPTION}};
    char path[4096];
    snprintf(path, sizeof(path), "%s/trainer/recipes/ablations/questions.yaml", tpo_test_source());
    struct tpo_recipe *base = recipe_of(path);
    const struct tpo_recipe_stage *b = &base->stages[base->n_stages - 1];
    assert_int_equal(b->steps, 700);
    assert_int_equal(b->data[0].draw.without, 0);
    assert_true(tpo_recipe_loss(b, "attention") > 0 && b->data[0].draw.aids == TPO_WORLD_AIDS_ALL);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        snprintf(path, sizeof(path), "%s/trainer/recipes/ablations/%s.yaml", tpo_test_source(), rows[i].name);
        struct tpo_recipe *r = recipe_of(path);
        assert_string_equal(r->name, rows[i].name);
        assert_int_equal(r->n_stages, base->n_stages);
        for (int s = 0; s < r->n_stages; s++) {
            assert_string_equal(r->stages[s].name, base->stages[s].name);
            assert_int_equal(r->stages[s].steps, base->stages[s].steps);
            assert_int_equal(r->stages[s].plan.n_losses, base->stages[s].plan.n_losses);
        }
        struct tpo_world_draw d = r->stages[r->n_stages - 1].data[0].draw;
        assert_int_equal(d.without, rows[i].without);
        assert_true(d.mix[rows[i].acts_on] > 0);
        d.without = 0;
        assert_memory_equal(d.mix, b->data[0].draw.mix, sizeof(d.mix));
        assert_int_equal(d.aids, b->data[0].draw.aids);
        assert_int_equal(d.n_conversations, b->data[0].draw.n_conversations);
        tpo_recipe_close(r);
    }
    tpo_recipe_close(base);
}

/* Nothing that reads words: embeddings stay as they are in the paper's stages. */
static void the_ladder_trains_no_embedding_in_the_papers_stages(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof(path), "%s/trainer/recipes/ladder.yaml", tpo_test_source());
    struct tpo_recipe *r = recipe_of(path);
    int n = 0;
    for (int i = 0; i < r->n_stages; i++) {
        const struct tpo_recipe_stage *s = &r->stages[i];
        if (strncmp(s->name, "stage-", 6) != 0) continue;
        n++;
        for (int g = 0; g < s->plan.n_groups; g++)
            for (int k = 0; k < s->groups[g].n_patterns; k++)
                assert_false(tpo_pattern_match(s->groups[g].patterns[k], "lm.base_model.model.model.embed_tokens.weight"));
        if (strcmp(s->name, "stage-1") != 0) continue;
        assert_int_equal(s->plan.n_groups, 1); /* LoRA alone */
        assert_true(tpo_pattern_match(s->groups[0].patterns[0], "lm.base_model.model.lm_head.lora_A.default.weight"));
        assert_float_equal(tpo_recipe_loss(s, "region"), 0, 0);
    }
    assert_int_equal(n, 3);
    tpo_recipe_close(r);
}

TPO_TESTS(cmocka_unit_test(keys_mean_the_same_in_any_order), cmocka_unit_test(a_mix_that_asks_nothing_is_refused),
          cmocka_unit_test(what_nothing_would_heed_is_refused), cmocka_unit_test(frozen_weights_stay_bf16_where_a_recipe_says_so),
          cmocka_unit_test(a_file_has_one_document), cmocka_unit_test(a_recipe_is_held_against_its_model),
          cmocka_unit_test(a_run_does_not_begin_with_a_stage_it_cannot_end), cmocka_unit_test(ablations_leave_out_one_aid_each),
          cmocka_unit_test(the_ladder_trains_no_embedding_in_the_papers_stages))
