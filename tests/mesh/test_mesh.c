/* Proves the mesh as a whole: the real programs, started by `tpo up` on the small model, spoken to over HTTP and gRPC; stopped,
 * abandoned and fed with nonsense. */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/text.h"
#include "gateway.pb-c.h"
#include "media.pb-c.h"
#include "tests/support/mesh.h"
#include "tests/support/test.h"

/* --- cases ----------------------------------------------------------------------------------------------------------------------------- */

static void a_second_question_runs_no_encoder(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    struct http_answer a = mesh_ask(id, "Where is the dotted ball?", "");
    json_t *first = mesh_json(&a);
    assert_int_equal(a.status, 200);
    assert_int_equal(json_array_size(json_object_get(first, "calls")), 1);
    assert_int_equal(json_array_size(json_object_get(first, "boxes")), 1);
    const json_t *pixels = json_object_get(json_array_get(json_object_get(first, "boxes"), 0), "pixels"),
                 *media = json_object_get(first, "media");
    assert_true(json_number_value(json_object_get(pixels, "x0")) >= 0);
    assert_true(json_number_value(json_object_get(pixels, "x1")) <= json_number_value(json_object_get(media, "width")));
    assert_true(json_number_value(json_object_get(pixels, "x1")) > json_number_value(json_object_get(pixels, "x0")));
    assert_string_equal(mesh_text(mesh_stage(first, "encoder"), "cache"), "miss");
    assert_non_null(mesh_stage(first, "router"));
    assert_non_null(mesh_stage(first, "region"));
    double runs = mesh_metric("tpo_encoder_runs_total", "encoder");
    assert_true(runs >= 1);
    struct http_answer b = mesh_ask(id, "How many crosses are there?", "");
    json_t *second = mesh_json(&b);
    assert_int_equal(b.status, 200);
    assert_string_equal(mesh_text(mesh_stage(second, "encoder"), "cache"), "hit");
    assert_string_not_equal(mesh_text(second, "text"), "");
    assert_true(mesh_metric("tpo_encoder_runs_total", "encoder") == runs);
    assert_true(mesh_metric("tpo_requests_accepted_total", "gateway") == mesh_metric("tpo_requests_total", "stage=\"gateway\""));
    json_decref(first);
    json_decref(second);
    http_free(&a);
    http_free(&b);
}

static double number_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* From the call's start to its last message, as the gateway saw it. */
static double span_ms(const json_t *stage)
{
    return number_of(stage, "queueMs") + number_of(stage, "runMs") + number_of(stage, "hopMs");
}

/* hop_ms is what is left of a call's time after queue and run: more than nothing, and with them never more than the request took. Encoder and
 * router work one after the other; heads while the router still writes, or after it. */
static void hops_are_told_apart_from_work(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    struct http_answer a = mesh_ask(id, "Where is the dotted ball?", "");
    json_t *root = mesh_json(&a);
    assert_int_equal(a.status, 200);
    const json_t *encoder = mesh_stage(root, "encoder"), *router = mesh_stage(root, "router"), *region = mesh_stage(root, "region");
    const double total_ms = number_of(json_object_get(root, "usage"), "totalMs");
    const json_t *const all[] = {encoder, router, region};
    for (int i = 0; i < 3; i++) {
        assert_non_null(all[i]);
        if (!(number_of(all[i], "hopMs") > 0) || !(number_of(all[i], "runMs") > 0) || !(span_ms(all[i]) <= total_ms))
            fail_msg("stage %d: hop %g, span %g of %g ms: %s", i, number_of(all[i], "hopMs"), span_ms(all[i]), total_ms,
                     a.body.data);
    }
    if (!(span_ms(encoder) + span_ms(router) <= total_ms)) fail_msg("more than the whole: %s", a.body.data);
    assert_true(number_of(mesh_stage(root, "gateway"), "hopMs") == 0); /* nobody called it from within */
    json_decref(root);
    http_free(&a);
}

static void events_come_in_order_and_done_is_last(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crosses.png", 0, id);
    struct http_answer a = mesh_ask(id, "Describe the picture.", ",\"stream\":true,\"requestId\":\"my-own\"");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.head.data, "text/event-stream"));
    assert_non_null(strstr(a.head.data, "tpo-request-id: my-own\r\n"));
    struct tpo_text text = {0};
    json_t *done = NULL;
    int seq = 0;
    for (char *at = a.body.data, *end; (end = strstr(at, "\n\n")) != NULL; at = end + 2) {
        int number;
        char kind[32];
        *end = '\0';
        assert_null(done);
        assert_int_equal(sscanf(at, "id: %d\nevent: %31s\n", &number, kind), 2);
        assert_int_equal(number, seq++);
        json_t *event = json_loads(strstr(at, "data: ") + 6, 0, NULL);
        assert_non_null(event);
        assert_int_equal(json_integer_value(json_object_get(event, "seq")), number);
        if (strcmp(kind, "text") == 0) tpo_text_puts(&text, mesh_text(json_object_get(event, "text"), "text"));
        if (strcmp(kind, "done") == 0) done = json_incref(json_object_get(event, "done"));
        json_decref(event);
    }
    assert_non_null(done);
    assert_true(seq > 3);
    assert_string_equal(mesh_text(done, "text"), text.data);
    assert_string_equal(mesh_text(done, "requestId"), "my-own");
    json_decref(done);
    tpo_text_free(&text);
    http_free(&a);
}

/* Also where something else of the request is wrong, too: it goes into logs and answers. */
static void an_invalid_request_id_is_never_used(void **state)
{
    (void)state;
    static const char body[] = "{\"turns\":[],\"requestId\":\"x\\nlevel=info req=forged\"}";
    struct http_answer a = mesh_http("/v1/perceive", body, sizeof(body) - 1);
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "turns");
    assert_null(strstr(a.body.data, "forged"));
    assert_null(strstr(a.head.data, "forged"));
    http_free(&a);
}

static void an_answer_is_the_same_among_eight(void **state)
{
    (void)state;
    static const char *const sentences[] = {"Describe the picture.", "How many crosses are there?", "What colour is the square?",
                                            "Where is the orange star?"};
    struct mesh_asker alone[8] = {0}, many[8] = {0};
    for (int i = 0; i < 8; i++) {
        mesh_upload(i % 2 == 0 ? "crosses.png" : "crowd.png", 0, alone[i].id);
        alone[i].sentence = sentences[i / 2];
        many[i] = alone[i];
        mesh_asker_run(&alone[i]);
        assert_int_equal(strncmp(alone[i].text, "200", 3), 0);
    }
    for (int i = 0; i < 8; i++) pthread_create(&many[i].thread, NULL, mesh_asker_run, &many[i]);
    for (int i = 0; i < 8; i++) pthread_join(many[i].thread, NULL);
    for (int i = 0; i < 8; i++) assert_string_equal(many[i].text, alone[i].text);
}

static void a_head_that_died_costs_its_own_call_alone(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    kill(mesh_pid("region-0"), SIGKILL);
    struct http_answer a = mesh_ask(id, "Where is the dotted ball?", "");
    assert_int_equal(a.status, 200);
    json_t *root = mesh_json(&a), *call = json_array_get(json_object_get(root, "calls"), 0);
    assert_string_equal(mesh_text(json_object_get(call, "error"), "code"), "UNAVAILABLE");
    assert_string_equal(mesh_text(json_object_get(call, "error"), "stage"), "region");
    assert_int_equal(json_array_size(json_object_get(root, "boxes")), 0);
    assert_null(json_object_get(root, "error"));
    json_decref(root);
    http_free(&a);
    a = mesh_ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    http_free(&a);
}

static void without_redis_answers_stay_the_same(void **state)
{
    (void)state;
    struct mesh_asker before = {.sentence = "Describe the picture."}, after = before;
    mesh_upload("crosses.png", 0, before.id);
    mesh_asker_run(&before);
    if (access("run/redis.pid", R_OK) != 0) skip();
    kill(mesh_pid("redis"), SIGKILL);
    mesh_upload("crosses.png", 7, after.id);
    mesh_asker_run(&after);
    assert_string_equal(after.text, before.text);
    mesh_asker_run(&after);
    assert_string_equal(after.text, before.text);
}

static void a_dead_encoder_is_a_typed_error_and_its_return_is_noticed(void **state)
{
    (void)state;
    char id[65], address[128] = "", command[4096];
    mesh_upload("crowd.png", 0, id);
    struct http_answer a = mesh_http("/readyz", NULL, 0);
    json_t *root = mesh_json(&a), *peer;
    size_t i;
    json_array_foreach(json_object_get(root, "peers"), i, peer) if (strcmp(mesh_text(peer, "stage"), "encoder") == 0)
        snprintf(address, sizeof(address), "%s", mesh_text(peer, "address"));
    json_decref(root);
    http_free(&a);
    kill(mesh_pid("encoder-0"), SIGKILL);
    a = mesh_ask(id, "How many crosses are there?", "");
    mesh_expect_error(&a, 503, "UNAVAILABLE", "");
    http_free(&a);
    for (int tries = 0; a.status != 503 || tries == 0; tries++) {
        a = mesh_http("/readyz", NULL, 0);
        http_free(&a);
        usleep(20000);
    }
    /* It comes back without its files: the gateway sends them again. */
    snprintf(command, sizeof(command),
             "%s/tpo-encoder --listen %s --model %s/models/small --media-dir again >again.log 2>&1 & echo $! >again.pid",
             tpo_test_build(), address, tpo_test_source());
    assert_int_equal(system(command), 0);
    do {
        usleep(20000);
        a = mesh_http("/readyz", NULL, 0);
        http_free(&a);
    } while (a.status != 200);
    a = mesh_ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    http_free(&a);
    mesh_line("again.pid", command, 32);
    kill(atoi(command), SIGTERM);
}

static void a_stopped_router_meets_the_deadline_and_the_cancel(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    pid_t router = mesh_pid("router-0");
    kill(router, SIGSTOP);
    struct http_answer a = mesh_ask(id, "How many crosses are there?", ",\"timeoutMs\":300");
    mesh_expect_error(&a, 504, "DEADLINE_EXCEEDED", "deadline");
    http_free(&a);
    /* A client that leaves: the request ends as CANCELLED. */
    char body[256];
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"stream\":true}",
             id);
    a = http_send("run", "/v1/perceive", body, strlen(body), 200);
    http_free(&a);
    while (mesh_metric("tpo_requests_total", "code=\"CANCELLED\"") < 1) usleep(20000);
    assert_true(mesh_metric("tpo_requests_running", "stage=\"gateway\"") == 0);
    kill(router, SIGCONT);
    a = mesh_ask(id, "How many crosses are there?", "");
    assert_int_equal(a.status, 200);
    http_free(&a);
    assert_true(mesh_metric("tpo_requests_accepted_total", "gateway") == mesh_metric("tpo_requests_total", "stage=\"gateway\""));
}

/* One id finds a request in the log of everyone who worked on it; the medium is new, so it is sent to the encoder on the way. */
static void every_log_names_the_request(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 7, id);
    struct http_answer a = mesh_ask(id, "How many crosses are there?", ",\"requestId\":\"follow-me\",\"task\":\"region\"");
    assert_int_equal(a.status, 200);
    http_free(&a);
    static const char *const lines[][2] = {{"gateway", "event=request req=follow-me code=OK"},
                                           {"encoder-0", "event=put req=follow-me media=.* code=OK bytes="},
                                           {"encoder-0", "event=request req=follow-me media=.* code=OK"},
                                           {"router-0", "event=answer req=follow-me"},
                                           {"region-0", "event=request req=follow-me code=OK"}};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        if (mesh_shell(
                "for i in 1 2 3 4 5 6 7 8 9; do grep -q '%2$s' run/%1$s.log && exit 0; sleep 0.2; done; cat run/%1$s.log; exit 1",
                lines[i][0], lines[i][1]) != 0)
            fail_msg("%s: no %s", lines[i][0], lines[i][1]);
}

static int up_narrow(void **state)
{
    setenv("TPO_RUNNING", "1", 1);
    setenv("TPO_WAITING", "0", 1);
    return mesh_up(state);
}

static void a_full_queue_is_429_with_retry_after(void **state)
{
    (void)state;
    struct mesh_asker first = {.sentence = "How many crosses are there?"};
    mesh_upload("crowd.png", 0, first.id);
    pid_t router = mesh_pid("router-0");
    kill(router, SIGSTOP);
    pthread_create(&first.thread, NULL, mesh_asker_run, &first);
    while (mesh_metric("tpo_requests_running", "stage=\"gateway\"") < 1) usleep(10000);
    struct http_answer a = mesh_ask(first.id, "How many crosses are there?", "");
    mesh_expect_error(&a, 429, "RESOURCE_EXHAUSTED", "queue_full");
    assert_non_null(strstr(a.head.data, "Retry-After: 1\r\n"));
    http_free(&a);
    kill(router, SIGCONT);
    pthread_join(first.thread, NULL);
    assert_int_equal(strncmp(first.text, "200", 3), 0);
    assert_true(mesh_metric("tpo_admission_rejected_total", "queue_full") == 1);
}

/* --- gRPC --------------------------------------------------------------------------------------------------------------------------------- */

struct heard {
    int events, done, code;
    char kinds[64], reason[48];
};

static void on_event(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)r, (void)payload;
    struct heard *h = owner;
    const Tpo__V1__PerceiveEvent *e = (Tpo__V1__PerceiveEvent *)message;
    assert_int_equal(e->seq, h->events);
    h->kinds[h->events++ % 64] = (char)('0' + e->kind_case);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_end(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r;
    struct heard *h = owner;
    h->code = status;
    snprintf(h->reason, sizeof(h->reason), "%s", err->reason);
    h->done = 1;
}

static void grpc_answers_the_same(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    char address[64];
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    mesh_line("run/grpc", address, sizeof(address));
    assert_int_equal(tpo_peers_open(&peers, loop, "gateway", address, TPO_PICK_LEAST, NULL), TPO_OK);
    Tpo__V1__MediaSource media = TPO__V1__MEDIA_SOURCE__INIT, *list[] = {&media};
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    media.id = id;
    turn.role = (char *)"user";
    turn.text = (char *)"Where is the dotted ball?";
    q.media = list;
    q.n_media = 1;
    q.turns = turns;
    q.n_turns = 1;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Gateway/Perceive", .reply = &tpo__v1__perceive_response__descriptor, .timeout_ms = 20000};
    struct tpo_error err = {0};
    ProtobufCMessage *reply = NULL;
    if (tpo_rpc_call(peers, &start, &q.base, NULL, &reply, NULL, &err) != TPO_OK) fail_msg("%s: %s", err.reason, err.message);
    assert_int_equal(((Tpo__V1__PerceiveResponse *)reply)->n_boxes, 1);
    protobuf_c_message_free_unpacked(reply, NULL);
    struct heard h = {0};
    const struct tpo_rpc_events events = {.owner = &h, .on_message = on_event, .on_done = on_end};
    start.path = "/tpo.v1.Gateway/PerceiveStream";
    start.reply = &tpo__v1__perceive_event__descriptor;
    assert_non_null(tpo_rpc_open(peers, &start, &q.base, NULL, &events, &err));
    while (!h.done) tpo_loop_wait(loop, 1000);
    assert_int_equal(h.code, TPO_OK);
    assert_non_null(strchr(h.kinds, '0' + TPO__V1__PERCEIVE_EVENT__KIND_BOX));
    assert_int_equal(h.kinds[h.events - 1], '0' + TPO__V1__PERCEIVE_EVENT__KIND_DONE);
    /* Errors keep their reason on the way. */
    turn.text = (char *)"";
    start.path = "/tpo.v1.Gateway/Perceive";
    start.reply = &tpo__v1__perceive_response__descriptor;
    assert_int_equal(tpo_rpc_call(peers, &start, &q.base, NULL, &reply, NULL, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "turns");
    /* Media.Put, with the right id and with a wrong one. */
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){3, (uint8_t *)"abc"};
    for (int wrong = 0; wrong < 2; wrong++) {
        h = (struct heard){0};
        chunk.id = (char *)(wrong ? "0000000000000000000000000000000000000000000000000000000000000000"
                                  : "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        start.path = "/tpo.v1.Media/Put";
        start.reply = &tpo__v1__media_put_reply__descriptor;
        assert_int_equal(tpo_rpc_call(peers, &start, &chunk.base, NULL, &reply, NULL, &err), wrong ? TPO_INVALID_ARGUMENT : TPO_OK);
        if (wrong)
            assert_string_equal(err.reason, "media_hash");
        else
            protobuf_c_message_free_unpacked(reply, NULL);
    }
    tpo_peers_close(peers);
    tpo_loop_close(loop);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, mesh_up, mesh_down)
TPO_TESTS(CASE(a_second_question_runs_no_encoder), CASE(hops_are_told_apart_from_work), CASE(events_come_in_order_and_done_is_last),
          CASE(an_invalid_request_id_is_never_used), CASE(an_answer_is_the_same_among_eight),
          CASE(a_head_that_died_costs_its_own_call_alone), CASE(without_redis_answers_stay_the_same),
          CASE(a_dead_encoder_is_a_typed_error_and_its_return_is_noticed), CASE(a_stopped_router_meets_the_deadline_and_the_cancel),
          cmocka_unit_test_setup_teardown(a_full_queue_is_429_with_retry_after, up_narrow, mesh_down), CASE(grpc_answers_the_same),
          CASE(every_log_names_the_request))
