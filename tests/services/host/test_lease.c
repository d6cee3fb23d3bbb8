/* The lease of a learner over loopback: two trainers, what the end of it leaves, numbers. */
#include "tests/services/host/toy_mesh.h"

static void two_trainers_exclude_one_another(void **state)
{
    (void)state;
    struct mesh w;
    int rc;
    const struct tpo_key key = key_of(1, 0, 0);
    mesh_open(&w);
    begin(&w);
    const uint64_t first = w.lease;
    assert_null(begin_share(&w, "other", 60000, 0, 0, &rc));
    refused(&w, rc, TPO_FAILED_PRECONDITION, "leased");
    assert_true(w.err.retry_ms > 0);
    begin(&w); /* the same one may, and what it sent before is void */
    assert_true(w.lease > first);
    const uint64_t second = w.lease;
    w.lease = first;
    refused(&w, forward(&w, &key, NULL, NULL), TPO_FAILED_PRECONDITION, "lease");
    w.lease = second;
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/End", &key), TPO_OK);
    Tpo__V1__BeginReply *reply = begin_share(&w, "other", 60000, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    mesh_close(&w);
}

/* Another trainer, as soon as it gets in. */
static Tpo__V1__BeginReply *take_over(struct mesh *w)
{
    Tpo__V1__BeginReply *reply = NULL;
    int rc = TPO_FAILED_PRECONDITION;
    for (int i = 0; i < 1000 && reply == NULL; i++) {
        reply = begin_share(w, "other", 60000, 0, 0, &rc);
        if (reply == NULL) usleep(10000);
    }
    assert_int_equal(rc, TPO_OK);
    return reply;
}

static void the_end_of_a_lease_frees_tapes(void **state)
{
    (void)state;
    struct mesh w;
    struct tpo_key key = key_of(1, 0, 0);
    int rc;
    mesh_open(&w);
    Tpo__V1__BeginReply *reply = begin_share(&w, "short", 3000, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    struct sums s;
    gather(&w, &key, &s);
    const uint64_t late = w.lease;
    reply = take_over(&w);
    gathered(&w, &s, TPO_ABORTED);
    assert_int_equal(reply->version, 0);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    const uint64_t own = w.lease;
    w.lease = late; /* the first one comes back */
    refused(&w, backward(&w, &key, NULL), TPO_FAILED_PRECONDITION, "lease");
    assert_null(begin_share(&w, "short", 3000, 0, 0, &rc));
    refused(&w, rc, TPO_FAILED_PRECONDITION, "leased");
    w.lease = own;
    refused(&w, backward(&w, &key, NULL), TPO_FAILED_PRECONDITION, "no_forward");
    mesh_close(&w);
}

#define LEASE_MS 3000
#define WORK_MS  3500 /* longer than the lease */

static int publish_slowly(void *self, uint64_t version, struct tpo_error *err)
{
    (void)self, (void)version, (void)err;
    usleep(WORK_MS * 1000);
    return TPO_OK;
}

/* What serving asks of the same thread. */
static int on_work(void *self, struct tpo_job *job)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    (void)self;
    usleep(WORK_MS * 1000);
    tpo_call_send(job->call, &empty.base, NULL);
    tpo_job_finish(job, NULL);
    return TPO_OK;
}

static void on_worked(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void work_begin(struct mesh *w, struct sums *s)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    const struct tpo_rpc_start how = {.path = "/toy.Toy/Work", .reply = &tpo__v1__empty__descriptor, .timeout_ms = 60000};
    const struct tpo_rpc_events on = {.owner = s, .on_message = on_worked, .on_done = on_sums_done};
    *s = (struct sums){0};
    assert_non_null(tpo_rpc_open(w->peers, &how, &empty.base, NULL, &on, NULL));
}

/* Work for the holder and work before its call take longer than the lease; it is not lost, nor are its tapes, nor can another trainer come in. */
static void long_work_does_not_cost_the_lease(void **state)
{
    (void)state;
    static const struct tpo_host_method methods[] = {{"/toy.Toy/Work", &tpo__v1__empty__descriptor, false, on_work}};
    struct mesh w;
    struct sums s;
    struct tpo_key key = key_of(1, 0, 0);
    Tpo__V1__PublishRequest q = TPO__V1__PUBLISH_REQUEST__INIT;
    Tpo__V1__Empty *answer;
    Tpo__V1__Key k;
    int rc;
    service.publish = publish_slowly;
    service.methods = methods;
    service.n_methods = 1;
    mesh_open(&w);
    Tpo__V1__BeginReply *reply = begin_share(&w, "short", LEASE_MS, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);

    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    tpo_key_pack(&k, &key, w.lease);
    q.key = &k, q.version = 1;
    assert_int_equal(call(&w, "/tpo.v1.Learner/Publish", &q.base, &tpo__v1__empty__descriptor, &answer), TPO_OK);
    protobuf_c_message_free_unpacked(&answer->base, NULL);
    assert_int_equal(backward(&w, &key, NULL), TPO_OK);

    key.micro_batch = 1;
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    work_begin(&w, &s);
    assert_int_equal(backward(&w, &key, NULL), TPO_OK);
    gathered(&w, &s, TPO_OK);

    work_begin(&w, &s);
    assert_null(begin_share(&w, "other", 60000, 0, 0, &rc));
    refused(&w, rc, TPO_FAILED_PRECONDITION, "leased");
    assert_true(w.err.retry_ms > 0);
    gathered(&w, &s, TPO_OK);
    mesh_close(&w);
}

static void a_prepared_step_outlives_its_trainer(void **state)
{
    (void)state;
    struct mesh w;
    struct tpo_key key = key_of(1, 0, 0);
    double squared[3];
    int rc;
    mesh_open(&w);
    Tpo__V1__BeginReply *reply = begin_share(&w, "short", 3000, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    for (; key.micro_batch < 4; key.micro_batch++) {
        assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
        assert_int_equal(backward(&w, &key, NULL), TPO_OK);
    }
    assert_int_equal(norms(&w, &key, squared), TPO_OK);
    assert_int_equal(prepare(&w, &key), TPO_OK);
    reply = take_over(&w);
    assert_int_equal(reply->prepared_step, 1);
    assert_int_equal(reply->committed_step, 0);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/Commit", &key), TPO_OK);
    begin_share(&w, "third", 60000, 0, 0, &rc);
    refused(&w, rc, TPO_FAILED_PRECONDITION, "leased");
    reply = begin_share(&w, "other", 60000, 0, 0, &rc);
    assert_int_equal(reply->version, 1);
    assert_int_equal(reply->committed_step, 1);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    mesh_close(&w);
}

/* A process that starts anew does not take the numbers of the one before for its own. */
static void leases_are_not_given_twice(void **state)
{
    (void)state;
    struct mesh one, two;
    const pid_t first = start("port", "--train", "");
    while (access("port", F_OK) != 0) usleep(1000); /* numbers begin with the date */
    const pid_t second = start("port2", "--train", "");
    connect_to(&one, first, "port");
    connect_to(&two, second, "port2");
    begin(&one);
    begin(&two);
    assert_true(one.lease != two.lease);
    mesh_close(&one);
    mesh_close(&two);
}

/* What the holder's next Begin answers; it is the highest lease then. */
static uint64_t own_since(struct mesh *w, const char *holder)
{
    const uint64_t before = w->lease;
    int rc;
    Tpo__V1__BeginReply *reply = begin_share(w, holder, 60000, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    assert_true(w->lease > before);
    const uint64_t since = reply->own_since;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return since;
}

/* However often a Begin was made, for a reply that was lost: a trainer that knows an earlier lease sees whether another has been here since. */
static void a_holder_learns_whether_another_was_here(void **state)
{
    (void)state;
    struct mesh w;
    const struct tpo_key key = key_of(1, 0, 0);
    mesh_open(&w);
    const uint64_t mine = own_since(&w, "me");
    assert_true(mine == w.lease);
    for (int i = 0; i < 3; i++) assert_true(own_since(&w, "me") == mine);
    const uint64_t known = w.lease;
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/End", &key), TPO_OK);
    assert_true(own_since(&w, "me") == mine);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/End", &key), TPO_OK);
    assert_true(own_since(&w, "other") == w.lease);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/End", &key), TPO_OK);
    assert_true(own_since(&w, "me") > known);
    assert_true(own_since(&w, "me") > known); /* the reply before was lost */
    mesh_close(&w);
}

TPO_TESTS(cmocka_unit_test(two_trainers_exclude_one_another), cmocka_unit_test(the_end_of_a_lease_frees_tapes),
          cmocka_unit_test(long_work_does_not_cost_the_lease), cmocka_unit_test(a_prepared_step_outlives_its_trainer),
          cmocka_unit_test(leases_are_not_given_twice), cmocka_unit_test(a_holder_learns_whether_another_was_here))
