/* versions.h -- the versions of its weights that a service answers from: the published one and the one before (docs/versions.md).
 *
 *   started with 0, the folder's:       [0]
 *   publish 1:                          [1 0]
 *   publish 2, once 0 is let go:        [2 1]        before that: RESOURCE_EXHAUSTED "versions", with retry_ms
 *
 * The older version is let go when no request runs on it and none has come for it for hold_ms, counted from when it was superseded at the
 * earliest: by then the deadline of every request that was stamped with it has passed. It stays until a third one needs its place. Numbers only
 * grow, and a number names one state of the weights for ever: publishing the newest once more does nothing.
 *
 * A request names its version by the metadata tpo-version, exactly ("0" is the folder's weights), or by its message's field, where 0 means the newest
 * held; the metadata goes first. FAILED_PRECONDITION "version" when it is not here. */
#ifndef TPO_SERVICES_HOST_VERSIONS_H
#define TPO_SERVICES_HOST_VERSIONS_H

#include "common/metrics.h"
#include "nn/snapshot.h"

#define TPO_VERSIONS_HELD 2

struct tpo_versions;

struct tpo_version {
    uint64_t number;
    struct tpo_snapshot *weights;
    char digest[72];
    /* under the lock of versions.c */
    int in_flight;
    int64_t wanted_us; /* a request asked for it last, or it was superseded */
};

/* metrics (borrowed; may be NULL) shows the newest as tpo_version. */
int tpo_versions_open(struct tpo_versions **out, int64_t hold_ms, struct tpo_metrics *metrics, struct tpo_error *err);
void tpo_versions_close(struct tpo_versions *v); /* accepts NULL; cleared before */

/* Compute thread. Takes the weights: those of the folder, once, before the service is ready. TPO_ENOMEM leaves them with the caller. */
int tpo_versions_start(struct tpo_versions *v, struct tpo_snapshot *take_weights, struct tpo_error *err);
/* Compute thread. Makes room for version `number`: TPO_OK, *held true when it is the newest already; FAILED_PRECONDITION "version" when it is
 * below. */
int tpo_versions_room(struct tpo_versions *v, uint64_t number, bool *held, struct tpo_stream *s, struct tpo_error *err);
/* Compute thread, after tpo_versions_room. Takes the weights; TPO_ENOMEM leaves them with the caller. */
int tpo_versions_add(struct tpo_versions *v, uint64_t number, struct tpo_snapshot *take_weights, struct tpo_error *err);

/* Compute thread, at the end: lets go of all of them. */
void tpo_versions_clear(struct tpo_versions *v, struct tpo_stream *s);

/* Any thread. A version that was taken keeps its weights until it is given back. `metadata` may be NULL. */
int tpo_versions_take(struct tpo_versions *v, const char *metadata, uint64_t field, struct tpo_version **out,
                      struct tpo_error *err);
void tpo_versions_give(struct tpo_versions *v, struct tpo_version *x); /* accepts NULL */
/* Any thread. Their numbers, newest first; how many. 0 before the start. */
int tpo_versions_list(struct tpo_versions *v, uint64_t out[TPO_VERSIONS_HELD]);

#endif
