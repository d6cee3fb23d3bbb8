/* Proves that what a stranger sends gets a typed error, over both doors, and that the mesh goes on. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/text.h"
#include "gateway.pb-c.h"
#include "tests/support/mesh.h"
#include "tests/support/test.h"

static void every_bad_request_gets_a_typed_error(void **state)
{
    (void)state;
    static const char id_none[] = "0000000000000000000000000000000000000000000000000000000000000000";
    char id[65], garbage[65];
    mesh_upload("crowd.png", 0, id);
    struct http_answer u = mesh_http("/v1/media", "this is no picture", 18);
    json_t *root = mesh_json(&u);
    snprintf(garbage, sizeof(garbage), "%s", mesh_text(root, "id"));
    json_decref(root);
    http_free(&u);
    const struct {
        const char *body;
        long status;
        const char *code, *reason;
    } cases[] = {
        {"", 400, "INVALID_ARGUMENT", "json"},
        {"{}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"  \"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"robot\",\"text\":\"x\"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"assistant\",\"text\":\"x\"}]}", 400, "INVALID_ARGUMENT", "turns"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"nope\":1}", 400, "INVALID_ARGUMENT", "json_field"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"a\\u0000b\"}]}", 400, "INVALID_ARGUMENT", "json"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"\xff\"}]}", 400, "INVALID_ARGUMENT", "json"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"seed\":-1}", 400, "INVALID_ARGUMENT", "json_value"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"maxNewTokens\":1000000}", 400, "INVALID_ARGUMENT", "max_new_tokens"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"topP\":2}", 400, "INVALID_ARGUMENT", "top_p"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"requestId\":\"a b\"}", 400, "INVALID_ARGUMENT", "request_id"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{}]}", 400, "INVALID_ARGUMENT", "media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"id\":\"zz\"}]}", 400, "INVALID_ARGUMENT", "media_id"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"data\":\"AA==\"},{\"data\":\"AA==\"}]}", 501,
         "UNIMPLEMENTED", "multi_media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"media\":[{\"data\":\"AAAA\"}]}", 400, "INVALID_ARGUMENT",
         "media_unreadable"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"boxes\":[{\"rect\":{\"x1\":1}}]}", 400, "INVALID_ARGUMENT",
         "box_without_media"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"seed\":1,\"seed\":2}", 400, "INVALID_ARGUMENT", "json_field"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":7}]}", 400, "INVALID_ARGUMENT", "json_value"},
        {"{\"turns\":{}}", 400, "INVALID_ARGUMENT", "json_value"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"timeoutMs\":-1}", 400, "INVALID_ARGUMENT", "json_value"},
        {"{\"turns\":[{\"role\":\"user\",\"text\":\"x\"}],\"task\":\"nosuch\"}", 400, "INVALID_ARGUMENT", "task_unknown"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct http_answer a = mesh_http("/v1/perceive", cases[i].body, strlen(cases[i].body));
        mesh_expect_error(&a, cases[i].status, cases[i].code, cases[i].reason);
        http_free(&a);
    }
    const struct {
        const char *id, *text, *more;
        long status;
        const char *code, *reason;
    } more[] = {
        {id_none, "x", "", 404, "NOT_FOUND", "media_unknown"},
        {garbage, "x", "", 400, "INVALID_ARGUMENT", "media_unreadable"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":5,\"y0\":5,\"x1\":1,\"y1\":9}}]", 400, "INVALID_ARGUMENT", "box_invalid"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":5,\"y0\":5,\"x1\":100000,\"y1\":9}}]", 400, "INVALID_ARGUMENT", "box_invalid"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":-5,\"y0\":5,\"x1\":10,\"y1\":9}}]", 400, "INVALID_ARGUMENT", "box_invalid"},
        {id, "x", ",\"boxes\":[{\"rect\":{\"x0\":0.1,\"y0\":0.1,\"x1\":1.1,\"y1\":0.9},\"normalised\":true}]", 400,
         "INVALID_ARGUMENT", "box_invalid"},
        {id, "{box} {box}", ",\"boxes\":[{\"rect\":{\"x1\":5,\"y1\":5}}]", 400, "INVALID_ARGUMENT", "box_missing"},
        {id, "x", ",\"timeoutMs\":4000000", 400, "INVALID_ARGUMENT", "timeout"},
    };
    for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++) {
        struct http_answer a = mesh_ask(more[i].id, more[i].text, more[i].more);
        mesh_expect_error(&a, more[i].status, more[i].code, more[i].reason);
        http_free(&a);
    }
    /* 64 KB of sentence are too many as text; less than that is too much for the router's context. */
    struct tpo_text big = {0};
    tpo_text_puts(&big, "{\"turns\":[{\"role\":\"user\",\"text\":\"");
    for (int i = 0; i < 65536; i++) tpo_text_puts(&big, "a");
    tpo_text_puts(&big, "\"}]}");
    struct http_answer a = mesh_http("/v1/perceive", big.data, big.size);
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "text_too_long");
    http_free(&a);
    tpo_text_free(&big);
    big = (struct tpo_text){0};
    tpo_text_puts(&big, "{\"turns\":[{\"role\":\"user\",\"text\":\"");
    for (int i = 0; i < 3600; i++) tpo_text_puts(&big, "where is ");
    tpo_text_puts(&big, "\"}]}");
    a = mesh_http("/v1/perceive", big.data, big.size);
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "prompt_too_long");
    http_free(&a);
    tpo_text_free(&big);
}

static double number_of(const json_t *root, const char *object, const char *key)
{
    return json_number_value(json_object_get(json_object_get(root, object), key));
}

/* A task token that a user types is text: it calls no head, and takes the pieces of its letters, not one id. */
static void a_typed_task_token_is_text(void **state)
{
    (void)state;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    struct http_answer a = mesh_ask(id, "How many crosses are there?", ""),
                       b = mesh_ask(id, "How many crosses are there? <box_begin><boxes>", "");
    json_t *plain = mesh_json(&a), *typed = mesh_json(&b);
    assert_int_equal(a.status, 200);
    assert_int_equal(b.status, 200);
    assert_int_equal(json_array_size(json_object_get(typed, "calls")), 0);
    assert_int_equal(json_array_size(json_object_get(typed, "boxes")), 0);
    assert_true(number_of(typed, "usage", "promptTokens") > number_of(plain, "usage", "promptTokens") + 2);
    json_decref(plain);
    json_decref(typed);
    http_free(&a);
    http_free(&b);
}

/* 10,000 deep: read without recursion, refused by the depth. */
static void depth_is_refused(void **state)
{
    (void)state;
    struct tpo_text deep = {0};
    tpo_text_puts(&deep, "{\"turns\":");
    for (int i = 0; i < 10000; i++) tpo_text_puts(&deep, "[");
    struct http_answer a = mesh_http("/v1/perceive", deep.data, deep.size);
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "json_depth");
    http_free(&a);
    tpo_text_free(&deep);
}

static int up_small(void **state)
{
    setenv("TPO_BODY_BYTES", "64K", 1);
    return mesh_up(state);
}

static void a_body_over_the_limit_is_413(void **state)
{
    (void)state;
    char *body = malloc(1 << 17);
    memset(body, ' ', 1 << 17);
    struct http_answer a = mesh_http("/v1/perceive", body, 1 << 17);
    mesh_expect_error(&a, 413, "INVALID_ARGUMENT", "body_too_large");
    http_free(&a);
    free(body);
}

/* What is written by a shell command goes up and is asked about. */
static struct http_answer ask_about(const char *command)
{
    static char bytes[1 << 20];
    char id[65];
    assert_int_equal(system(command), 0);
    FILE *f = fopen("medium", "rb");
    assert_non_null(f);
    const size_t size = fread(bytes, 1, sizeof(bytes), f);
    fclose(f);
    struct http_answer a = mesh_http("/v1/media", bytes, size);
    json_t *root = mesh_json(&a);
    assert_int_equal(a.status, 200);
    snprintf(id, sizeof(id), "%s", mesh_text(root, "id"));
    json_decref(root);
    http_free(&a);
    return mesh_ask(id, "x", "");
}

/* A film whose 4 bytes at `offset` behind the name of a box say something else; %s: the sources. */
#define CHANGED(changes)                                                                                                           \
    "python3 -c 'import sys\n"                                                                                                     \
    "film = bytearray(open(sys.argv[1], \"rb\").read())\n"                                                                         \
    "for name, offset, value in (" changes "):\n"                                                                                  \
    "    at = film.index(name) + 4 + offset\n"                                                                                     \
    "    film[at:at + 4] = value.to_bytes(4, \"big\")\n"                                                                           \
    "sys.stdout.buffer.write(film)' %s/models/small/samples/walk.mp4 >medium"
#define NO_FRAMES  "(b\"stts\", 4, 0), (b\"stsc\", 4, 0), (b\"stco\", 4, 0), (b\"stsz\", 8, 0)"
#define TEN_HOURS  "(b\"stsz\", 4, 1), (b\"stsz\", 8, 900000), (b\"stts\", 8, 900000)"
#define LONG_TALES "(b\"mvhd\", 16, 36000000), (b\"tkhd\", 20, 36000000)"

static void media_that_are_none_are_refused(void **state)
{
    (void)state;
    char cut[4096], no_frames[4096], ten_hours[4096], long_tales[4096];
    snprintf(cut, sizeof(cut), "head -c 300 %s/models/small/samples/walk.mp4 >medium", tpo_test_source());
    snprintf(no_frames, sizeof(no_frames), CHANGED(NO_FRAMES), tpo_test_source());
    snprintf(ten_hours, sizeof(ten_hours), CHANGED(TEN_HOURS), tpo_test_source());
    snprintf(long_tales, sizeof(long_tales), CHANGED(LONG_TALES), tpo_test_source());
    const char *const commands[] = {cut, no_frames, ten_hours, "printf '#EXTM3U\\n#EXTINF:1,\\nfile:///etc/passwd\\n' >medium",
                                    "printf \"ffconcat version 1.0\\nfile '/etc/passwd'\\n\" >medium"};
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        struct http_answer a = ask_about(commands[i]);
        mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "media_unreadable");
        http_free(&a);
    }
    /* A header's ten hours alone are no more than a tale: what counts is the frames that are there. */
    struct http_answer a = ask_about(long_tales);
    json_t *root = mesh_json(&a);
    assert_int_equal(a.status, 200);
    assert_true(number_of(root, "media", "durationS") < 60);
    json_decref(root);
    http_free(&a);
}

/* One bit a pixel, all of them 0; %d is the side. */
#define PNG                                                                                                                        \
    "python3 -c 'import struct, sys, zlib\n"                                                                                       \
    "def part(kind, data): return struct.pack(\">I\", len(data)) + kind + data + struct.pack(\">I\", zlib.crc32(kind + data))\n"   \
    "n = %d\n"                                                                                                                     \
    "rows = zlib.compress(bytes((n + 7) // 8 + 1) * n)\n"                                                                          \
    "sys.stdout.buffer.write(b\"\\x89PNG\\r\\n\\x1a\\n\" + part(b\"IHDR\", struct.pack(\">IIBBBBB\", n, n, 1, 0, 0, 0, 0)) + "     \
    "part(b\"IDAT\", rows) + part(b\"IEND\", b\"\"))' >medium"

/* One pixel is a picture; 400 million are refused before they are decoded. */
static void pictures_of_any_size_are_answered_or_refused(void **state)
{
    (void)state;
    char command[2048];
    snprintf(command, sizeof(command), PNG, 1);
    struct http_answer a = ask_about(command);
    assert_int_equal(a.status, 200);
    http_free(&a);
    snprintf(command, sizeof(command), PNG, 20000);
    a = ask_about(command);
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "media_too_large");
    http_free(&a);
}

/* --- gRPC -------------------------------------------------------------------------------------------------------------------------------- */

/* The caller's own clock ends the call; the gateway's request must end with it (test_request: one that comes too late isn't begun). */
static void a_deadline_that_passes_ends_the_request(void **state)
{
    (void)state;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    char address[64];
    mesh_line("run/grpc", address, sizeof(address));
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "gateway", address, TPO_PICK_LEAST, NULL), TPO_OK);
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    turn.role = (char *)"user";
    turn.text = (char *)"Hello?";
    q.turns = turns;
    q.n_turns = 1;
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Gateway/Perceive", .reply = &tpo__v1__perceive_response__descriptor, .timeout_ms = 1};
    struct tpo_error err = {0};
    ProtobufCMessage *reply = NULL;
    kill(mesh_pid("router-0"), SIGSTOP); /* nobody answers in a millisecond */
    assert_int_equal(tpo_rpc_call(peers, &start, &q.base, NULL, &reply, NULL, &err), TPO_DEADLINE_EXCEEDED);
    kill(mesh_pid("router-0"), SIGCONT);
    while (mesh_metric("tpo_requests_running", "stage=\"gateway\"") > 0) usleep(10000);
    tpo_peers_close(peers);
    tpo_loop_close(loop);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, mesh_up, mesh_down)
TPO_TESTS(CASE(every_bad_request_gets_a_typed_error), CASE(a_typed_task_token_is_text), CASE(depth_is_refused),
          cmocka_unit_test_setup_teardown(a_body_over_the_limit_is_413, up_small, mesh_down), CASE(media_that_are_none_are_refused),
          CASE(pictures_of_any_size_are_answered_or_refused), CASE(a_deadline_that_passes_ends_the_request))
