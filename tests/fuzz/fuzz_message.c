/* A message of any bytes, as each hop would read it: refused with a typed error, or what was read packs to bytes that read the same, and the same
 * message comes however its bytes are sliced. The first byte chooses the message (the last choice: the details of an error) and, where it carries a
 * Tensor, whether that is taken apart; the second the size of the slices. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/details.h"
#include "common/rpc/payload.h"
#include "common/utf8.h"
#include "encoder.pb-c.h"
#include "gateway.pb-c.h"
#include "google/rpc.pb-c.h"
#include "grpc/health/v1/health.pb-c.h"
#include "head.pb-c.h"
#include "learner.pb-c.h"
#include "media.pb-c.h"
#include "router.pb-c.h"
#include "status.pb-c.h"

#define SLICES_MAX 256

/* What the methods of proto/ take and give; the corpus names them by their place, so new ones go to the end. */
static const ProtobufCMessageDescriptor *const types[] = {
    &tpo__v1__encode_request__descriptor,
    &tpo__v1__encode_reply__descriptor,
    &tpo__v1__perceive_request__descriptor,
    &tpo__v1__perceive_response__descriptor,
    &tpo__v1__perceive_event__descriptor,
    &tpo__v1__task_call__descriptor,
    &tpo__v1__task_result__descriptor,
    &tpo__v1__generate_request__descriptor,
    &tpo__v1__generate_event__descriptor,
    &tpo__v1__task_embedding__descriptor,
    &tpo__v1__media_chunk__descriptor,
    &tpo__v1__media_put_reply__descriptor,
    &tpo__v1__status_reply__descriptor,
    &tpo__v1__begin_request__descriptor,
    &tpo__v1__begin_reply__descriptor,
    &tpo__v1__forward_request__descriptor,
    &tpo__v1__forward_reply__descriptor,
    &tpo__v1__backward_request__descriptor,
    &tpo__v1__backward_reply__descriptor,
    &tpo__v1__step_request__descriptor,
    &tpo__v1__chunk__descriptor,
    &tpo__v1__import_reply__descriptor,
    &tpo__v1__norms_reply__descriptor,
    &tpo__v1__prepare_request__descriptor,
    &tpo__v1__export_request__descriptor,
    &tpo__v1__publish_request__descriptor,
    &tpo__v1__sample__descriptor,
    &tpo__v1__empty__descriptor,
    &grpc__health__v1__health_check_request__descriptor,
    &grpc__health__v1__health_check_response__descriptor,
    &google__rpc__status__descriptor,
    &tpo__v1__gather_request__descriptor,
};
#define N_TYPES (int)(sizeof(types) / sizeof(types[0]))

/* A message and the tensor that was taken out of it; m NULL: refused. */
struct read {
    int rc;
    ProtobufCMessage *m;
    struct tpo_payload payload;
};

static void read_free(struct read *r)
{
    if (r->m != NULL) protobuf_c_message_free_unpacked(r->m, NULL);
    tpo_payload_free(&r->payload);
}

static void check_refusal(const struct read *r, const struct tpo_error *err)
{
    static const char *const reasons[] = {"proto", "utf8", "tensor_shape", "proto_memory"};
    size_t i = 0;
    while (i < sizeof(reasons) / sizeof(reasons[0]) && strcmp(err->reason, reasons[i]) != 0) i++;
    TPO_ASSERT(i < sizeof(reasons) / sizeof(reasons[0]) && err->message[0] != '\0' && err->code == r->rc);
    TPO_ASSERT(r->m == NULL && r->payload.data == NULL);
}

static struct read read_buffer(const ProtobufCMessageDescriptor *type, bool apart, grpc_byte_buffer *bytes)
{
    struct read r = {0};
    struct tpo_error err = {0};
    r.rc = tpo_message_unpack(&r.m, apart ? &r.payload : NULL, bytes, type, &err);
    if (r.rc != TPO_OK) check_refusal(&r, &err);
    grpc_byte_buffer_destroy(bytes);
    return r;
}

/* In slices of `step` bytes, 0: one; the last one takes what many small ones leave. */
static grpc_byte_buffer *sliced(const uint8_t *bytes, size_t n, size_t step)
{
    grpc_slice slices[SLICES_MAX];
    size_t count = 0;
    for (size_t at = 0; at < n || count == 0;) {
        const size_t size = step == 0 || n - at < step || count == SLICES_MAX - 1 ? n - at : step;
        slices[count++] = grpc_slice_from_copied_buffer((const char *)bytes + at, size);
        at += size;
    }
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(slices, count);
    for (size_t i = 0; i < count; i++) grpc_slice_unref(slices[i]);
    return b;
}

/* The bytes of what was read, which stays as it is. */
static grpc_byte_buffer *packed(const struct read *r)
{
    struct tpo_payload copy = r->payload;
    if (copy.data != NULL) {
        TPO_ASSERT(tpo_payload_alloc(&copy, r->payload.dtype, r->payload.n_dims, r->payload.shape) == TPO_OK);
        memcpy(copy.data, r->payload.data, r->payload.size_bytes);
    }
    return tpo_message_pack(r->m, &copy);
}

static grpc_slice flat(grpc_byte_buffer *take_bytes)
{
    grpc_byte_buffer_reader reader;
    TPO_ASSERT(grpc_byte_buffer_reader_init(&reader, take_bytes));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(take_bytes);
    return all;
}

static void check_equal(const struct read *a, const struct read *b)
{
    const struct tpo_payload *p = &a->payload, *q = &b->payload;
    TPO_ASSERT(a->rc == b->rc && (p->data == NULL) == (q->data == NULL));
    if (a->rc != TPO_OK) return;
    TPO_ASSERT(p->dtype == q->dtype && p->n_dims == q->n_dims && p->size_bytes == q->size_bytes);
    TPO_ASSERT(memcmp(p->shape, q->shape, sizeof(p->shape)) == 0);
    TPO_ASSERT(p->size_bytes == 0 || memcmp(p->data, q->data, p->size_bytes) == 0);
    grpc_slice one = flat(packed(a)), two = flat(packed(b));
    TPO_ASSERT(GRPC_SLICE_LENGTH(one) == GRPC_SLICE_LENGTH(two));
    TPO_ASSERT(memcmp(GRPC_SLICE_START_PTR(one), GRPC_SLICE_START_PTR(two), GRPC_SLICE_LENGTH(one)) == 0);
    grpc_slice_unref(one);
    grpc_slice_unref(two);
}

static void try_message(const ProtobufCMessageDescriptor *type, bool apart, size_t step, const uint8_t *bytes, size_t n)
{
    struct read whole = read_buffer(type, apart, sliced(bytes, n, 0)), pieces = read_buffer(type, apart, sliced(bytes, n, step));
    check_equal(&whole, &pieces);
    if (whole.rc == TPO_OK) {
        struct read again = read_buffer(type, apart, packed(&whole)), plain = read_buffer(type, false, packed(&whole));
        check_equal(&whole, &again);
        TPO_ASSERT(plain.rc == TPO_OK);
        read_free(&again);
        read_free(&plain);
    }
    read_free(&whole);
    read_free(&pieces);
}

static bool is_text(const char *text, size_t capacity)
{
    return memchr(text, 0, capacity) != NULL && tpo_utf8_valid(text, strlen(text));
}

static void try_details(const uint8_t *bytes, size_t n)
{
    struct tpo_error err = {.code = TPO_UNAVAILABLE}, again = {.code = TPO_UNAVAILABLE};
    tpo_details_unpack(&err, bytes, n);
    TPO_ASSERT(is_text(err.reason, sizeof(err.reason)) && is_text(err.stage, sizeof(err.stage)) && err.retry_ms >= 0);
    grpc_slice out = tpo_details_pack(&err);
    tpo_details_unpack(&again, GRPC_SLICE_START_PTR(out), GRPC_SLICE_LENGTH(out));
    grpc_slice_unref(out);
    TPO_ASSERT(strcmp(err.reason, again.reason) == 0 && strcmp(err.stage, again.stage) == 0 && err.retry_ms == again.retry_ms);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static bool begun;
    if (!begun) grpc_init();
    begun = true;
    if (n < 2) return 0;
    const int choice = bytes[0] / 2 % (N_TYPES + 1);
    if (choice == N_TYPES) {
        try_details(bytes + 2, n - 2);
        return 0;
    }
    const ProtobufCFieldDescriptor *last = protobuf_c_message_descriptor_get_field(types[choice], TPO_PAYLOAD_FIELD);
    const bool apart = bytes[0] % 2 != 0 && last != NULL && last->descriptor == &tpo__v1__tensor__descriptor;
    try_message(types[choice], apart, bytes[1], bytes + 2, n - 2);
    return 0;
}
