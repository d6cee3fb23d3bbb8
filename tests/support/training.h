/* training.h -- a very small model, a mesh of real services that train it, and real trainers, for the tests of training over a mesh. Everything
 * lies in the case's own directory; failures abort the case. */
#ifndef TPO_TESTS_TRAINING_H
#define TPO_TESTS_TRAINING_H

#include <stdbool.h>
#include <sys/types.h>

enum { TRAINING_ENCODER, TRAINING_ROUTER, TRAINING_REGION, TRAINING_SERVICES };
#define TRAINING_REPLICAS 8

/* ./tiny (config and tokenizer, dropouts as given) and ./served (random weights of another seed than any recipe's). */
void training_model(double dropout);
/* tpo model export FROM TO --dtype DTYPE. */
void training_export(const char *from, const char *to, const char *dtype);
/* NAME: a recipe of ./tiny with these stages. */
void training_recipe(const char *name, const char *stages);
/* The same with one piece of its whole text in place of another. */
void training_recipe_with(const char *name, const char *stages, const char *piece, const char *instead);

struct training_mesh {
    const char *model;
    int threads; /* of each service's team */
    int n[TRAINING_SERVICES], ports[TRAINING_SERVICES][TRAINING_REPLICAS];
    pid_t pids[TRAINING_SERVICES][TRAINING_REPLICAS]; /* 0: not running */
};

/* All services, ready; n of each, with teams of `threads`. Without a cache, unless TPO_CACHE names one. */
void training_mesh_start(struct training_mesh *m, const char *model, int n, int threads);
/* n[] of each. */
void training_mesh_start_each(struct training_mesh *m, const char *model, const int n[TRAINING_SERVICES], int threads);
void training_mesh_stop(struct training_mesh *m);
/* Ends one with SIGKILL (if it lives) and starts it anew on its port, with `fault` as its --fault unless NULL. */
void training_mesh_renew(struct training_mesh *m, int service, int replica, const char *fault);
/* Whether it has died since; it is reaped then. */
bool training_mesh_died(struct training_mesh *m, int service, int replica);
/* As --mesh takes it. */
const char *training_mesh_text(const struct training_mesh *m);

/* Starts tpo-trainer train RECIPE --out OUT ... with two threads; mesh NULL: one process; more: further words, NULL ends them. stdout is appended
 * to OUT.log, stderr to OUT.err. */
pid_t training_start(const char *recipe, const char *out, const struct training_mesh *m, const char *const *more);
/* Exit status, or 128 + signal. Ends the case when it takes longer than tpo_test_limit_s(usual_s). */
int training_wait(pid_t pid, double usual_s);
/* start, wait, and success is demanded. */
void training_run(const char *recipe, const char *out, const struct training_mesh *m, const char *const *more);
/* The same, through deaths of services: who dies is started again, without a fault. How many died. */
int training_through(const char *recipe, const char *out, struct training_mesh *m, const char *const *more);

/* The model of stage folder `stage` ("1-see") is the same file in both. */
void training_same_model(const char *out_a, const char *out_b, const char *stage);
/* Every step's line tells the same losses, norms, clip and rate. */
void training_same_lines(const char *out_a, const char *out_b);
/* Every one of the stage's `steps` steps tells the same losses, norms, clip and rates by their f32 bits, as its event file holds them. A loss
 * there is the mean of the step's micro-batches. */
void training_same_bits(const char *out_a, const char *out_b, const char *stage, int steps);
/* Whether a file holds a text. */
bool training_says(const char *path, const char *text);

#endif
