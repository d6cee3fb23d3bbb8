/* The Learner service over loopback, in a process of its own: the same bits as direct calls, calls that come twice, what is refused, faults. */
#include "tests/services/host/toy_busy.h"
#include "tests/support/raw_call.h"

/* What a step shows to its trainer. */
struct seen {
    float loss[4], y[4][ROWS * 3], dx[4][ROWS * IN];
    double squared[3];
};

static void step_over_mesh(struct mesh *w, uint64_t number, int times, struct seen *s)
{
    struct tpo_key key = key_of(number, number - 1, 0);
    for (uint32_t m = 0; m < 4; m++) {
        key.micro_batch = m;
        for (int k = 0; k < times; k++) assert_int_equal(forward(w, &key, s->y[m], &s->loss[m]), TPO_OK);
        for (int k = 0; k < times; k++) assert_int_equal(backward(w, &key, s->dx[m]), TPO_OK);
    }
    for (int k = 0; k < times; k++) assert_int_equal(norms(w, &key, s->squared), TPO_OK);
    for (int k = 0; k < times; k++) assert_int_equal(prepare(w, &key), TPO_OK);
    for (int k = 0; k < times; k++) assert_int_equal(step_call(w, "/tpo.v1.Learner/Commit", &key), TPO_OK);
}

static void step_direct(struct toy *y, uint64_t number, struct seen *s)
{
    struct tpo_learner *l = &y->learner;
    struct tpo_key key = key_of(number, number - 1, 0);
    struct tpo_forwarded f;
    struct tpo_named_tensor dx[TPO_PORTS_MAX];
    const struct tpo_norm *squared;
    struct toy_batch b;
    static const char *const wants[] = {"x"};
    int n;
    for (uint32_t m = 0; m < 4; m++) {
        key.micro_batch = m;
        toy_batch(&b, &key);
        assert_int_equal(l->forward(l->self, &key, &b.sample, 1, &b.input, 1, wants, 1, &f, NULL), TPO_OK);
        assert_int_equal(l->backward(l->self, &key, NULL, 0, dx, &n, NULL), TPO_OK);
        s->loss[m] = f.losses[0].value;
        memcpy(s->y[m], f.outputs[0].data, sizeof(s->y[m]));
        memcpy(s->dx[m], dx[0].data, sizeof(s->dx[m]));
    }
    assert_int_equal(l->norms(l->self, &key, &squared, &n, NULL), TPO_OK);
    for (int i = 0; i < 3; i++) s->squared[i] = squared[i].squared;
    assert_int_equal(l->prepare(l->self, &key, .5f, rates, 2, NULL), TPO_OK);
    assert_int_equal(l->commit(l->self, &key, NULL), TPO_OK);
}

/* Every part of the state, over the mesh and in this process. */
static void same_state(struct mesh *w, struct toy *y, uint64_t version)
{
    struct tpo_chunk x;
    for (uint32_t at = 0;; at++) {
        Tpo__V1__ExportRequest q = TPO__V1__EXPORT_REQUEST__INIT;
        Tpo__V1__Chunk *reply;
        Tpo__V1__Key k;
        const struct tpo_key key = key_of(0, version, 0);
        tpo_key_pack(&k, &key, w->lease);
        q.key = &k, q.at = at, q.most = 1000;
        assert_int_equal(call(w, "/tpo.v1.Learner/Export", &q.base, &tpo__v1__chunk__descriptor, &reply), TPO_OK);
        assert_int_equal(y->learner.export_state(y->learner.self, (int)at, 0, 1000, &x, NULL), TPO_OK);
        assert_string_equal(reply->name, x.name != NULL ? x.name : "");
        if (x.name != NULL) {
            assert_string_equal(reply->part, x.part);
            assert_int_equal(reply->data.len, (size_t)x.count * sizeof(float));
            assert_memory_equal(reply->data.data, x.data, reply->data.len);
        }
        protobuf_c_message_free_unpacked(&reply->base, NULL);
        if (x.name == NULL) break;
        assert_true(at < 100);
    }
}

static void compare_steps(int times)
{
    struct mesh w;
    struct toy y;
    struct tpo_plan plan = plan_of(2, 4);
    struct tpo_begun begun;
    mesh_open(&w);
    begin(&w);
    toy_open(&y, 1);
    assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, NULL), TPO_OK);
    for (uint64_t s = 1; s <= 5; s++) {
        struct seen mesh = {0}, direct = {0};
        step_over_mesh(&w, s, times, &mesh);
        step_direct(&y, s, &direct);
        assert_memory_equal(&mesh, &direct, sizeof(mesh));
    }
    same_state(&w, &y, 5);
    toy_close(&y);
    mesh_close(&w);
}

static void the_mesh_gives_the_same_bits(void **state)
{
    (void)state;
    compare_steps(1);
}

/* As when every first reply was lost. */
static void what_comes_twice_counts_once(void **state)
{
    (void)state;
    compare_steps(2);
}

static int scatter(struct mesh *w, const struct tpo_key *key, const struct tpo_chunk *x)
{
    return chunk_call(w, "/tpo.v1.Learner/Scatter", key, x);
}

/* A Gather that is there before the Backwards gets the share's sums by itself; what is scattered is what Norms then tell. */
static void a_share_is_gathered_and_scattered(void **state)
{
    (void)state;
    struct mesh w;
    struct sums s = {0};
    int rc;
    mesh_open(&w);
    Tpo__V1__BeginReply *reply = begin_share(&w, "me", 60000, 1, 1, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    struct tpo_key key = key_of(1, 0, 2);
    /* One that goes away, one that another takes the place of, and the one that stays. */
    struct sums left, replaced, late;
    tpo_rpc_cancel(gather(&w, &key, &left));
    gathered(&w, &left, TPO_CANCELLED);
    gather(&w, &key, &replaced);
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    gather(&w, &key, &s);
    gathered(&w, &replaced, TPO_ABORTED);
    key.micro_batch = 0;
    refused(&w, forward(&w, &key, NULL, NULL), TPO_INVALID_ARGUMENT, "share");
    for (key.micro_batch = 2; key.micro_batch < 4; key.micro_batch++) {
        assert_false(s.done);
        assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
        assert_int_equal(backward(&w, &key, NULL), TPO_OK);
    }
    gathered(&w, &s, TPO_OK);
    assert_int_equal(s.n, WEIGHTS);
    gather(&w, &key, &late); /* as when the first one's end was lost */
    gathered(&w, &late, TPO_OK);
    assert_memory_equal(&late, &s, sizeof(s));
    key.micro_batch = 0;
    double squared[3], want = 0;
    refused(&w, norms(&w, &key, squared), TPO_FAILED_PRECONDITION, "no_total");
    const struct tpo_chunk total = {
        .name = "toy.w1.bias", .part = "gradient", .n_dims = 1, .shape = {WIDE}, .count = WIDE, .data = s.values};
    struct tpo_chunk wrong = total;
    wrong.shape[0] = WIDE + 1;
    refused(&w, scatter(&w, &key, &wrong), TPO_INVALID_ARGUMENT, "scatter");
    for (int k2 = 0; k2 < 2; k2++) assert_int_equal(scatter(&w, &key, &total), TPO_OK);
    assert_int_equal(scatter(&w, &key, NULL), TPO_OK);
    assert_int_equal(norms(&w, &key, squared), TPO_OK);
    for (int i = 0; i < WIDE; i++) want += (double)s.values[i] * (double)s.values[i];
    assert_true(want > 0 && squared[0] > want * (1 - 1e-6) &&
                squared[0] < want * (1 + 1e-6)); /* names in order: the bias is first */
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/Abort", &key), TPO_OK);
    mesh_close(&w);
}

static int import(struct mesh *w, const struct tpo_key *key, const struct tpo_chunk *x)
{
    return chunk_call(w, "/tpo.v1.Learner/Import", key, x);
}

static void state_comes_in_pieces(void **state)
{
    (void)state;
    struct mesh w;
    struct toy y;
    struct tpo_plan plan = plan_of(2, 4);
    struct tpo_begun begun;
    const float first[] = {1, 2, 3}, second[] = {4, 5};
    const struct tpo_key key = key_of(0, 7, 0);
    struct tpo_chunk x = {.name = "toy.w1.bias", .part = "m", .n_dims = 1, .shape = {WIDE}, .count = 3, .data = first};
    int rc;
    mesh_open(&w);
    begin(&w);
    toy_open(&y, 1);
    assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, NULL), TPO_OK);
    assert_int_equal(import(&w, &key, &x), TPO_OK);
    assert_int_equal(y.learner.import_state(y.learner.self, 7, &x, NULL), TPO_OK);
    x.offset = 3, x.count = 2, x.data = second;
    assert_int_equal(import(&w, &key, &x), TPO_OK);
    assert_int_equal(y.learner.import_state(y.learner.self, 7, &x, NULL), TPO_OK);
    x.offset = 4;
    refused(&w, import(&w, &key, &x), TPO_INVALID_ARGUMENT, "import");
    x.offset = 3, x.name = "toy.w9";
    refused(&w, import(&w, &key, &x), TPO_NOT_FOUND, "import");
    assert_int_equal(import(&w, &key, NULL), TPO_OK);
    assert_int_equal(y.learner.import_state(y.learner.self, 7, NULL, NULL), TPO_OK);
    same_state(&w, &y, 7);
    Tpo__V1__BeginReply *reply = begin_share(&w, "me", 60000, 0, 0, &rc);
    assert_int_equal(reply->version, 7);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    toy_close(&y);
    mesh_close(&w);
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    struct mesh w;
    struct tpo_key key = key_of(1, 1, 0);
    double squared[3];
    mesh_open(&w);
    begin(&w);
    refused(&w, forward(&w, &key, NULL, NULL), TPO_FAILED_PRECONDITION, "wrong_version");
    key = key_of(1, 0, 4);
    refused(&w, forward(&w, &key, NULL, NULL), TPO_INVALID_ARGUMENT, "micro_batch");
    for (key.micro_batch = 0; key.micro_batch < 4; key.micro_batch++) assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    key = key_of(2, 0, 0);
    refused(&w, forward(&w, &key, NULL, NULL), TPO_FAILED_PRECONDITION, "wrong_step");
    key = key_of(1, 0, 0);
    refused(&w, norms(&w, &key, squared), TPO_FAILED_PRECONDITION, "open_tapes");
    refused(&w, prepare(&w, &key), TPO_FAILED_PRECONDITION, "no_norms");
    refused(&w, step_call(&w, "/tpo.v1.Learner/Commit", &key), TPO_FAILED_PRECONDITION, "not_prepared");
    Tpo__V1__PublishRequest p = TPO__V1__PUBLISH_REQUEST__INIT;
    Tpo__V1__Empty *reply;
    Tpo__V1__Key k;
    tpo_key_pack(&k, &key, w.lease);
    p.key = &k, p.version = 1;
    refused(&w, call(&w, "/tpo.v1.Learner/Publish", &p.base, &tpo__v1__empty__descriptor, &reply), TPO_UNIMPLEMENTED, "publish");
    p.key = NULL;
    refused(&w, call(&w, "/tpo.v1.Learner/Publish", &p.base, &tpo__v1__empty__descriptor, &reply), TPO_INVALID_ARGUMENT, "learner");
    mesh_close(&w);
}

/* The reply to a call that is to be refused. */
static int key_call(struct mesh *w, const char *path, const struct tpo_key *key)
{
    Tpo__V1__ExportRequest e = TPO__V1__EXPORT_REQUEST__INIT;
    Tpo__V1__PublishRequest p = TPO__V1__PUBLISH_REQUEST__INIT;
    Tpo__V1__Chunk c = TPO__V1__CHUNK__INIT;
    Tpo__V1__StepRequest s = TPO__V1__STEP_REQUEST__INIT;
    Tpo__V1__Key k;
    ProtobufCMessage *reply = NULL;
    tpo_key_pack(&k, key, w->lease);
    e.key = p.key = c.key = s.key = &k;
    p.version = 1;
    const ProtobufCMessage *m = strstr(path, "Export") != NULL    ? &e.base
                                : strstr(path, "Publish") != NULL ? &p.base
                                : strstr(path, "Import") != NULL  ? &c.base
                                                                  : &s.base;
    const ProtobufCMessageDescriptor *type =
        strstr(path, "Export") != NULL ? &tpo__v1__chunk__descriptor : &tpo__v1__empty__descriptor;
    const int rc = call(w, path, m, type, &reply);
    if (reply != NULL) protobuf_c_message_free_unpacked(reply, NULL);
    return rc;
}

static int publish_nothing(void *self, uint64_t version, struct tpo_error *err)
{
    (void)self, (void)version, (void)err;
    return TPO_OK;
}

/* Calls that name no step: the run and, but for Import, which brings another, the version must be those in progress. */
static void a_wrong_run_or_version_is_refused_between_steps(void **state)
{
    (void)state;
    static const char *const paths[] = {"/tpo.v1.Learner/Export", "/tpo.v1.Learner/Publish", "/tpo.v1.Learner/Import",
                                        "/tpo.v1.Learner/End"};
    struct seen seen;
    struct mesh w;
    service.publish = publish_nothing;
    mesh_open(&w);
    begin(&w);
    step_over_mesh(&w, 1, 1, &seen);
    struct tpo_key other = key_of(0, 1, 0);
    snprintf(other.run, sizeof(other.run), "other");
    for (int i = 0; i < 4; i++) {
        refused(&w, key_call(&w, paths[i], &other), TPO_FAILED_PRECONDITION, "wrong_run");
        for (uint64_t version = 0; version <= 2 && i != 2; version += 2) {
            const struct tpo_key key = key_of(0, version, 0);
            refused(&w, key_call(&w, paths[i], &key), TPO_FAILED_PRECONDITION, "wrong_version");
        }
    }
    const struct tpo_key right = key_of(0, 1, 0);
    for (int i = 0; i < 4; i++) assert_int_equal(key_call(&w, paths[i], &right), TPO_OK);
    mesh_close(&w);
}

/* A digest instead of data: an odd one is refused, another tensor's is not held, the right one is. */
static void a_digest_asks_whether_a_tensor_is_held(void **state)
{
    (void)state;
    struct mesh w;
    const struct tpo_key key = key_of(0, 0, 0);
    int64_t shape[] = {WIDE};
    float data[WIDE] = {1, 2, 3, 4, 5};
    uint8_t digest[TPO_SHA256_BYTES];
    Tpo__V1__Chunk m = TPO__V1__CHUNK__INIT;
    Tpo__V1__ImportReply *reply;
    Tpo__V1__Key k;
    mesh_open(&w);
    begin(&w);
    tpo_key_pack(&k, &key, w.lease);
    m.key = &k, m.name = (char *)"toy.w1.bias", m.part = (char *)"start", m.n_shape = 1, m.shape = shape;
    m.data = (ProtobufCBinaryData){sizeof(data), (uint8_t *)data};
    assert_int_equal(call(&w, "/tpo.v1.Learner/Import", &m.base, &tpo__v1__import_reply__descriptor, &reply), TPO_OK);
    assert_false(reply->held);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    tpo_sha256(digest, data, sizeof(data));
    m.digest = (ProtobufCBinaryData){sizeof(digest), digest};
    refused(&w, call(&w, "/tpo.v1.Learner/Import", &m.base, &tpo__v1__import_reply__descriptor, &reply), TPO_INVALID_ARGUMENT,
            "import");
    m.data = (ProtobufCBinaryData){0, NULL};
    for (int other = 0; other < 2; other++) {
        digest[0] ^= (uint8_t)other;
        assert_int_equal(call(&w, "/tpo.v1.Learner/Import", &m.base, &tpo__v1__import_reply__descriptor, &reply), TPO_OK);
        assert_int_equal(reply->held, !other);
        protobuf_c_message_free_unpacked(&reply->base, NULL);
    }
    m.digest.len--;
    refused(&w, call(&w, "/tpo.v1.Learner/Import", &m.base, &tpo__v1__import_reply__descriptor, &reply), TPO_INVALID_ARGUMENT,
            "import");
    m.digest.len++;
    m.part = (char *)"weight";
    refused(&w, call(&w, "/tpo.v1.Learner/Import", &m.base, &tpo__v1__import_reply__descriptor, &reply), TPO_INVALID_ARGUMENT,
            "import");
    mesh_close(&w);
}

/* Sanitizers keep what was freed and shadows of all: there a peak tells nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GROWTH_MAX SIZE_MAX
#else
#define GROWTH_MAX ((size_t)768 << 20)
#endif

/* A message past the limit, however it was sent, costs its own call alone; one that is much too long is cut off before it has come. */
static void a_forward_of_a_gigabyte_is_refused(void **state)
{
    (void)state;
    struct mesh w;
    struct tpo_key key = key_of(1, 0, 0);
    const size_t mib = (size_t)1 << 20, sizes[] = {65 * mib, 1024 * mib};
    mesh_open(&w);
    begin(&w);
    const size_t before = raw_peak_bytes(w.pid);
    for (int i = 0; i < 2; i++) {
        const struct raw_answer a = raw_call_zeros(tpo_peers_address(w.peers, 0, NULL), "/tpo.v1.Learner/Forward", sizes[i]);
        /* "Sent message larger than max" would be this side's own word. */
        if (a.status != TPO_RESOURCE_EXHAUSTED || strncmp(a.text, "Received ", 9) != 0) fail_msg("%d %s", a.status, a.text);
        assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
        assert_int_equal(backward(&w, &key, NULL), TPO_OK);
        key.micro_batch++;
    }
    const size_t grown = raw_peak_bytes(w.pid) - before;
    if (grown > GROWTH_MAX) fail_msg("the service has grown by %zu MiB", grown / mib);
    mesh_close(&w);
}

static void without_train_nothing_learns(void **state)
{
    (void)state;
    struct mesh w;
    int rc;
    connect_to(&w, start("port", "--no-train", ""), "port");
    assert_null(begin_share(&w, "me", 60000, 0, 0, &rc));
    refused(&w, rc, TPO_UNIMPLEMENTED, "train");
    const struct tpo_key key = key_of(1, 0, 0);
    refused(&w, forward(&w, &key, NULL, NULL), TPO_UNIMPLEMENTED, "train");
    mesh_close(&w);
}

static void faults_kill_at_their_point(void **state)
{
    (void)state;
    struct mesh w;
    struct tpo_key key = key_of(1, 0, 0);
    connect_to(&w, start("port", "--train", "backward_before:2"), "port");
    begin(&w);
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    assert_int_equal(backward(&w, &key, NULL), TPO_OK);
    key.micro_batch = 1;
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    assert_int_not_equal(backward(&w, &key, NULL), TPO_OK);
    const int status = ended(&w);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void an_unknown_fault_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {"coffee", "norms:0",  "norms:x",      "norms:1x",  ":1",
                                        "norm",   "norms:1:", "norms:1:halt", "norms:stop"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        int status = -1;
        const pid_t pid = start("port", "--train", wrong[i]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 2);
    }
}

/* One request of serving runs, as many wait as may, and one more is refused: a step goes on all the same. */
static void serving_that_is_full_keeps_no_trainer_out(void **state)
{
    (void)state;
    struct sums s[3] = {0};
    struct mesh w;
    pthread_t later;
    const struct tpo_key key = key_of(1, 0, 0);
    mesh_open_busy(&w);
    begin(&w);
    for (int i = 0; i < 3; i++) work_begin(&w, &s[i]);
    while (!s[1].done && !s[2].done) tpo_loop_wait(w.loop, 20);
    assert_int_equal(s[1].done ? s[1].status : s[2].status, TPO_RESOURCE_EXHAUSTED);
    later = work_ends_later();
    assert_int_equal(forward(&w, &key, NULL, NULL), TPO_OK);
    assert_int_equal(backward(&w, &key, NULL), TPO_OK);
    pthread_join(later, NULL);
    for (int i = 0; i < 3; i++)
        while (!s[i].done) tpo_loop_wait(w.loop, 20);
    assert_int_equal(s[0].status, TPO_OK);
    mesh_close(&w);
}

TPO_TESTS(cmocka_unit_test(the_mesh_gives_the_same_bits), cmocka_unit_test(what_comes_twice_counts_once),
          cmocka_unit_test(a_share_is_gathered_and_scattered), cmocka_unit_test(state_comes_in_pieces),
          cmocka_unit_test(what_does_not_fit_is_refused), cmocka_unit_test(a_wrong_run_or_version_is_refused_between_steps),
          cmocka_unit_test(a_digest_asks_whether_a_tensor_is_held), cmocka_unit_test(a_forward_of_a_gigabyte_is_refused),
          cmocka_unit_test(serving_that_is_full_keeps_no_trainer_out), cmocka_unit_test(without_train_nothing_learns),
          cmocka_unit_test(faults_kill_at_their_point), cmocka_unit_test(an_unknown_fault_is_refused))
