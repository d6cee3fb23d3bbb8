/* host.h -- runs any model as a service: settings, listening, a bounded queue, one compute thread, readiness, drain.
 *
 *   int main(int argc, char **argv) { return tpo_host_main(&service, argc, argv); }
 *
 * Threads: main reads settings and waits for signals; the completion-queue thread owns calls; ONE compute thread owns the model: open, warm_up,
 * jobs, step and close run there. Between the two lies the queue: a job that finds it full is answered RESOURCE_EXHAUSTED "queue_full" at once;
 * a learner's finds TPO_HOST_RESERVE places more, so that no load of serving keeps a trainer out.
 * Where a service steps, what is in flight moves on after a learner's job for as long as that took, and a job that waits for room keeps no
 * learner's out: each has half of the process while both have something to do.
 * SERVING only after open and warm_up; before, calls get UNAVAILABLE "loading". SIGTERM or SIGINT: NOT_SERVING, no new calls, those in flight end
 * within --drain, exit 0. SIGUSR1 logs live state. Other programs are started with posix_spawn, never fork: gRPC does not survive it. */
#ifndef TPO_SERVICES_HOST_HOST_H
#define TPO_SERVICES_HOST_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/rpc/server.h"
#include "common/settings.h"

/* Jobs that may wait beyond --queue: more than the calls that one trainer has on their way to one process. */
#define TPO_HOST_RESERVE 64

struct tpo_host;
struct tpo_learner;  /* learner.h */
struct tpo_versions; /* versions.h */

/* Settings that every service has; filled before anything else runs. */
struct tpo_host_settings {
    const char *listen;    /* --listen 127.0.0.1:PORT; port 0 takes a free one: event=listening port=N */
    const char *port_file; /* --port-file FILE: the bound port, written whole once listening; "" none */
    const char *model;     /* --model DIR */
    const char *device;    /* --device cpu|cuda|auto */
    const char *check;     /* --check DIR: check that folder, print, exit; "" serve */
    const char *log_level;
    const char *dtype; /* --dtype f32|bf16: how products' weights lie in memory */
    bool train;        /* --train: offer the Learner service */
    const char *fault; /* --fault POINT:N, of fault.h; "" none */
    int64_t threads;   /* --threads; 0: every core */
    int64_t queue;     /* --queue: jobs that may wait */
    int64_t drain_ms;
    int64_t version_hold_ms; /* --version-hold: a version stays this long after another took its place */
    int64_t max_message_bytes;
};

/* A piece of work for the compute thread. A host method's job comes with its call; whoever holds it ends it with tpo_job_finish, from any thread. A
 * service may also submit jobs of its own making (run and user set, zero elsewhere), whose memory stays its own. */
struct tpo_job {
    /* TPO_OK: taken. TPO_UNAVAILABLE: not now (a pool is full): it stays first in the queue and is tried again after the next
     * step. Nothing else is returned: an error is told with tpo_job_finish. */
    int (*run)(void *self, struct tpo_job *job);
    void *user;
    struct tpo_call *call;      /* NULL in a service's own */
    ProtobufCMessage *message;  /* the request, freed with the job */
    struct tpo_payload payload; /* its tensor; zeroed when there is none */
    double queue_ms;            /* how long it waited; set before run */
    int64_t queued_us, run_us;  /* tpo_now_us of submit and of the first run */
    struct tpo_host *host;
    int wants;     /* the service's: how much room it was found to need when it had to wait; 0 at first */
    bool owned;    /* the host's to free */
    bool reserved; /* the reserve is open to it */
};
/* Ends the job's call and frees the job. err NULL or code TPO_OK: all went well. Counted in the service's metrics. */
void tpo_job_finish(struct tpo_job *job, const struct tpo_error *err);
/* Since run began, in ms. */
double tpo_job_run_ms(const struct tpo_job *job);

/* A method that is nothing but a job: unary or server-streaming. A job whose call was cancelled while it waited is dropped unseen. */
struct tpo_host_method {
    const char *path; /* "/tpo.v1.Router/Generate" */
    const ProtobufCMessageDescriptor *request;
    bool payload; /* the request carries a Tensor in field 15 */
    int (*run)(void *self, struct tpo_job *job);
};

struct tpo_host_service {
    const char *stage;            /* "router"; the program is tpo-STAGE */
    const char *about, *examples; /* for --help */
    int default_port;
    const struct tpo_setting *settings; /* its own, beside the host's */
    int n_settings;
    const struct tpo_host_method *methods;
    int n_methods;
    const struct tpo_method
        *raw_methods; /* its own, on the completion-queue thread (Media.Put, a cached Encode); owner is set to self */
    int n_raw_methods;
    void *self; /* handed to all of these */
    /* May be NULL. Main thread, settings read, server not started yet: start helpers. */
    int (*prepare)(void *self, struct tpo_host *h, struct tpo_error *err);
    int (*open)(void *self, struct tpo_host *h, struct tpo_error *err); /* compute thread: map and check weights */
    int (*warm_up)(void *self, struct tpo_error *err);                  /* compute thread: one pass; may be NULL */
    /* Both may be NULL: nothing to train, no versions. Compute thread, only with --train: the learner of this service's model, after open; the committed
     * weights of it, served as `version` from now on. */
    int (*open_learner)(void *self, struct tpo_learner *out, struct tpo_error *err);
    int (*publish)(void *self, uint64_t version, struct tpo_error *err);
    int (*step)(
        void *self); /* NULL: every job is whole when run returns. Compute thread: moves what is in flight; how many still are */
    void (*close)(void *self); /* compute thread, after the drain; accepts the half-opened */
    /* --check DIR, main thread: prints to stdout, returns the exit status. */
    int (*check)(void *self, const char *dir);
    void (*print_state)(void *self); /* may be NULL. Main thread, on SIGUSR1: read atomics only */
};

/* Everything from argv to the exit status. */
int tpo_host_main(const struct tpo_host_service *service, int argc, char **argv);

const struct tpo_host_settings *tpo_host_settings(const struct tpo_host *h);
struct tpo_metrics *tpo_host_metrics(struct tpo_host *h); /* count here: Status tells all of it */
/* Any thread. RESOURCE_EXHAUSTED "queue_full" (retry_ms set), UNAVAILABLE "loading" or "draining"; then the job is still the caller's. */
int tpo_host_submit(struct tpo_host *h, struct tpo_job *job, struct tpo_error *err);
/* Of the tensors owned; told by Status and put into replies. Compute thread, within open. */
void tpo_host_set_digest(struct tpo_host *h, const char *digest);
const char *tpo_host_digest(const struct tpo_host *h);
bool tpo_host_ready(const struct tpo_host *h);
struct tpo_versions *tpo_host_versions(struct tpo_host *h); /* what Status tells; filled by serving.h */

#endif
