/* host_private.h -- what host.c, compute.c and job.c share. */
#ifndef TPO_SERVICES_HOST_PRIVATE_H
#define TPO_SERVICES_HOST_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/queue.h"
#include "services/host/host.h"

struct tpo_learner_rpc;

/* One row of the server's table: which host a message belongs to. */
struct tpo_host_binding {
    struct tpo_host *host;
    const struct tpo_host_method *method;
    bool reserved; /* a learner's: its jobs may wait in the reserve */
};

/* loading -> ready -> draining, the last one; or loading -> failed. Written by the compute thread up to ready or failed, by main from
 * there on. */
enum tpo_host_state { TPO_HOST_LOADING, TPO_HOST_READY, TPO_HOST_DRAINING, TPO_HOST_FAILED };

struct tpo_host {
    const struct tpo_host_service *service;
    struct tpo_host_settings settings;
    struct tpo_server *server;
    struct tpo_queue *queue;
    struct tpo_metrics *metrics;
    pthread_t compute;
    _Atomic int state;               /* enum tpo_host_state */
    struct tpo_learner_rpc *learner; /* compute thread; NULL without --train */
    struct tpo_versions *versions;
    _Atomic int in_flight; /* what step said last */
    int64_t owed_until_us; /* compute thread: until then what is in flight comes before a learner's jobs */
    char digest[80];       /* written before ready, read after */
    int64_t started_us;
    struct tpo_method *methods;
    struct tpo_host_binding *bindings;
    int n_methods;
};

/* The compute thread: opens the model, then runs jobs and steps until the queue has ended. */
void *tpo_host_compute(void *host);
/* An on_message of the server's table that makes a job; owner is a binding. */
void tpo_host_on_message(void *binding, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload);
/* An on_message that answers Status; owner is the host. */
void tpo_host_on_status(void *host, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload);

#endif
