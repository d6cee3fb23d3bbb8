/* Proves what a stranger gets at the gateway's gRPC door: typed errors for calls that are none, and a gateway that goes on. */
#include <dirent.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "gateway.pb-c.h"
#include "media.pb-c.h"
#include "tests/support/mesh.h"
#include "tests/support/raw_call.h"
#include "tests/support/test.h"

static struct tpo_loop *loop;
static struct tpo_peers *peers;

static int up(void **state)
{
    char address[64];
    if (mesh_up(state) != 0) return -1;
    mesh_line("run/grpc", address, sizeof(address));
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "gateway", address, TPO_PICK_LEAST, NULL), TPO_OK);
    return 0;
}

static int down(void **state)
{
    tpo_peers_close(peers);
    tpo_loop_close(loop);
    return mesh_down(state);
}

static struct tpo_error call(const char *path, const ProtobufCMessage *q)
{
    const struct tpo_rpc_start start = {.path = path, .reply = &tpo__v1__perceive_response__descriptor, .timeout_ms = 60000};
    struct tpo_error err = {0};
    ProtobufCMessage *reply = NULL;
    tpo_rpc_call(peers, &start, q, NULL, &reply, NULL, &err);
    if (reply != NULL) protobuf_c_message_free_unpacked(reply, NULL);
    return err;
}

static struct tpo_error perceive(Tpo__V1__PerceiveRequest *q)
{
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    turn.role = (char *)"user";
    turn.text = (char *)"Where is the dotted ball?";
    q->turns = turns;
    q->n_turns = 1;
    return call("/tpo.v1.Gateway/Perceive", &q->base);
}

static void expect(struct tpo_error err, int code, const char *reason)
{
    if (err.code != code || (reason != NULL && strcmp(err.reason, reason) != 0))
        fail_msg("%s %s (%s), wanted %s %s", tpo_status_name(err.code), err.reason, err.message, tpo_status_name(code),
                 reason != NULL ? reason : "");
}

static void expect_answers(void)
{
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    expect(perceive(&q), TPO_OK, NULL);
}

static void boxes_that_are_no_numbers_are_refused(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    char id[65];
    mesh_upload("crowd.png", 0, id);
    for (int i = 0; i < 24; i++) {
        Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
        Tpo__V1__MediaSource medium = TPO__V1__MEDIA_SOURCE__INIT, *media[] = {&medium};
        Tpo__V1__UserBox box = TPO__V1__USER_BOX__INIT, *boxes[] = {&box};
        Tpo__V1__Rect rect = TPO__V1__RECT__INIT;
        float *const corners[] = {&rect.x0, &rect.y0, &rect.x1, &rect.y1};
        medium.id = id;
        q.media = media, q.n_media = 1;
        rect.x1 = rect.y1 = 1;
        *corners[i % 4] = values[i / 4 % 3];
        box.rect = &rect;
        box.normalised = i >= 12;
        q.boxes = boxes, q.n_boxes = 1;
        expect(perceive(&q), TPO_INVALID_ARGUMENT, "box_invalid");
    }
    expect_answers();
}

static void calls_that_are_none_are_refused(void **state)
{
    (void)state;
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    /* Field 2 is bytes here and a message there. */
    Tpo__V1__MediaChunk garbage = TPO__V1__MEDIA_CHUNK__INIT;
    uint8_t noise[64];
    memset(noise, 0xff, sizeof(noise));
    garbage.data = (ProtobufCBinaryData){sizeof(noise), noise};
    expect(call("/tpo.v1.Gateway/Nothing", &q.base), TPO_UNIMPLEMENTED, "method");
    expect(call("/tpo.v1.Gateway/Perceive", &garbage.base), TPO_INVALID_ARGUMENT, "proto");
    expect(call("/tpo.v1.Gateway/PerceiveStream", &garbage.base), TPO_INVALID_ARGUMENT, "proto");
    expect_answers();
}

/* However it was sent: our own client would not let it go. */
static void a_message_over_the_limit_is_refused(void **state)
{
    (void)state;
    const struct raw_answer a = raw_call_zeros(tpo_peers_address(peers, 0, NULL), "/tpo.v1.Gateway/Perceive", (size_t)80 << 20);
    if (a.status != TPO_RESOURCE_EXHAUSTED || strncmp(a.text, "Received message larger than max", 32) != 0)
        fail_msg("%d %s", a.status, a.text);
    expect_answers();
}

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r, (void)payload;
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_rpc_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r, (void)err;
    *(int *)owner = status;
}

static int n_files(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Its first megabyte is on the disk when its sender goes away. */
static void an_upload_that_is_cut_leaves_nothing(void **state)
{
    (void)state;
    static uint8_t data[1 << 20];
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 60000};
    int status = -1;
    const struct tpo_rpc_events on = {.owner = &status, .on_message = on_message, .on_done = on_rpc_done};
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){sizeof(data), data};
    const int before = n_files("run/media");
    struct tpo_rpc *r = tpo_rpc_open(peers, &start, &chunk.base, NULL, &on, NULL);
    assert_non_null(r);
    while (n_files("run/media") == before && status == -1) tpo_loop_wait(loop, 10);
    assert_int_equal(status, -1);
    tpo_rpc_cancel(r);
    while (status == -1) tpo_loop_wait(loop, 10);
    assert_int_equal(status, TPO_CANCELLED);
    for (int i = 0; i < 2000 && n_files("run/media") != before; i++) tpo_loop_wait(loop, 10);
    assert_int_equal(n_files("run/media"), before);
    assert_true(mesh_metric("tpo_media_bytes", "") == 0);
    expect_answers();
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, up, down)
TPO_TESTS(CASE(boxes_that_are_no_numbers_are_refused), CASE(calls_that_are_none_are_refused),
          CASE(a_message_over_the_limit_is_refused), CASE(an_upload_that_is_cut_leaves_nothing))
