/* Proves that a run does not begin whose recipe has, in any of its stages, a group without tensors or with tensors that its optimiser does not take,
 * two groups of one name, or nothing to train. */
#include <stdio.h>

#include "tests/support/test.h"
#include "tests/support/training.h"

#define STAGE(name, group_1, group_2)                                                                                              \
    "  - name: " name "\n"                                                                                                         \
    "    steps: 1\n"                                                                                                               \
    "    data: [{frames: 1, samples: 1, conversations: 0, dense: true}]\n"                                                         \
    "    losses: {dense: 1}\n"                                                                                                     \
    "    groups:\n"                                                                                                                \
    "      - {" group_1 "}\n"                                                                                                      \
    "      - {" group_2 "}\n"

#define EYES "name: eyes, rate: 1e-3, tensors: ['vision_*', 'ext.encoder.*']"
#define LM   "name: lm, rate: 1e-3, tensors: ['lm.*']"

static void groups_own_tensors_that_fit_and_have_names_of_their_own(void **state)
{
    (void)state;
    static const struct {
        const char *stages, *says; /* NULL: it runs */
    } cases[] = {
        {STAGE("see", EYES, "name: b, rate: 1, tensors: ['vison_*']"), "stage see: group b owns no tensor"},
        {STAGE("see", "name: a, rate: 1, tensors: ['*']", EYES), "stage see: group eyes owns no tensor"},
        {STAGE("see", "rate: 1, tensors: ['nothing']", EYES), "stage see: group 1 owns no tensor"},
        {STAGE("see", EYES, LM) STAGE("talk", EYES, "name: b, rate: 1, tensors: ['ml.*']"), "stage talk: group b owns no tensor"},
        {STAGE("see", EYES, LM) STAGE("talk", "name: m, optimiser: muon, rate: 1, tensors: ['vision_*']", LM),
         "stage talk: vision_"},
        {STAGE("see", EYES, LM) STAGE("talk", "name: m, optimiser: muon, rate: 1, tensors: ['vision_*qkv.weight'], split: 7", LM),
         "rows are not divisible by split 7"},
        {STAGE("see", EYES, LM) STAGE("talk", LM, "name: head, rate: 1, tensors: ['loc_decoder.*']"), "stage talk trains nothing"},
        {STAGE("see", EYES, "name: eyes, rate: 1, tensors: ['lm.*']"), "two groups are named eyes"},
        {STAGE("see", EYES, LM), NULL}};
    training_model(0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char out[16], path[32];
        snprintf(out, sizeof(out), "out-%zu", i);
        training_recipe("r.yaml", cases[i].stages);
        const int status = training_wait(training_start("r.yaml", out, NULL, NULL), 60);
        snprintf(path, sizeof(path), "%s.err", out);
        if (status != (cases[i].says != NULL)) fail_msg("case %zu ends with %d", i, status);
        if (status == 0) continue;
        assert_true(training_says(path, "INVALID_ARGUMENT"));
        if (!training_says(path, cases[i].says)) fail_msg("%s does not say \"%s\"", path, cases[i].says);
        snprintf(path, sizeof(path), "%s.log", out);
        assert_false(training_says(path, "event=begin"));
    }
}

TPO_TESTS(cmocka_unit_test(groups_own_tensors_that_fit_and_have_names_of_their_own))
