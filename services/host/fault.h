/* fault.h -- a process that kills or stops itself at a named point, so that tests can prove what a kill or a long sleep there leaves behind.
 *
 * `--fault POINT` or `--fault POINT:N`: SIGKILL to itself when the point is reached for the N-th time (1). `--fault POINT:N:stop`: SIGSTOP
 * instead, and it goes on from there at SIGCONT. Without the setting every point is one comparison. */
#ifndef TPO_SERVICES_HOST_FAULT_H
#define TPO_SERVICES_HOST_FAULT_H

#include "common/status.h"

/* clang-format off */
#define TPO_FAULT_MAP(X) \
    /* of a service, in a call of Learner */ \
    X(FORWARD_BEFORE, "forward_before")   \
    X(FORWARD_AFTER, "forward_after")     \
    X(BACKWARD_BEFORE, "backward_before") \
    X(BACKWARD_AFTER, "backward_after")   \
    X(GATHER, "gather")                   \
    X(SCATTER, "scatter")                 \
    X(NORMS, "norms")                     \
    X(PREPARE_BEFORE, "prepare_before")   \
    X(PREPARE_AFTER, "prepare_after")     \
    X(COMMIT_BEFORE, "commit_before")     \
    X(COMMIT_AFTER, "commit_after")       \
    X(ABORT, "abort")                     \
    X(EXPORT, "export")                   \
    X(IMPORT, "import")                   \
    X(PUBLISH, "publish")                 \
    X(BEGIN, "begin")                     \
    /* of the trainer */                  \
    X(AFTER_FORWARD, "after_forward")     \
    X(AFTER_BACKWARD, "after_backward")   \
    X(AFTER_NORMS, "after_norms")         \
    X(MID_PREPARE, "mid_prepare")         \
    X(AFTER_PREPARE, "after_prepare")     \
    X(MID_COMMIT, "mid_commit")           \
    X(AFTER_COMMIT, "after_commit")       \
    X(SHARD_WRITTEN, "shard_written")     \
    X(BEFORE_MANIFEST, "before_manifest") \
    X(AFTER_MANIFEST, "after_manifest")   \
    X(STAGE_END, "stage_end")             \
    X(MID_PUBLISH, "mid_publish")
/* clang-format on */
enum tpo_fault {
#define X(id, name) TPO_FAULT_##id,
    TPO_FAULT_MAP(X)
#undef X
        TPO_FAULTS,
};

/* "" or NULL: none. INVALID_ARGUMENT "fault" for a point that does not exist. Before threads start. */
int tpo_fault_set(const char *text, struct tpo_error *err);
/* Any thread. May not return. */
void tpo_fault_reach(enum tpo_fault point);

#endif
