/* recover.h -- how a run finds its place: at its beginning, after a trainer came back, and after a service did (docs/mesh.md, Recovery).
 *
 * Begin tells each process' instance, version, prepared and committed step. A process that is not known to hold the run's state sends everybody
 * back to the last manifest, or to the start of the stage; else a step committed anywhere is committed everywhere; what is open besides is given
 * up. */
#ifndef TPO_TRAINER_STEPS_RECOVER_H
#define TPO_TRAINER_STEPS_RECOVER_H

#include "trainer/steps/checkpoint.h"
#include "trainer/steps/held.h"

struct tpo_recovery {
    struct tpo_crew *crew;
    struct tpo_held *held;
    const struct tpo_recipe *recipe;
    int stage;
    const char *stage_dir;
    struct tpo_stream *stream;       /* the models' */
    struct tpo_model *const *models; /* they hold the start of the stage */
    bool same_memory;                /* the learners train these very models: only shards need sending */
    const char *config, *tokenizer;  /* the SHA-256 (nn/config.h) that services must have; "": any */
    int threads;                     /* of one process, where Begin does not tell */
    int wait_ms;                     /* how long a service may be away */
    char late[256];                  /* the call that was too late last; tpo_recovery_stuck's */
};

/* A service is away or has lost what it knew of the step: recovery helps, and other errors it does not. */
bool tpo_recovery_helps(const struct tpo_error *err);

/* A call that needs longer than calls may take is late each time: at the second one in a row (`recoveries`: since the last step that was done) this
 * says so, in err, and recovery is of no use. */
bool tpo_recovery_stuck(struct tpo_recovery *r, int recoveries, struct tpo_error *err);

/* Begins the stage everywhere, once nothing in its folder is of another one (identity.h; Begin makes services forget another run), and brings all to
 * one state, c->step done and t->version theirs. Waits for services that are away, says so once.
 * `fresh`: in this run of the trainer the stage before has just ended everywhere, so that all hold the start of this one. */
int tpo_recovery_run(const struct tpo_recovery *r, bool fresh, struct tpo_checkpoint *c, struct tpo_error *err);

#endif
