/* A service's life in a process of its own: loading, a full queue, Status, a drain, and the ways it refuses to start. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "encoder.pb-c.h"
#include "services/host/host.h"
#include "status.pb-c.h"
#include "tests/support/test.h"

/* --- a service that sleeps; it runs in the forked process ------------------------------------------------------------------------------- */

static int run(void *self, struct tpo_job *job)
{
    Tpo__V1__EncodeRequest *q = (Tpo__V1__EncodeRequest *)job->message;
    Tpo__V1__EncodeReply reply = TPO__V1__ENCODE_REPLY__INIT;
    struct tpo_error err;
    (void)self;
    if (strcmp(q->media_id, "fail") == 0) {
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "no_good", "not this one");
        tpo_job_finish(job, &err);
        return TPO_OK;
    }
    for (int i = 0; strcmp(q->media_id, "slow") == 0 && i < 60 && !tpo_call_cancelled(job->call); i++) usleep(10000);
    reply.digest = q->media_id;
    tpo_call_send(job->call, &reply.base, NULL);
    tpo_job_finish(job, NULL);
    return TPO_OK;
}

static int open_model(void *self, struct tpo_host *h, struct tpo_error *err)
{
    (void)self;
    if (strcmp(tpo_host_settings(h)->model, "broken") == 0) return tpo_fail(err, TPO_NOT_FOUND, "model", "no such folder");
    tpo_host_set_digest(h, "feed");
    return TPO_OK;
}

static void close_model(void *self)
{
    (void)self;
}

static const struct tpo_host_method methods[] = {{"/tpo.v1.Encoder/Encode", &tpo__v1__encode_request__descriptor, false, run}};
static const struct tpo_host_service service = {.stage = "sleeper",
                                                .about = "Sleeps.",
                                                .default_port = 8499,
                                                .methods = methods,
                                                .n_methods = 1,
                                                .open = open_model,
                                                .close = close_model};

/* Forked before this process touches gRPC. */
static pid_t start(const char *flag, const char *value)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    char *argv[] = {"tpo-sleeper", "--listen", "127.0.0.1:0", "--port-file", "port",
                    "--drain",     "10s",      (char *)flag,  (char *)value, NULL};
    _exit(tpo_host_main(&service, 9, argv));
}

static int status_of(pid_t pid)
{
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

struct client {
    struct tpo_loop *loop;
    struct tpo_peers *peers;
};

static void client_open(struct client *c)
{
    struct tpo_error err;
    char address[64];
    int port = 0;
    for (int i = 0; i < 1000 && port == 0; i++) {
        FILE *in = fopen("port", "r");
        if (in == NULL)
            usleep(10000);
        else {
            assert_int_equal(fscanf(in, "%d", &port), 1);
            fclose(in);
        }
    }
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    assert_int_equal(tpo_loop_open(&c->loop, NULL, NULL, &err), TPO_OK);
    assert_int_equal(tpo_peers_open(&c->peers, c->loop, "sleeper", address, TPO_PICK_LEAST, &err), TPO_OK);
    for (int i = 0; i < 1000 && tpo_peers_ready(c->peers) == 0; i++) tpo_loop_wait(c->loop, 20);
    assert_int_equal(tpo_peers_ready(c->peers), 1);
}

static void client_close(struct client *c)
{
    tpo_peers_close(c->peers);
    tpo_loop_close(c->loop);
}

struct seen {
    int done, status;
    struct tpo_error err;
};

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct seen *s = owner;
    (void)r;
    *s = (struct seen){1, status, *err};
}

static void ask(struct client *c, const char *id, struct seen *s)
{
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct tpo_rpc_start how = {.path = "/tpo.v1.Encoder/Encode", .reply = &tpo__v1__encode_reply__descriptor, .timeout_ms = 20000};
    struct tpo_rpc_events on = {.owner = s, .on_message = on_message, .on_done = on_done};
    q.media_id = (char *)id;
    *s = (struct seen){0};
    assert_non_null(tpo_rpc_open(c->peers, &how, &q.base, NULL, &on, NULL));
}

static void wait_for(struct client *c, struct seen *s)
{
    for (int i = 0; i < 1000 && !s->done; i++) tpo_loop_wait(c->loop, 20);
    assert_true(s->done);
}

static Tpo__V1__StatusReply *status(struct client *c)
{
    Tpo__V1__StatusRequest q = TPO__V1__STATUS_REQUEST__INIT;
    struct tpo_rpc_start how = {.path = "/tpo.v1.Status/Get", .reply = &tpo__v1__status_reply__descriptor, .timeout_ms = 20000};
    ProtobufCMessage *reply;
    assert_int_equal(tpo_rpc_call(c->peers, &how, &q.base, NULL, &reply, NULL, NULL), TPO_OK);
    return (Tpo__V1__StatusReply *)reply;
}

static double counter(struct client *c, const char *name)
{
    Tpo__V1__StatusReply *reply = status(c);
    double value = -1;
    for (size_t i = 0; i < reply->n_counters; i++)
        if (strcmp(reply->counters[i]->name, name) == 0) value = reply->counters[i]->value;
    tpo__v1__status_reply__free_unpacked(reply, NULL);
    return value;
}

/* --- the cases ---------------------------------------------------------------------------------------------------------------------------- */

static void it_serves_and_tells_of_itself(void **state)
{
    (void)state;
    pid_t pid = start("--queue", "4");
    struct client c;
    struct seen s;
    client_open(&c);
    ask(&c, "quick", &s);
    wait_for(&c, &s);
    assert_int_equal(s.status, TPO_OK);
    ask(&c, "fail", &s);
    wait_for(&c, &s);
    assert_int_equal(s.status, TPO_INVALID_ARGUMENT);
    assert_string_equal(s.err.reason, "no_good");
    assert_string_equal(s.err.stage, "sleeper");
    Tpo__V1__StatusReply *reply = status(&c);
    assert_string_equal(reply->stage, "sleeper");
    assert_string_equal(reply->digest, "feed");
    assert_true(reply->ready);
    tpo__v1__status_reply__free_unpacked(reply, NULL);
    client_close(&c);
    kill(pid, SIGUSR1);
    kill(pid, SIGTERM);
    assert_int_equal(status_of(pid), 0);
}

static void a_full_queue_answers_at_once(void **state)
{
    (void)state;
    pid_t pid = start("--queue", "1");
    struct client c;
    struct seen s[8];
    int ok = 0, full = 0;
    client_open(&c);
    for (int i = 0; i < 8; i++) ask(&c, "slow", &s[i]);
    for (int i = 0; i < 8; i++) {
        wait_for(&c, &s[i]);
        if (s[i].status == TPO_OK) ok++;
        if (s[i].status != TPO_RESOURCE_EXHAUSTED) continue;
        assert_string_equal(s[i].err.reason, "queue_full");
        assert_true(s[i].err.retry_ms > 0);
        full++;
    }
    assert_in_range(ok, 1, 2); /* one runs, one waits */
    assert_int_equal(ok + full, 8);
    assert_int_equal((int)counter(&c, "tpo_admission_rejected_total"), full);
    client_close(&c);
    kill(pid, SIGTERM);
    assert_int_equal(status_of(pid), 0);
}

static void a_drain_ends_what_is_in_flight(void **state)
{
    (void)state;
    pid_t pid = start("--queue", "4");
    struct client c;
    struct seen s, late;
    client_open(&c);
    ask(&c, "slow", &s);
    for (int i = 0; i < 10; i++) tpo_loop_wait(c.loop, 10);
    kill(pid, SIGTERM);
    for (int i = 0; i < 500 && tpo_peers_ready(c.peers) == 1; i++) tpo_loop_wait(c.loop, 10);
    assert_int_equal(tpo_peers_ready(c.peers), 0);
    ask(&c, "quick", &late);
    wait_for(&c, &late);
    assert_int_equal(late.status, TPO_UNAVAILABLE);
    wait_for(&c, &s);
    assert_int_equal(s.status, TPO_OK);
    assert_int_equal(status_of(pid), 0);
    client_close(&c);
}

static void what_cannot_serve_does_not_start(void **state)
{
    (void)state;
    assert_int_equal(status_of(start("--model", "broken")), 1);
    assert_int_equal(status_of(start("--queue", "0")), 2);
    assert_int_equal(status_of(start("--no-such-flag", "1")), 2);
    assert_int_equal(status_of(start("--listen", "127.0.0.1:notaport")), 1);
}

TPO_TESTS(cmocka_unit_test(it_serves_and_tells_of_itself), cmocka_unit_test(a_full_queue_answers_at_once),
          cmocka_unit_test(a_drain_ends_what_is_in_flight), cmocka_unit_test(what_cannot_serve_does_not_start))
