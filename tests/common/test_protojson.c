/* Proves common/protojson and common/text: the canonical mapping, both ways, and what it refuses. */
#include "tests/support/test.h"

#include <math.h>

#include "common/protojson.h"
#include "gateway.pb-c.h"
#include "learner.pb-c.h"
#include "status.pb-c.h"

static void *decode(const ProtobufCMessageDescriptor *type, const char *json)
{
    struct tpo_error err = {0};
    ProtobufCMessage *m;
    if (tpo_protojson_decode(&m, type, json, strlen(json), &err) != TPO_OK) {
        print_error("%s: %s: %s\n", json, err.reason, err.message);
        fail();
    }
    return m;
}

static void every_kind_of_field_reads(void **state)
{
    (void)state;
    Tpo__V1__PerceiveRequest *r =
        decode(&tpo__v1__perceive_request__descriptor,
               "{\"media\":[{\"id\":\"a\"},{\"data\":\"AQL/\"},{\"data\":\"-_8=\"},{\"data\":\"-_8\"}],"
               "\"turns\":[{\"role\":\"user\",\"text\":\"h\\u00e9 \\ud83d\\ude00\"}],"
               "\"boxes\":[{\"rect\":{\"x0\":0.25,\"y0\":\"1.5\",\"x1\":1e2,\"y1\":3},\"normalised\":true}],"
               "\"max_new_tokens\":\"12\",\"timeoutMs\":4e3,\"seed\":4294967295,\"topP\":0.5,\"stream\":true,\"task\":null}");
    assert_int_equal(r->n_media, 4);
    assert_string_equal(r->media[0]->id, "a");
    assert_int_equal(r->media[1]->data.len, 3);
    assert_memory_equal(r->media[1]->data.data, "\x01\x02\xff", 3);
    assert_int_equal(r->media[2]->data.len, 2);
    assert_memory_equal(r->media[2]->data.data, "\xfb\xff", 2);
    assert_memory_equal(r->media[3]->data.data, "\xfb\xff", 2);
    assert_string_equal(r->turns[0]->text, "h\xc3\xa9 \xf0\x9f\x98\x80");
    assert_true(r->boxes[0]->normalised);
    assert_float_equal(r->boxes[0]->rect->y0, 1.5f, 0);
    assert_float_equal(r->boxes[0]->rect->x1, 100, 0);
    assert_int_equal(r->max_new_tokens, 12);
    assert_int_equal(r->timeout_ms, 4000);
    assert_int_equal(r->seed, UINT32_MAX);
    assert_true(r->stream);
    assert_string_equal(r->task, "");
    protobuf_c_message_free_unpacked(&r->base, NULL);

    Tpo__V1__StatusReply *s =
        decode(&tpo__v1__status_reply__descriptor, "{\"versions\":[\"18446744073709551615\",7],\"uptimeMs\":\"0\"}");
    assert_true(s->versions[0] == UINT64_MAX && s->versions[1] == 7);
    protobuf_c_message_free_unpacked(&s->base, NULL);

    Tpo__V1__Tensor *t =
        decode(&tpo__v1__tensor__descriptor, "{\"dtype\":\"DTYPE_BF16\",\"shape\":[-9223372036854775808,\"9223372036854775807\"]}");
    assert_int_equal(t->dtype, TPO__V1__DTYPE__DTYPE_BF16);
    assert_true(t->shape[0] == INT64_MIN && t->shape[1] == INT64_MAX);
    protobuf_c_message_free_unpacked(&t->base, NULL);

    Tpo__V1__PerceiveEvent *e = decode(&tpo__v1__perceive_event__descriptor, "{\"seq\":3,\"text\":{\"text\":\"x\"}}");
    assert_int_equal(e->kind_case, TPO__V1__PERCEIVE_EVENT__KIND_TEXT);
    assert_string_equal(e->text->text, "x");
    protobuf_c_message_free_unpacked(&e->base, NULL);
}

static void what_is_wrong_is_refused_with_its_path(void **state)
{
    (void)state;
    static const struct {
        const char *json, *reason, *path;
    } cases[] = {
        {"", "json", ""},
        {"{", "json", ""},
        {"{} x", "json", ""},
        {"[]", "json_value", "message"},
        {"3", "json_value", "message"},
        {"{\"nope\":1}", "json_field", "nope"},
        {"{\"turns\":[{\"role\":\"user\"},{\"txt\":\"\"}]}", "json_field", "turns[1].txt"},
        {"{\"seed\":1,\"seed\":2}", "json_field", ""},
        {"{\"topP\":1,\"top_p\":1}", "json_field", "top"},
        {"{\"seed\":-1}", "json_value", "seed"},
        {"{\"seed\":4294967296}", "json_value", "seed"},
        {"{\"seed\":99999999999999999999}", "json", ""},
        {"{\"seed\":1.5}", "json_value", "seed"},
        {"{\"seed\":\" 1\"}", "json_value", "seed"},
        {"{\"seed\":\"0x1\"}", "json_value", "seed"},
        {"{\"seed\":\"01\"}", "json_value", "seed"},
        {"{\"seed\":true}", "json_value", "seed"},
        {"{\"seed\":[1]}", "json_value", "seed"},
        {"{\"stream\":1}", "json_value", "stream"},
        {"{\"task\":5}", "json_value", "task"},
        {"{\"task\":\"\xff\"}", "json", ""},
        {"{\"task\":\"\xed\xa0\x80\"}", "json", ""},
        {"{\"task\":\"a\\u0000b\"}", "json", ""},
        {"{\"task\":\"\\ud800\"}", "json", ""},
        {"{\"temperature\":NaN}", "json", ""},
        {"{\"temperature\":\"NaN\"}", "json_value", "temperature"},
        {"{\"temperature\":\"Infinity\"}", "json_value", "temperature"},
        {"{\"temperature\":1e39}", "json_value", "temperature"},
        {"{\"temperature\":1e999}", "json", ""},
        {"{\"turns\":{}}", "json_value", "turns"},
        {"{\"turns\":[null]}", "json_value", "turns[0]"},
        {"{\"media\":[{\"data\":\"A\"}]}", "json_value", "media[0].data"},
        {"{\"media\":[{\"data\":\"AA=A\"}]}", "json_value", "media[0].data"},
        {"{\"media\":[{\"data\":\"A A=\"}]}", "json_value", "media[0].data"},
        {"{\"boxes\":[{\"rect\":{\"x0\":\"\"}}]}", "json_value", "boxes[0].rect.x0"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_error err = {0};
        ProtobufCMessage *m = (void *)1;
        int rc = tpo_protojson_decode(&m, &tpo__v1__perceive_request__descriptor, cases[i].json, strlen(cases[i].json), &err);
        if (rc != TPO_INVALID_ARGUMENT || strcmp(err.reason, cases[i].reason) != 0 ||
            strncmp(err.message, cases[i].path, strlen(cases[i].path)) != 0)
            fail_msg("%s: %d %s %s", cases[i].json, rc, err.reason, err.message);
        assert_null(m);
        assert_true(tpo_utf8_valid(err.message, strlen(err.message)));
    }
    struct tpo_error err = {0};
    ProtobufCMessage *m;
    const char *two = "{\"text\":{},\"box\":{}}";
    assert_int_equal(tpo_protojson_decode(&m, &tpo__v1__perceive_event__descriptor, two, strlen(two), &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "json_field");
}

static void depth_ten_thousand_is_refused(void **state)
{
    (void)state;
    char *deep = malloc(10001);
    memset(deep, '[', 10000);
    deep[10000] = '\0';
    struct tpo_error err = {0};
    ProtobufCMessage *m;
    assert_int_equal(tpo_protojson_decode(&m, &tpo__v1__perceive_request__descriptor, deep, 10000, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "json_depth");
    /* Brackets inside a string are text. */
    memcpy(deep, "{\"task\":\"", 9);
    memcpy(deep + 9998, "\"}", 3);
    assert_int_equal(tpo_protojson_decode(&m, &tpo__v1__perceive_request__descriptor, deep, 10000, &err), TPO_OK);
    protobuf_c_message_free_unpacked(m, NULL);
    free(deep);
}

/* {"turns":[{},{},...]} of n elements. */
static int decode_turns(size_t n, struct tpo_error *err)
{
    struct tpo_text json = {0};
    ProtobufCMessage *m;
    tpo_text_puts(&json, "{\"turns\":[{}");
    for (size_t i = 1; i < n; i++) tpo_text_puts(&json, ",{}");
    tpo_text_puts(&json, "]}");
    int rc = tpo_protojson_decode(&m, &tpo__v1__perceive_request__descriptor, json.data, json.size, err);
    if (rc == TPO_OK) {
        assert_int_equal(((Tpo__V1__PerceiveRequest *)m)->n_turns, n);
        protobuf_c_message_free_unpacked(m, NULL);
    }
    tpo_text_free(&json);
    return rc;
}

static void a_million_values_are_refused_before_they_are_built(void **state)
{
    (void)state;
    struct tpo_error err;
    assert_int_equal(decode_turns(1000000, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "json_values");
    /* The outer object, the key's ':', the list, and of each turn its brace and comma (the last has none). */
    assert_int_equal(decode_turns((TPO_PROTOJSON_VALUES - 2) / 2, &err), TPO_OK);
    assert_int_equal(decode_turns((TPO_PROTOJSON_VALUES - 2) / 2 + 1, &err), TPO_INVALID_ARGUMENT);
}

static void what_stands_within_a_string_is_one_value(void **state)
{
    (void)state;
    static const char head[] = "{\"turns\":[{\"role\":\"user\",\"text\":\"\\\"\\\\", tail[] = "\"}]}";
    size_t n = 2 << 20;
    struct tpo_text json = {0};
    tpo_text_puts(&json, head);
    for (size_t i = 0; i < n / 4; i++) tpo_text_puts(&json, "[,:{");
    tpo_text_puts(&json, tail);
    Tpo__V1__PerceiveRequest *r = decode(&tpo__v1__perceive_request__descriptor, json.data);
    assert_int_equal(strlen(r->turns[0]->text), 2 + n);
    protobuf_c_message_free_unpacked(&r->base, NULL);
    tpo_text_free(&json);
}

static void zeros_of_present_messages_are_printed(void **state)
{
    (void)state;
    Tpo__V1__Rect rect = TPO__V1__RECT__INIT;
    rect.x1 = 0.1f;
    rect.y1 = 16777216;
    Tpo__V1__Box box = TPO__V1__BOX__INIT, *boxes[] = {&box};
    box.pixels = &rect;
    Tpo__V1__PerceiveResponse r = TPO__V1__PERCEIVE_RESPONSE__INIT;
    r.request_id = (char *)"a\"\\\n\x01";
    r.n_boxes = 1;
    r.boxes = boxes;
    struct tpo_text out = {0};
    assert_int_equal(tpo_protojson_encode(&out, &r.base, NULL), TPO_OK);
    assert_string_equal(out.data, "{\"requestId\":\"a\\\"\\\\\\n\\u0001\",\"text\":\"\",\"finishReason\":\"\",\"calls\":[],"
                                  "\"boxes\":[{\"call\":0,\"frame\":0,\"pixels\":{\"x0\":0,\"y0\":0,\"x1\":0.1,\"y1\":16777216}}],"
                                  "\"moments\":[],\"saliency\":[],\"tracks\":[],\"stages\":[]}");
    ProtobufCMessage *back;
    assert_int_equal(tpo_protojson_decode(&back, &tpo__v1__perceive_response__descriptor, out.data, out.size, NULL), TPO_OK);
    struct tpo_text again = {0};
    assert_int_equal(tpo_protojson_encode(&again, back, NULL), TPO_OK);
    assert_string_equal(again.data, out.data);
    protobuf_c_message_free_unpacked(back, NULL);
    rect.x0 = NAN;
    struct tpo_error err;
    assert_int_equal(tpo_protojson_encode(&again, &r.base, &err), TPO_INTERNAL);
    assert_non_null(strstr(err.message, "boxes[0].pixels.x0"));
    tpo_text_free(&out);
    tpo_text_free(&again);
}

static void numbers_survive_the_round_trip(void **state)
{
    (void)state;
    uint64_t seed = tpo_test_seed();
    for (int i = 0; i < 20000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint32_t bits = (uint32_t)(seed >> 32);
        Tpo__V1__Moment m = TPO__V1__MOMENT__INIT;
        memcpy(&m.score, &bits, 4);
        memcpy(&m.start_s, &seed, 8);
        if (!isfinite(m.score) || !isfinite(m.start_s)) continue;
        struct tpo_text out = {0};
        assert_int_equal(tpo_protojson_encode(&out, &m.base, NULL), TPO_OK);
        Tpo__V1__Moment *back = decode(&tpo__v1__moment__descriptor, out.data);
        assert_memory_equal(&back->score, &m.score, 4);
        assert_memory_equal(&back->start_s, &m.start_s, 8);
        protobuf_c_message_free_unpacked(&back->base, NULL);
        tpo_text_free(&out);
    }
}

static void base64_of_every_length(void **state)
{
    (void)state;
    unsigned char data[64];
    for (size_t i = 0; i < sizeof(data); i++) data[i] = (unsigned char)(i * 37 + 250);
    for (size_t n = 0; n <= sizeof(data); n++) {
        Tpo__V1__MediaSource m = TPO__V1__MEDIA_SOURCE__INIT;
        m.data = (ProtobufCBinaryData){n, data};
        struct tpo_text out = {0};
        assert_int_equal(tpo_protojson_encode(&out, &m.base, NULL), TPO_OK);
        Tpo__V1__MediaSource *back = decode(&tpo__v1__media_source__descriptor, out.data);
        assert_int_equal(back->data.len, n);
        if (n > 0) assert_memory_equal(back->data.data, data, n);
        protobuf_c_message_free_unpacked(&back->base, NULL);
        tpo_text_free(&out);
    }
}

static void utf8_is_told_from_what_is_none(void **state)
{
    (void)state;
    assert_true(tpo_utf8_valid("h\xc3\xa9\xf0\x9f\x98\x80", 7));
    assert_false(tpo_utf8_valid("\xc0\x80", 2));
    assert_false(tpo_utf8_valid("\xed\xa0\x80", 3));
    assert_false(tpo_utf8_valid("\xf4\x90\x80\x80", 4));
    assert_false(tpo_utf8_valid("\xe2\x82", 2));
    assert_int_equal(tpo_utf8_count("h\xc3\xa9\xf0\x9f\x98\x80"), 3);
}

TPO_TESTS(cmocka_unit_test(every_kind_of_field_reads), cmocka_unit_test(what_is_wrong_is_refused_with_its_path),
          cmocka_unit_test(depth_ten_thousand_is_refused), cmocka_unit_test(a_million_values_are_refused_before_they_are_built),
          cmocka_unit_test(what_stands_within_a_string_is_one_value), cmocka_unit_test(zeros_of_present_messages_are_printed),
          cmocka_unit_test(numbers_survive_the_round_trip), cmocka_unit_test(base64_of_every_length),
          cmocka_unit_test(utf8_is_told_from_what_is_none))
