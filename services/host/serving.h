/* serving.h -- the weights a service answers from: its model's parameters, turned to one version or another, and what publishing adds to them.
 *
 * Serving never reads training's buffers: what is published is copied, once, between two jobs. Everything here is the compute thread's. */
#ifndef TPO_SERVICES_HOST_SERVING_H
#define TPO_SERVICES_HOST_SERVING_H

#include "services/host/host.h"
#include "services/host/versions.h"

struct tpo_serving {
    struct tpo_host *host;
    struct tpo_stream *stream;
    struct tpo_params *params;
    struct tpo_snapshot *loaded; /* the folder's */
    const struct tpo_params *trainee;
    struct tpo_snapshot *untrained; /* where the trainee's tensors lay when it was opened */
};

/* Within the service's open, params loaded: version 0. Borrowed: stream, params. Tells the host the digest. */
int tpo_serving_open(struct tpo_serving *x, struct tpo_host *h, struct tpo_stream *s, struct tpo_params *params, const char *digest,
                     struct tpo_error *err);
/* Within open_learner, before a learner touches the trainee; its parameters are borrowed. */
int tpo_serving_train(struct tpo_serving *x, const struct tpo_params *trainee, struct tpo_error *err);
/* The committed weights of the trainee become the newest version. RESOURCE_EXHAUSTED "versions", FAILED_PRECONDITION "version" (versions.h). */
int tpo_serving_publish(struct tpo_serving *x, uint64_t version, struct tpo_error *err);
void tpo_serving_close(struct tpo_serving *x); /* accepts the half-opened; before stream and params go */

/* tpo_versions_take for a job: by its call's metadata, else by `field`. */
int tpo_serving_take(struct tpo_serving *x, const struct tpo_job *job, uint64_t field, struct tpo_version **out,
                     struct tpo_error *err);
/* The model's next passes read this version. */
void tpo_serving_use(struct tpo_serving *x, const struct tpo_version *version);

#endif
