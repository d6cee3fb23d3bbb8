/* crew.h -- the learners that a step is made of: each service is a set of replicas, and a replica owns an aligned subtree of the lanes.
 *
 * Every replica has a worker, the thread that speaks to it. Pipeline threads take micro-batches through the services, each along one route: the
 * replicas that a micro-batch meets, which its lane tells. A crew of one process has neither threads nor replicas, and runs the same code. */
#ifndef TPO_TRAINER_STEPS_CREW_H
#define TPO_TRAINER_STEPS_CREW_H

#include <stdatomic.h>

#include "nn/config.h"
#include "trainer/steps/recipe.h"
#include "trainer/steps/worker.h"

enum tpo_part { TPO_PART_ENCODER, TPO_PART_ROUTER, TPO_PART_REGION, TPO_PARTS };

#define TPO_REPLICAS_MAX 16

struct tpo_replica {
    struct tpo_learner learner; /* its worker's alone while that has a job */
    struct tpo_worker *worker;
    struct tpo_begun begun; /* what Begin answered last */
    uint64_t lease;         /* of the Begin before; 0: there was none */
    bool taken;             /* another trainer has begun there since: what it holds is not this run's */
};

/* A thread of a route, and its own handle of each replica there. */
struct tpo_pipeline_thread {
    struct tpo_worker *worker;
    struct tpo_learner learners[TPO_PARTS];
};

struct tpo_crew_options {
    const struct tpo_config *config;
    int n_replicas[TPO_PARTS]; /* powers of two; 0: there is none, for stages that need none */
    bool threaded;             /* false: one replica each, every call made by the caller */
    /* One more handle of a replica, for one thread. In a crew without threads it is asked once per replica. */
    int (*open)(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err);
    void *owner;
};

struct tpo_crew {
    struct tpo_crew_options options;
    const struct tpo_config *config;
    struct tpo_replica replicas[TPO_PARTS][TPO_REPLICAS_MAX];
    struct tpo_pipeline_thread *threads; /* n_routes * threads_per_route, those of route 0 first */
    int n_routes;                        /* the most replicas that a service has: what runs side by side */
    int threads_per_route;
    _Atomic bool *stop; /* set while a step is given up: calls that wait end with CANCELLED */
    struct tpo_collective *collective;
    /* of the stage */
    bool runs[TPO_PARTS];     /* whether the stage's losses need this part */
    int trainable[TPO_PARTS]; /* tensors, from Begin */
    char run[64];             /* what the services call it */
    uint64_t version;
    bool torn;        /* a Commit failed: some may have the step that others have only prepared, and recovery alone settles that */
    uint64_t aborted; /* steps given up because something was not finite */
    uint64_t published; /* the highest number of a version that any of them may serve */
};

extern const char *const tpo_part_names[TPO_PARTS];

/* INVALID_ARGUMENT "replicas" when their number is no power of two, or past TPO_REPLICAS_MAX. */
int tpo_crew_open(struct tpo_crew *t, const struct tpo_crew_options *o, struct tpo_error *err);
void tpo_crew_close(struct tpo_crew *t); /* accepts the half-built */

/* job for every replica, side by side; the first error in order of part and replica. */
typedef int (*tpo_replica_job)(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err);
int tpo_crew_each(struct tpo_crew *t, tpo_replica_job job, void *arg, struct tpo_error *err);

/* Whether stages first..end-1 of the recipe can be begun with models of these shapes, by part, nobody asked: INVALID_ARGUMENT "recipe" for one that trains
 * nothing, or as tpo_learner_state_check has it; FAILED_PRECONDITION "lanes" for fewer lanes than replicas, or fewer micro-batches than lanes of
 * several replicas; "mesh" where a service is needed and was not named. */
int tpo_crew_check(const struct tpo_crew *t, const struct tpo_recipe *r, int first, int end,
                   struct tpo_model *const models[TPO_PARTS], struct tpo_error *err);
/* Who runs and who trains in a stage, and Begin everywhere. The errors of tpo_crew_check for this stage, of what the services hold;
 * FAILED_PRECONDITION "stage" when an address is another service's. */
int tpo_crew_begin(struct tpo_crew *t, const struct tpo_recipe *r, int stage, const char *run, struct tpo_error *err);
/* Gives up whatever step is open, everywhere; the first error. */
int tpo_crew_abort(struct tpo_crew *t, struct tpo_error *err);
/* Ends the run everywhere; the first error. */
int tpo_crew_end(struct tpo_crew *t, struct tpo_error *err);

#endif
