/* The bytes of messages and of the tensor at their end: ours, another encoder's, and a stranger's. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>

#include "common/rpc/details.h"
#include "common/rpc/payload.h"
#include "common/rpc/wire.h"
#include "encoder.pb-c.h"
#include "gateway.pb-c.h"
#include "google/rpc.pb-c.h"
#include "router.pb-c.h"
#include "tests/support/test.h"

/* `bytes` as a byte buffer of slices of at most `step`. */
static grpc_byte_buffer *buffer(const uint8_t *bytes, size_t n, size_t step)
{
    grpc_slice slices[512];
    size_t count = 0;
    for (size_t at = 0; at < n; at += step)
        slices[count++] = grpc_slice_from_copied_buffer((const char *)bytes + at, n - at < step ? n - at : step);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(slices, count);
    for (size_t i = 0; i < count; i++) grpc_slice_unref(slices[i]);
    return b;
}

static int unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t n, size_t step, ProtobufCMessage **message,
                  struct tpo_payload *payload, struct tpo_error *err)
{
    grpc_byte_buffer *b = buffer(bytes, n, step);
    int rc = tpo_message_unpack(message, payload, b, type, err);
    grpc_byte_buffer_destroy(b);
    return rc;
}

static size_t flatten(grpc_byte_buffer *b, uint8_t *out)
{
    grpc_byte_buffer_reader reader;
    assert_true(grpc_byte_buffer_reader_init(&reader, b));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    size_t n = GRPC_SLICE_LENGTH(all);
    memcpy(out, GRPC_SLICE_START_PTR(all), n);
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    return n;
}

static size_t sample(uint8_t *out, int64_t rows, int64_t cols)
{
    Tpo__V1__EncodeReply reply = TPO__V1__ENCODE_REPLY__INIT;
    struct tpo_payload p;
    int64_t shape[2] = {rows, cols};
    assert_int_equal(tpo_payload_alloc(&p, TPO_F32, 2, shape), TPO_OK);
    for (int64_t i = 0; i < rows * cols; i++) ((float *)p.data)[i] = (float)i;
    reply.digest = "d\xc3\xa9";
    reply.version = 7;
    grpc_byte_buffer *b = tpo_message_pack(&reply.base, &p);
    assert_null(p.data);
    size_t n = flatten(b, out);
    grpc_byte_buffer_destroy(b);
    return n;
}

static void comes_back_however_it_is_sliced(void **state)
{
    (void)state;
    static uint8_t bytes[1 << 16];
    static const int64_t sizes[][2] = {{0, 5}, {1, 1}, {31, 33}, {96, 100}};
    static const size_t steps[] = {1 << 20, 4096, 200, 140};
    struct tpo_error err;
    grpc_init();
    for (int k = 0; k < 4; k++) {
        size_t n = sample(bytes, sizes[k][0], sizes[k][1]), elements = (size_t)(sizes[k][0] * sizes[k][1]);
        for (int i = 0; i < 4; i++) {
            ProtobufCMessage *m;
            struct tpo_payload p;
            assert_int_equal(unpack(&tpo__v1__encode_reply__descriptor, bytes, n, steps[i], &m, &p, &err), TPO_OK);
            assert_string_equal(((Tpo__V1__EncodeReply *)m)->digest, "d\xc3\xa9");
            assert_null(((Tpo__V1__EncodeReply *)m)->visual);
            assert_int_equal(p.size_bytes, elements * 4);
            assert_int_equal((uintptr_t)p.data % 64, 0);
            for (size_t j = 0; j < elements; j++) assert_true(((float *)p.data)[j] == (float)j);
            protobuf_c_message_free_unpacked(m, NULL);
            tpo_payload_free(&p);
        }
    }
    grpc_shutdown();
}

static void any_encoder_reads_what_we_write(void **state)
{
    (void)state;
    static uint8_t bytes[1 << 16];
    grpc_init();
    size_t n = sample(bytes, 31, 33);
    Tpo__V1__EncodeReply *reply = tpo__v1__encode_reply__unpack(NULL, n, bytes);
    assert_non_null(reply);
    assert_int_equal(reply->visual->dtype, TPO__V1__DTYPE__DTYPE_F32);
    assert_int_equal(reply->visual->n_shape, 2);
    assert_int_equal(reply->visual->shape[1], 33);
    assert_int_equal(reply->visual->data.len, 31 * 33 * 4);
    tpo__v1__encode_reply__free_unpacked(reply, NULL);
    grpc_shutdown();
}

static void we_read_what_any_encoder_writes(void **state)
{
    (void)state;
    /* The tensor first, its data before its shape, the shape unpacked, a field of a later version, then the digest. */
    static const uint8_t bytes[] = {0x7a, 14, 0x1a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0x08, 5, 0x10, 2, 0x2a, 1, 'x', 0xa0, 0x1f, 1};
    ProtobufCMessage *m;
    struct tpo_payload p;
    struct tpo_error err;
    grpc_init();
    for (size_t step = 1; step < sizeof(bytes); step++) {
        int rc = unpack(&tpo__v1__encode_reply__descriptor, bytes, sizeof(bytes), step, &m, &p, &err);
        if (rc != TPO_OK) fail_msg("%s", err.message);
        assert_string_equal(((Tpo__V1__EncodeReply *)m)->digest, "x");
        assert_int_equal(p.dtype, TPO_I32);
        assert_int_equal(p.n_dims, 1);
        assert_int_equal(p.shape[0], 2);
        assert_int_equal(((uint8_t *)p.data)[7], 8);
        protobuf_c_message_free_unpacked(m, NULL);
        tpo_payload_free(&p);
    }
    /* The same unpacked as any other field, where the caller expects no payload. */
    assert_int_equal(unpack(&tpo__v1__encode_reply__descriptor, bytes, sizeof(bytes), 4, &m, NULL, &err), TPO_OK);
    assert_int_equal(((Tpo__V1__EncodeReply *)m)->visual->data.len, 8);
    protobuf_c_message_free_unpacked(m, NULL);
    grpc_shutdown();
}

static void refused(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t n, int code, const char *reason)
{
    ProtobufCMessage *m;
    struct tpo_payload p;
    struct tpo_error err;
    assert_int_equal(unpack(type, bytes, n, 1 << 20, &m, &p, &err), code);
    assert_string_equal(err.reason, reason);
    assert_null(m);
    assert_null(p.data);
}

static void what_is_wrong_is_refused(void **state)
{
    (void)state;
    const ProtobufCMessageDescriptor *reply = &tpo__v1__encode_reply__descriptor;
    grpc_init();
    refused(reply, (const uint8_t[]){0x7a, 8, 8, 1, 0x12, 1, 2, 0x1a, 1, 9}, 10, TPO_INVALID_ARGUMENT,
            "tensor_shape"); /* 2 floats in a byte */
    refused(reply, (const uint8_t[]){0x7a, 7, 8, 99, 0x12, 1, 0, 0x1a, 0}, 9, TPO_INVALID_ARGUMENT, "tensor_shape");
    refused(reply, (const uint8_t[]){0x7a, 16, 8, 1, 0x12, 10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0x1a, 0}, 18,
            TPO_INVALID_ARGUMENT, "tensor_shape"); /* -1 rows */
    refused(reply, (const uint8_t[]){0x7a, 18, 8, 4, 0x12, 12, 128, 128, 128, 128, 16, 128, 128, 128, 128, 16, 1, 1, 0x1a, 0}, 20,
            TPO_INVALID_ARGUMENT, "tensor_shape"); /* 2^32 x 2^32 bytes, none there */
    refused(reply, (const uint8_t[]){0x2a, 3, 'a', 0, 'b'}, 5, TPO_INVALID_ARGUMENT, "utf8");
    refused(reply, (const uint8_t[]){0x2a, 2, 0xc0, 0x80}, 4, TPO_INVALID_ARGUMENT, "utf8");
    refused(reply, (const uint8_t[]){0x2a, 9, 'a'}, 3, TPO_INVALID_ARGUMENT, "proto");
    refused(reply, (const uint8_t[]){0x2b, 0x2c}, 2, TPO_INVALID_ARGUMENT, "proto"); /* a group */
    refused(reply, (const uint8_t[]){0x00}, 1, TPO_INVALID_ARGUMENT, "proto");
    refused(reply, (const uint8_t[]){0x80}, 1, TPO_INVALID_ARGUMENT, "proto");
    grpc_shutdown();
}

static void few_bytes_do_not_become_much_memory(void **state)
{
    (void)state;
    size_t n = 4 << 20;
    uint8_t *bytes = malloc(n);
    ProtobufCMessage *m;
    struct tpo_error err;
    grpc_init();
    for (size_t i = 0; i < n; i += 2) bytes[i] = 0x12, bytes[i + 1] = 0; /* two million turns without a word */
    assert_int_equal(unpack(&tpo__v1__perceive_request__descriptor, bytes, n, n, &m, NULL, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "proto_memory");
    free(bytes);
    grpc_shutdown();
}

/* What a peer's error details leave in an error that says "before". */
static struct tpo_error told(const char *reason, const char *stage, int64_t seconds, int32_t nanos)
{
    uint8_t info_bytes[512], retry_bytes[64], bytes[1024];
    Google__Rpc__ErrorInfo__MetadataEntry entry = GOOGLE__RPC__ERROR_INFO__METADATA_ENTRY__INIT, *entries[] = {&entry};
    entry.key = "stage", entry.value = (char *)stage;
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    info.reason = (char *)reason, info.n_metadata = 1, info.metadata = entries;
    Google__Rpc__Duration delay = GOOGLE__RPC__DURATION__INIT;
    delay.seconds = seconds, delay.nanos = nanos;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    retry.retry_delay = &delay;
    Google__Rpc__Any any[2] = {GOOGLE__RPC__ANY__INIT, GOOGLE__RPC__ANY__INIT}, *details[] = {&any[0], &any[1]};
    any[0].type_url = "type.googleapis.com/google.rpc.ErrorInfo";
    any[0].value = (ProtobufCBinaryData){google__rpc__error_info__pack(&info, info_bytes), info_bytes};
    any[1].type_url = "type.googleapis.com/google.rpc.RetryInfo";
    any[1].value = (ProtobufCBinaryData){google__rpc__retry_info__pack(&retry, retry_bytes), retry_bytes};
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    status.n_details = 2, status.details = details;
    struct tpo_error err = {.reason = "before", .stage = "before", .retry_ms = 7};
    tpo_details_unpack(&err, bytes, google__rpc__status__pack(&status, bytes));
    return err;
}

static void told_is(struct tpo_error got, const char *reason, const char *stage, int retry_ms)
{
    assert_string_equal(got.reason, reason);
    assert_string_equal(got.stage, stage);
    assert_int_equal(got.retry_ms, retry_ms);
}

static void details_that_are_none_change_nothing(void **state)
{
    (void)state;
    told_is(told("queue_full", "router", 1, 500000000), "queue_full", "router", 1500);
    told_is(told("queue_full", "rout\xdb", 1, 0), "before", "before", 1000);
    told_is(told("a_word_of_more_bytes_than_any_reason_of_ours_ever_has", "router", 1, 0), "before", "router", 1000);
    told_is(told("full", "a_stage_of_thirty_bytes_or_so_", 1, 0), "full", "before", 1000);
    told_is(told("full", "router", 0, -2000000000), "full", "router", 7);
    told_is(told("full", "router", 0, 1000000000), "full", "router", 7);
    told_is(told("full", "router", -1, 0), "full", "router", 7);
    told_is(told("full", "router", 86400, 0), "full", "router", 7);
}

/* Anything may come back but a crash; the sanitizers watch. */
static void damaged_bytes_are_survived(void **state)
{
    (void)state;
    static uint8_t good[1 << 12], bad[1 << 12];
    uint64_t seed = tpo_test_seed();
    grpc_init();
    size_t n = sample(good, 3, 5);
    for (int round = 0; round < 20000; round++) {
        memcpy(bad, good, n);
        size_t length = n;
        for (int k = 0; k < 1 + round % 4; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            bad[(seed >> 33) % n] = (uint8_t)(seed >> 24);
        }
        if (round % 3 == 0) length = (seed >> 40) % (n + 1);
        ProtobufCMessage *m;
        struct tpo_payload p;
        struct tpo_error err;
        int rc = unpack(&tpo__v1__encode_reply__descriptor, bad, length, round % 5 == 0 ? 16 : 4096, &m, &p, &err);
        if (rc == TPO_OK)
            protobuf_c_message_free_unpacked(m, NULL);
        else
            assert_true(rc == TPO_INVALID_ARGUMENT || rc == TPO_RESOURCE_EXHAUSTED);
        tpo_payload_free(&p);
    }
    grpc_shutdown();
}

TPO_TESTS(cmocka_unit_test(comes_back_however_it_is_sliced), cmocka_unit_test(any_encoder_reads_what_we_write),
          cmocka_unit_test(we_read_what_any_encoder_writes), cmocka_unit_test(what_is_wrong_is_refused),
          cmocka_unit_test(few_bytes_do_not_become_much_memory), cmocka_unit_test(details_that_are_none_change_nothing),
          cmocka_unit_test(damaged_bytes_are_survived))
