/* refused.h -- what the tests of refusals share: a run of one stage, its mesh, and what it says when it is refused. */
#ifndef TPO_TESTS_MESH_REFUSED_H
#define TPO_TESTS_MESH_REFUSED_H

#include <time.h>
#include <unistd.h>

#include "tests/support/test.h"
#include "tests/support/training.h"

static const char stages[] = "  - name: talk\n"
                             "    steps: 8\n"
                             "    micro_batches: 2\n"
                             "    lanes: 2\n"
                             "    data:\n"
                             "      - {frames: 1, samples: 2, conversations: 2}\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups:\n"
                             "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";

static const char *const often[] = {"--checkpoint-every", "2", NULL};

static inline void prepare(struct training_mesh *m)
{
    training_model(0);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "whole", NULL, often);
    if (m != NULL) training_mesh_start(m, "served", 1, 2);
}

static inline void shell(const char *command)
{
    assert_int_equal(system(command), 0);
}

static inline void says_wait(const char *path, const char *text)
{
    for (int i = 0; i < 6000; i++) {
        if (access(path, R_OK) == 0 && training_says(path, text)) return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    fail_msg("%s never says %s", path, text);
}

static inline void recipe_refused(const char *recipe, const struct training_mesh *m, const char *out, const char *text,
                                  const char *const *more)
{
    char err[64];
    snprintf(err, sizeof(err), "%s.err", out);
    assert_int_equal(training_wait(training_start(recipe, out, m, more), 60), 1);
    if (!training_says(err, text)) fail_msg("%s does not say \"%s\"", err, text);
}

static inline void refused(const struct training_mesh *m, const char *out, const char *text, const char *const *more)
{
    recipe_refused("r.yaml", m, out, text, more);
}

#endif
