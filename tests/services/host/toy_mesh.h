/* toy_mesh.h -- a toy's learner over loopback, in a process of its own: how it starts and ends, and its calls. */
#ifndef TPO_TESTS_SERVICES_HOST_TOY_MESH_H
#define TPO_TESTS_SERVICES_HOST_TOY_MESH_H

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "services/host/host.h"
#include "services/host/learner_wire.h"
#include "tests/services/host/toy.h"

/* --- the service, in the forked process ------------------------------------------------------------------------------------------------- */

static struct toy served;

static int open_model(void *self, struct tpo_host *h, struct tpo_error *err)
{
    (void)self, (void)err;
    toy_open(&served, 1);
    tpo_host_set_digest(h, "feed");
    return TPO_OK;
}

static int open_learner(void *self, struct tpo_learner *out, struct tpo_error *err)
{
    (void)self, (void)err;
    *out = served.learner;
    return TPO_OK;
}

static void close_model(void *self)
{
    (void)self;
    tpo_params_free(&served.params, served.stream);
    tpo_stream_close(served.stream);
}

/* A case may give it more before it starts. */
static struct tpo_host_service service = {.stage = "toy",
                                          .about = "Learns.",
                                          .default_port = 8498,
                                          .open = open_model,
                                          .open_learner = open_learner,
                                          .close = close_model};

struct mesh {
    pid_t pid;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    uint64_t lease;
    struct tpo_arena arena; /* of replies */
    struct tpo_error err;   /* of the last call */
};

/* Forked before this process touches gRPC. */
static inline pid_t start(const char *port, const char *train, const char *fault)
{
    mkdir("model", 0755);
    FILE *f = fopen("model/config.json", "w");
    assert_non_null(f);
    fputs("{}", f);
    fclose(f);
    const pid_t pid = fork();
    if (pid != 0) return pid;
    char *argv[] = {"tpo-toy", "--listen",    "127.0.0.1:0", "--port-file", (char *)port,  "--model", "model", "--drain",
                    "10s",     (char *)train, "--fault",     (char *)fault, "--log-level", "error",   NULL};
    _exit(tpo_host_main(&service, 14, argv));
}

static inline void connect_to(struct mesh *w, pid_t pid, const char *port_file)
{
    char address[64];
    int port = 0;
    *w = (struct mesh){.pid = pid};
    tpo_arena_init(&w->arena, 1 << 16, 0);
    for (int i = 0; i < 2000 && port == 0; i++) {
        FILE *in = fopen(port_file, "r");
        if (in != NULL && fscanf(in, "%d", &port) != 1) port = 0;
        if (in != NULL) fclose(in);
        if (port == 0) usleep(10000);
    }
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    assert_int_equal(tpo_loop_open(&w->loop, NULL, NULL, &w->err), TPO_OK);
    assert_int_equal(tpo_peers_open(&w->peers, w->loop, "toy", address, TPO_PICK_LEAST, &w->err), TPO_OK);
    for (int i = 0; i < 2000 && tpo_peers_ready(w->peers) == 0; i++) tpo_loop_wait(w->loop, 20);
    assert_int_equal(tpo_peers_ready(w->peers), 1);
}

static inline void mesh_open(struct mesh *w)
{
    connect_to(w, start("port", "--train", ""), "port");
}

static inline int ended(struct mesh *w)
{
    int status = -1;
    tpo_peers_close(w->peers);
    tpo_loop_close(w->loop);
    tpo_arena_free(&w->arena);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    return status;
}

static inline void mesh_close(struct mesh *w)
{
    kill(w->pid, SIGTERM);
    const int status = ended(w);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* --- calls --------------------------------------------------------------------------------------------------------------------------------- */

static inline int call(struct mesh *w, const char *path, const ProtobufCMessage *m, const ProtobufCMessageDescriptor *type,
                       void *reply)
{
    const struct tpo_rpc_start how = {.path = path, .reply = type, .timeout_ms = 60000};
    w->err = (struct tpo_error){0};
    *(void **)reply = NULL;
    return tpo_rpc_call(w->peers, &how, m, NULL, (ProtobufCMessage **)reply, NULL, &w->err);
}

/* A call that answers Empty. */
static inline int tell(struct mesh *w, const char *path, const ProtobufCMessage *m)
{
    Tpo__V1__Empty *reply;
    const int rc = call(w, path, m, &tpo__v1__empty__descriptor, &reply);
    if (reply != NULL) protobuf_c_message_free_unpacked(&reply->base, NULL);
    return rc;
}

static inline void refused(struct mesh *w, int rc, int code, const char *reason)
{
    if (rc != code || strcmp(w->err.reason, reason) != 0)
        fail_msg("%d %s (%s), want %d %s", rc, w->err.reason, w->err.message, code, reason);
}

/* What Begin replies, the caller's to free; NULL and *rc where it is refused. */
static inline Tpo__V1__BeginReply *begin_share(struct mesh *w, const char *holder, uint32_t lease_ms, int first, int own, int *rc)
{
    struct tpo_plan plan = plan_of(2, 4);
    Tpo__V1__BeginRequest q = TPO__V1__BEGIN_REQUEST__INIT;
    Tpo__V1__BeginReply *reply;
    plan.first_lane = first, plan.own_lanes = own;
    q.run = "run";
    q.holder = (char *)holder;
    q.lease_ms = lease_ms;
    q.plan = tpo_plan_pack(&w->arena, &plan);
    *rc = call(w, "/tpo.v1.Learner/Begin", &q.base, &tpo__v1__begin_reply__descriptor, &reply);
    if (*rc == TPO_OK) w->lease = reply->lease;
    return reply;
}

static inline void begin(struct mesh *w)
{
    int rc;
    Tpo__V1__BeginReply *reply = begin_share(w, "me", 60000, 0, 0, &rc);
    if (rc != TPO_OK) fail_msg("%s", w->err.message);
    assert_int_equal(reply->trainable, 3);
    assert_int_equal(reply->version, 0);
    assert_string_equal(reply->stage, "toy");
    assert_int_equal(strlen(reply->config), 64);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
}

static inline int forward(struct mesh *w, const struct tpo_key *key, float *y, float *loss)
{
    Tpo__V1__ForwardRequest q = TPO__V1__FORWARD_REQUEST__INIT;
    Tpo__V1__ForwardReply *reply;
    Tpo__V1__Key k;
    char *wants[] = {"x"};
    struct toy_batch b;
    toy_batch(&b, key);
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    q.wants = wants, q.n_wants = 1;
    q.samples = tpo_samples_pack(&w->arena, &b.sample, 1, true), q.n_samples = 1;
    q.tensors = tpo_tensors_pack(&w->arena, &b.input, 1), q.n_tensors = 1;
    const int rc = call(w, "/tpo.v1.Learner/Forward", &q.base, &tpo__v1__forward_reply__descriptor, &reply);
    if (rc != TPO_OK) return rc;
    assert_int_equal(reply->n_tensors, 1);
    assert_int_equal(reply->n_losses, 1);
    assert_int_equal(reply->tensors[0]->tensor->data.len, sizeof(float) * ROWS * 3);
    if (y != NULL) memcpy(y, reply->tensors[0]->tensor->data.data, sizeof(float) * ROWS * 3);
    if (loss != NULL) *loss = reply->losses[0]->value;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return TPO_OK;
}

static inline int backward(struct mesh *w, const struct tpo_key *key, float *dx)
{
    Tpo__V1__BackwardRequest q = TPO__V1__BACKWARD_REQUEST__INIT;
    Tpo__V1__BackwardReply *reply;
    Tpo__V1__Key k;
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    const int rc = call(w, "/tpo.v1.Learner/Backward", &q.base, &tpo__v1__backward_reply__descriptor, &reply);
    if (rc != TPO_OK) return rc;
    assert_int_equal(reply->n_gradients, 1);
    assert_int_equal(reply->gradients[0]->tensor->data.len, sizeof(float) * ROWS * IN);
    if (dx != NULL) memcpy(dx, reply->gradients[0]->tensor->data.data, sizeof(float) * ROWS * IN);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return TPO_OK;
}

/* Commit, Abort, End: a key in, nothing out. */
static inline int step_call(struct mesh *w, const char *path, const struct tpo_key *key)
{
    Tpo__V1__StepRequest q = TPO__V1__STEP_REQUEST__INIT;
    Tpo__V1__Key k;
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    return tell(w, path, &q.base);
}

/* Scatter and Import; NULL ends what was sent. */
static inline int chunk_call(struct mesh *w, const char *path, const struct tpo_key *key, const struct tpo_chunk *x)
{
    Tpo__V1__Chunk m;
    Tpo__V1__Key k;
    int64_t shape[TPO_DIMS_MAX];
    tpo_chunk_pack(&m, x, shape);
    tpo_key_pack(&k, key, w->lease);
    m.key = &k;
    return tell(w, path, &m.base);
}

static inline int norms(struct mesh *w, const struct tpo_key *key, double *squared)
{
    Tpo__V1__StepRequest q = TPO__V1__STEP_REQUEST__INIT;
    Tpo__V1__NormsReply *reply;
    Tpo__V1__Key k;
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    const int rc = call(w, "/tpo.v1.Learner/Norms", &q.base, &tpo__v1__norms_reply__descriptor, &reply);
    if (rc != TPO_OK) return rc;
    assert_int_equal(reply->n_norms, 3);
    for (int i = 0; i < 3; i++) squared[i] = reply->norms[i]->squared;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return TPO_OK;
}

static inline int prepare(struct mesh *w, const struct tpo_key *key)
{
    Tpo__V1__PrepareRequest q = TPO__V1__PREPARE_REQUEST__INIT;
    Tpo__V1__Key k;
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    q.clip = .5f;
    q.rates = (float *)rates, q.n_rates = 2;
    return tell(w, "/tpo.v1.Learner/Prepare", &q.base);
}

/* --- a Gather that is under way ------------------------------------------------------------------------------------------------------------ */

struct sums {
    float values[WEIGHTS];
    int n, done, status;
};

static void on_chunk(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct sums *s = owner;
    const Tpo__V1__Chunk *c = (const Tpo__V1__Chunk *)message;
    (void)r;
    assert_string_equal(c->part, "gradient");
    const int at = strcmp(c->name, "toy.w1.weight") == 0 ? 0 : strcmp(c->name, "toy.w1.bias") == 0 ? WIDE * IN : WIDE * IN + WIDE;
    memcpy(s->values + at, c->data.data, c->data.len);
    s->n += (int)(c->data.len / sizeof(float));
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void on_sums_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct sums *s = owner;
    (void)r, (void)err;
    s->status = status;
    s->done = 1;
}

static inline struct tpo_rpc *gather(struct mesh *w, const struct tpo_key *key, struct sums *s)
{
    Tpo__V1__GatherRequest q = TPO__V1__GATHER_REQUEST__INIT;
    Tpo__V1__Key k;
    const struct tpo_rpc_start how = {.path = "/tpo.v1.Learner/Gather", .reply = &tpo__v1__chunk__descriptor, .timeout_ms = 60000};
    const struct tpo_rpc_events on = {.owner = s, .on_message = on_chunk, .on_done = on_sums_done};
    *s = (struct sums){0};
    tpo_key_pack(&k, key, w->lease);
    q.key = &k;
    struct tpo_rpc *r = tpo_rpc_open(w->peers, &how, &q.base, NULL, &on, NULL);
    assert_non_null(r);
    return r;
}

static inline void gathered(struct mesh *w, struct sums *s, int status)
{
    for (int i = 0; i < 1000 && !s->done; i++) tpo_loop_wait(w->loop, 20);
    assert_true(s->done);
    assert_int_equal(s->status, status);
}

#endif
