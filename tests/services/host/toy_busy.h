/* toy_busy.h -- a toy with a queue of one place, and serving that keeps its compute thread: the first request has begun when ./busy is there, and
 * all end once ./go is. */
#ifndef TPO_TESTS_SERVICES_HOST_TOY_BUSY_H
#define TPO_TESTS_SERVICES_HOST_TOY_BUSY_H

#include <pthread.h>

#include "tests/services/host/toy_mesh.h"

static int on_work(void *self, struct tpo_job *job)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    (void)self;
    fclose(fopen("busy", "w"));
    while (access("go", F_OK) != 0) usleep(5000);
    tpo_call_send(job->call, &empty.base, NULL);
    tpo_job_finish(job, NULL);
    return TPO_OK;
}

static inline void mesh_open_busy(struct mesh *w)
{
    static const struct tpo_host_method methods[] = {{"/toy.Toy/Work", &tpo__v1__empty__descriptor, false, on_work}};
    service.methods = methods;
    service.n_methods = 1;
    setenv("TPO_QUEUE", "1", 1);
    mesh_open(w);
}

static void on_empty(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

/* A call that answers Empty, under way. */
static inline void call_begin(struct mesh *w, const char *path, const ProtobufCMessage *m, struct sums *s)
{
    const struct tpo_rpc_start how = {.path = path, .reply = &tpo__v1__empty__descriptor, .timeout_ms = 60000};
    const struct tpo_rpc_events on = {.owner = s, .on_message = on_empty, .on_done = on_sums_done};
    *s = (struct sums){0};
    assert_non_null(tpo_rpc_open(w->peers, &how, m, NULL, &on, NULL));
}

/* Serving asks for work; it returns once some has begun. */
static inline void work_begin(struct mesh *w, struct sums *s)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    call_begin(w, "/toy.Toy/Work", &empty.base, s);
    while (access("busy", F_OK) != 0) tpo_loop_wait(w->loop, 10);
}

static void *work_end(void *arg)
{
    (void)arg;
    usleep(500000);
    fclose(fopen("go", "w"));
    return NULL;
}

static inline pthread_t work_ends_later(void)
{
    pthread_t later;
    assert_int_equal(pthread_create(&later, NULL, work_end, NULL), 0);
    return later;
}

#endif
