/* Proves that one process trains and serves by turns: what is in flight moves between a learner's jobs, and a learner's jobs come between its steps,
 * also while a request waits for room. */
#include "tests/services/host/toy_busy.h"

#define STEP_US    5000 /* of an answer, which ends once ./go is there */
#define FORWARD_US 100000

/* --- the service, in the forked process ------------------------------------------------------------------------------------------------- */

static struct tpo_job *answering; /* there is room for one */

/* What the compute thread did, a letter each: F a Forward, s a step of an answer, e its end. */
static void order_add(const char *letter)
{
    FILE *f = fopen("order", "a");
    fputs(letter, f);
    fclose(f);
}

static int on_question(void *self, struct tpo_job *job)
{
    (void)self;
    if (answering != NULL) return TPO_UNAVAILABLE;
    answering = job;
    fclose(fopen("busy", "w"));
    return TPO_OK;
}

static int step(void *self)
{
    static const Tpo__V1__Empty empty = TPO__V1__EMPTY__INIT;
    (void)self;
    if (answering == NULL) return 0;
    usleep(STEP_US);
    order_add("s");
    if (access("go", F_OK) != 0) return 1;
    order_add("e");
    tpo_call_send(answering->call, &empty.base, NULL);
    tpo_job_finish(answering, NULL);
    answering = NULL;
    return 0;
}

static int slow_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    usleep(FORWARD_US);
    order_add("F");
    return toy_forward(self, t, f, err);
}

static int open_slow(void *self, struct tpo_host *h, struct tpo_error *err)
{
    const int rc = open_model(self, h, err);
    served.model.forward = slow_forward;
    return rc;
}

static void mesh_open_turns(struct mesh *w)
{
    static const struct tpo_host_method methods[] = {{"/toy.Toy/Work", &tpo__v1__empty__descriptor, false, on_question}};
    service.methods = methods;
    service.n_methods = 1;
    service.open = open_slow;
    service.step = step;
    mesh_open(w);
}

/* --- the client ------------------------------------------------------------------------------------------------------------------------- */

static void forward_begin(struct mesh *w, uint32_t micro_batch, struct toy_batch *b, struct sums *s)
{
    const struct tpo_key key = key_of(1, 0, micro_batch);
    const struct tpo_rpc_start how = {
        .path = "/tpo.v1.Learner/Forward", .reply = &tpo__v1__forward_reply__descriptor, .timeout_ms = 60000};
    const struct tpo_rpc_events on = {.owner = s, .on_message = on_empty, .on_done = on_sums_done};
    Tpo__V1__ForwardRequest q = TPO__V1__FORWARD_REQUEST__INIT;
    Tpo__V1__Key k;
    toy_batch(b, &key);
    tpo_key_pack(&k, &key, w->lease);
    q.key = &k;
    q.samples = tpo_samples_pack(&w->arena, &b->sample, 1, true), q.n_samples = 1;
    q.tensors = tpo_tensors_pack(&w->arena, &b->input, 1), q.n_tensors = 1;
    *s = (struct sums){0};
    assert_non_null(tpo_rpc_open(w->peers, &how, &q.base, NULL, &on, NULL));
}

static void done_wait(struct mesh *w, struct sums *s, int n)
{
    for (int i = 0; i < n; i++) {
        while (!s[i].done) tpo_loop_wait(w->loop, 20);
        assert_int_equal(s[i].status, TPO_OK);
    }
}

static const char *order_read(void)
{
    static char order[1 << 16];
    FILE *f = fopen("order", "r");
    assert_non_null(f);
    order[fread(order, 1, sizeof(order) - 1, f)] = '\0';
    fclose(f);
    return order;
}

static void answers_may_end(void)
{
    fclose(fopen("go", "w"));
}

/* Forwards lie one right behind the other in the queue, and between any two the answer moves. */
static void an_answer_moves_between_forwards(void **state)
{
    (void)state;
    struct mesh w;
    struct toy_batch b[4];
    struct sums question, s[4];
    int forwards = 0, steps = 0;
    mesh_open_turns(&w);
    begin(&w);
    work_begin(&w, &question);
    for (uint32_t m = 0; m < 4; m++) forward_begin(&w, m, &b[m], &s[m]);
    done_wait(&w, s, 4);
    answers_may_end();
    done_wait(&w, &question, 1);
    const char *order = order_read();
    for (const char *at = order; *at != 'e'; at++) {
        if (*at == 'F' && forwards++ > 0 && steps == 0) fail_msg("no step between two Forwards: %s", order);
        steps = *at == 'F' ? 0 : steps + 1;
    }
    assert_int_equal(forwards, 4);
    mesh_close(&w);
}

static void a_request_without_room_keeps_no_forward_waiting(void **state)
{
    (void)state;
    struct mesh w;
    struct toy_batch b;
    struct sums questions[2], s;
    mesh_open_turns(&w);
    begin(&w);
    for (int i = 0; i < 2; i++) work_begin(&w, &questions[i]);
    forward_begin(&w, 0, &b, &s);
    done_wait(&w, &s, 1);
    assert_null(strchr(order_read(), 'e'));
    answers_may_end();
    done_wait(&w, questions, 2);
    mesh_close(&w);
}

TPO_TESTS(cmocka_unit_test(an_answer_moves_between_forwards), cmocka_unit_test(a_request_without_room_keeps_no_forward_waiting))
