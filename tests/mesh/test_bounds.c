/* Proves that what strangers send is bounded in the gateway's memory, over both doors: requests that wait, and uploads. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "gateway.pb-c.h"
#include "media.pb-c.h"
#include "tests/support/mesh.h"
#include "tests/support/test.h"

struct door {
    struct tpo_loop *loop;
    struct tpo_peers *peers;
};

struct heard {
    int code;
    bool done;
    char reason[48], id[65];
    uint64_t sent;
};

static void open_door(struct door *d)
{
    char address[64];
    mesh_line("run/grpc", address, sizeof(address));
    assert_int_equal(tpo_loop_open(&d->loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&d->peers, d->loop, "gateway", address, TPO_PICK_LEAST, NULL), TPO_OK);
    while (tpo_peers_ready(d->peers) == 0) tpo_loop_wait(d->loop, 100);
}

static void close_door(struct door *d)
{
    tpo_peers_close(d->peers);
    tpo_loop_close(d->loop);
}

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)r, (void)payload;
    struct heard *h = owner;
    if (message->descriptor == &tpo__v1__media_put_reply__descriptor)
        snprintf(h->id, sizeof(h->id), "%s", ((Tpo__V1__MediaPutReply *)message)->id);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r;
    struct heard *h = owner;
    h->code = status;
    snprintf(h->reason, sizeof(h->reason), "%s", err->reason);
    h->done = true;
}

static void wait_done(struct door *d, const struct heard *h)
{
    while (!h->done) tpo_loop_wait(d->loop, 1000);
}

/* --- requests ---------------------------------------------------------------------------------------------------------------------- */

#define DATA_BYTES 300000

static int up_narrow(void **state)
{
    setenv("TPO_RUNNING", "1", 1);
    setenv("TPO_WAITING", "16", 1);
    setenv("TPO_BODY_BYTES", "512K", 1);
    setenv("TPO_BODIES_BYTES", "1M", 1);
    return mesh_up(state);
}

/* A router that a failed case left stopped would hold everything up. */
static int down_narrow(void **state)
{
    kill(mesh_pid("router-0"), SIGCONT);
    return mesh_down(state);
}

/* "AAAA..." is base64 of zeros, which are no picture. */
static void *ask_with_data(void *answer)
{
    struct tpo_text body = {0};
    tpo_text_puts(&body, "{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"data\":\"");
    for (int i = 0; i < DATA_BYTES / 3; i++) tpo_text_puts(&body, "AAAA");
    tpo_text_puts(&body, "\"}]}");
    *(struct http_answer *)answer = mesh_http("/v1/perceive", body.data, body.size);
    tpo_text_free(&body);
    return NULL;
}

static struct tpo_rpc *ask_grpc(struct door *d, struct heard *h, size_t size)
{
    static uint8_t zeros[1 << 20];
    Tpo__V1__MediaSource medium = TPO__V1__MEDIA_SOURCE__INIT, *media[] = {&medium};
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    medium.data = (ProtobufCBinaryData){size, zeros};
    turn.role = (char *)"user";
    turn.text = (char *)"x";
    q.media = media;
    q.n_media = 1;
    q.turns = turns;
    q.n_turns = 1;
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Gateway/Perceive", .reply = &tpo__v1__perceive_response__descriptor, .timeout_ms = 60000};
    const struct tpo_rpc_events events = {.owner = h, .on_message = on_message, .on_done = on_done};
    struct tpo_rpc *r = tpo_rpc_open(d->peers, &start, &q.base, NULL, &events, NULL);
    assert_non_null(r);
    return r;
}

static double waiting(void)
{
    return mesh_metric("tpo_requests_waiting", "stage=\"gateway\"");
}

/* Of a mebibyte, three times 300 KB fit. The harness limits the waits. */
static void media_of_requests_that_wait_are_counted(void **state)
{
    (void)state;
    struct mesh_asker first = {.sentence = "How many crosses are there?"};
    struct http_answer answers[2], a;
    pthread_t threads[2];
    struct door d;
    mesh_upload("crowd.png", 0, first.id);
    open_door(&d);
    kill(mesh_pid("router-0"), SIGSTOP);
    pthread_create(&first.thread, NULL, mesh_asker_run, &first);
    while (mesh_metric("tpo_requests_running", "stage=\"gateway\"") < 1) usleep(10000);
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, ask_with_data, &answers[i]);
        while (waiting() < i + 1) usleep(10000);
    }
    struct heard third = {0}, fourth = {0}, large = {0};
    struct tpo_rpc *r = ask_grpc(&d, &third, DATA_BYTES);
    while (!third.done && waiting() < 3) tpo_loop_wait(d.loop, 10);
    if (third.done) fail_msg("%s", third.reason);
    ask_with_data(&a);
    mesh_expect_error(&a, 429, "RESOURCE_EXHAUSTED", "bodies_full");
    http_free(&a);
    ask_grpc(&d, &fourth, DATA_BYTES);
    wait_done(&d, &fourth);
    assert_int_equal(fourth.code, TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(fourth.reason, "bodies_full");
    ask_grpc(&d, &large, 600000);
    wait_done(&d, &large);
    assert_int_equal(large.code, TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(large.reason, "message_too_large");
    assert_true(mesh_metric("tpo_request_bytes", "") > 3 * DATA_BYTES);
    assert_true(mesh_metric("tpo_request_bytes", "") < 1 << 20);
    assert_true(mesh_metric("tpo_admission_rejected_total", "bodies_full") == 2);
    tpo_rpc_cancel(r);
    wait_done(&d, &third);
    kill(mesh_pid("router-0"), SIGCONT);
    pthread_join(first.thread, NULL);
    assert_int_equal(strncmp(first.text, "200", 3), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        mesh_expect_error(&answers[i], 400, "INVALID_ARGUMENT", "media_unreadable");
        http_free(&answers[i]);
    }
    while (mesh_metric("tpo_request_bytes", "") > 0) usleep(10000);
    close_door(&d);
}

/* --- uploads ----------------------------------------------------------------------------------------------------------------------- */

#define FILE_BYTES  (300u << 20)
#define CHUNK_BYTES (1u << 20)
/* MiB. A sanitizer keeps what was freed. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GROWN_MAX 2000
#else
#define GROWN_MAX 128
#endif

static char *pattern;

static void on_writable(void *owner, struct tpo_rpc *r)
{
    struct heard *h = owner;
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){CHUNK_BYTES, (uint8_t *)pattern + h->sent};
    h->sent += CHUNK_BYTES;
    if (h->sent <= FILE_BYTES)
        tpo_rpc_send(r, &chunk.base);
    else
        tpo_rpc_send_end(r);
}

/* The most it ever had, in MiB. */
static int peak_of(const char *name)
{
    char path[64], line[256];
    int kib = -1;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)mesh_pid(name));
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (kib < 0 && fgets(line, sizeof(line), f) != NULL) sscanf(line, "VmHWM: %d", &kib);
    fclose(f);
    return kib / 1024;
}

static void an_upload_is_never_whole_in_memory(void **state)
{
    (void)state;
    struct door d;
    struct heard h = {0};
    pattern = malloc(FILE_BYTES);
    assert_non_null(pattern);
    for (size_t i = 0; i < FILE_BYTES / 4; i++) ((uint32_t *)pattern)[i] = (uint32_t)i * 2654435761u;
    open_door(&d);
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 120000};
    const struct tpo_rpc_events events = {.owner = &h, .on_message = on_message, .on_done = on_done, .on_writable = on_writable};
    int before = peak_of("gateway");
    assert_non_null(tpo_rpc_open(d.peers, &start, &chunk.base, NULL, &events, NULL));
    wait_done(&d, &h);
    if (h.code != TPO_OK) fail_msg("%s", h.reason);
    int grown = peak_of("gateway") - before;
    if (grown > GROWN_MAX) fail_msg("the gateway took %d MiB", grown);
    struct http_answer a = mesh_http("/v1/media", pattern, FILE_BYTES);
    json_t *root = mesh_json(&a);
    assert_string_equal(mesh_text(root, "id"), h.id);
    json_decref(root);
    http_free(&a);
    close_door(&d);
    free(pattern);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, mesh_up, mesh_down)
TPO_TESTS(cmocka_unit_test_setup_teardown(media_of_requests_that_wait_are_counted, up_narrow, down_narrow),
          CASE(an_upload_is_never_whole_in_memory))
