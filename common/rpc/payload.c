/* This file owns the bytes of messages: header and tensor to a byte buffer, and back. */
#include "common/rpc/payload.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define ALIGNMENT  64
#define DEPTH_MAX  16
#define BYTES_MAX  ((int64_t)1 << 31)
#define WIRE_BYTES 2 /* length-delimited */

static int shape_bytes(int dtype, int n_dims, const int64_t *shape, int64_t *bytes)
{
    if (n_dims < 0 || n_dims > TPO_PAYLOAD_DIMS_MAX || tpo_dtype_size(dtype) == 0) return TPO_EINVAL;
    *bytes = (int64_t)tpo_dtype_size(dtype);
    for (int i = 0; i < n_dims; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(*bytes, shape[i], bytes) || *bytes > BYTES_MAX) return TPO_EINVAL;
    return TPO_OK;
}

int tpo_payload_alloc(struct tpo_payload *p, int dtype, int n_dims, const int64_t *shape)
{
    int64_t bytes;
    memset(p, 0, sizeof(*p));
    if (shape_bytes(dtype, n_dims, shape, &bytes) != TPO_OK) return TPO_EINVAL;
    p->data = aligned_alloc(ALIGNMENT, ((size_t)bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    if (p->data == NULL) return TPO_ENOMEM;
    p->dtype = dtype;
    p->n_dims = n_dims;
    memcpy(p->shape, shape, (size_t)n_dims * sizeof(*shape));
    p->size_bytes = (size_t)bytes;
    return TPO_OK;
}

void tpo_payload_free(struct tpo_payload *p)
{
    if (p == NULL) return;
    free(p->data);
    memset(p, 0, sizeof(*p));
}

/* --- writing ---------------------------------------------------------------------------------------------------------------------------- */

static size_t put_varint(uint8_t *out, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

/* The tag and length of field 15, then the Tensor up to where its data begins. */
static size_t put_tensor_header(uint8_t out[160], const struct tpo_payload *p)
{
    uint8_t shape[TPO_PAYLOAD_DIMS_MAX * 10], inner[120];
    size_t n_shape = 0, n = 0;
    for (int i = 0; i < p->n_dims; i++) n_shape += put_varint(shape + n_shape, (uint64_t)p->shape[i]);
    inner[n++] = 1 << 3;
    n += put_varint(inner + n, (uint64_t)p->dtype);
    if (n_shape > 0) {
        inner[n++] = 2 << 3 | WIRE_BYTES;
        n += put_varint(inner + n, n_shape);
        memcpy(inner + n, shape, n_shape);
        n += n_shape;
    }
    inner[n++] = 3 << 3 | WIRE_BYTES;
    n += put_varint(inner + n, p->size_bytes);
    size_t at = 0;
    out[at++] = TPO_PAYLOAD_FIELD << 3 | WIRE_BYTES;
    at += put_varint(out + at, n + p->size_bytes);
    memcpy(out + at, inner, n);
    return at + n;
}

grpc_byte_buffer *tpo_message_pack(const ProtobufCMessage *header, struct tpo_payload *take_payload)
{
    bool has = take_payload != NULL && take_payload->data != NULL;
    uint8_t tensor[160];
    size_t n_header = protobuf_c_message_get_packed_size(header), n_tensor = has ? put_tensor_header(tensor, take_payload) : 0;
    grpc_slice slices[2];
    slices[0] = grpc_slice_malloc(n_header + n_tensor);
    protobuf_c_message_pack(header, GRPC_SLICE_START_PTR(slices[0]));
    if (has) {
        memcpy(GRPC_SLICE_START_PTR(slices[0]) + n_header, tensor, n_tensor);
        /* free runs on whichever thread drops the last reference. */
        slices[1] = grpc_slice_new_with_user_data(take_payload->data, take_payload->size_bytes, free, take_payload->data);
        memset(take_payload, 0, sizeof(*take_payload));
    }
    grpc_byte_buffer *bytes = grpc_raw_byte_buffer_create(slices, has ? 2 : 1);
    grpc_slice_unref(slices[0]);
    if (has) grpc_slice_unref(slices[1]);
    return bytes;
}

/* --- reading ---------------------------------------------------------------------------------------------------------------------------- */

struct cursor {
    const uint8_t *at, *end;
};

static bool get_varint(struct cursor *c, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && c->at < c->end; shift += 7) {
        uint8_t byte = *c->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

/* One field: its number, wire type and, for a length-delimited one, its bytes. */
static bool get_field(struct cursor *c, uint32_t *number, int *wire, uint64_t *value, struct cursor *bytes)
{
    uint64_t key;
    if (!get_varint(c, &key)) return false;
    *number = (uint32_t)(key >> 3);
    *wire = (int)(key & 7);
    size_t left = (size_t)(c->end - c->at), skip = 0;
    if (*wire == 0) return get_varint(c, value);
    if (*wire == 1) skip = 8;
    else if (*wire == 5) skip = 4;
    else if (*wire == WIRE_BYTES) {
        uint64_t n;
        if (!get_varint(c, &n) || n > (uint64_t)(c->end - c->at)) return false;
        *bytes = (struct cursor){c->at, c->at + n};
        c->at += n;
        return true;
    } else
        return false; /* groups are not proto3 */
    if (skip > left) return false;
    c->at += skip;
    return true;
}

static int bad(struct tpo_error *err, const char *reason, const char *text)
{
    return tpo_fail(err, TPO_INVALID_ARGUMENT, reason, "%s", text);
}

static int read_tensor(struct tpo_payload *p, struct cursor c, struct tpo_error *err)
{
    struct cursor data = {NULL, NULL}, packed;
    int64_t shape[TPO_PAYLOAD_DIMS_MAX], want;
    int dtype = 0, n_dims = 0, wire;
    uint32_t number;
    uint64_t value;
    while (c.at < c.end) {
        struct cursor bytes = {NULL, NULL};
        if (!get_field(&c, &number, &wire, &value, &bytes)) return bad(err, "proto", "the tensor is cut off");
        if (number == 1 && wire == 0) dtype = value <= TPO_I64 ? (int)value : 0;
        if (number == 3 && wire == WIRE_BYTES) data = bytes;
        if (number != 2) continue;
        for (packed = bytes; wire == 0 || packed.at < packed.end; wire = -1) {
            if (wire != 0 && !get_varint(&packed, &value)) return bad(err, "proto", "the tensor's shape is cut off");
            if (n_dims == TPO_PAYLOAD_DIMS_MAX) return bad(err, "tensor_shape", "the tensor has too many dimensions");
            shape[n_dims++] = (int64_t)value;
            if (wire == 0) break;
        }
    }
    size_t have = (size_t)(data.end - data.at);
    if (shape_bytes(dtype, n_dims, shape, &want) != TPO_OK || (uint64_t)want != have)
        return bad(err, "tensor_shape", "the tensor's dtype and shape do not match the length of its data");
    if (tpo_payload_alloc(p, dtype, n_dims, shape) != TPO_OK) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a tensor");
    if (have > 0) memcpy(p->data, data.at, have);
    return TPO_OK;
}

/* Copies every field but 15 to `rest` and finds field 15's bytes. */
static bool split(const uint8_t *bytes, size_t n, uint8_t *rest, size_t *n_rest, struct cursor *tensor)
{
    struct cursor c = {bytes, bytes + n}, inner = {NULL, NULL};
    uint32_t number;
    uint64_t value;
    int wire;
    *n_rest = 0;
    while (c.at < c.end) {
        const uint8_t *begin = c.at;
        if (!get_field(&c, &number, &wire, &value, &inner)) return false;
        if (number == TPO_PAYLOAD_FIELD && wire == WIRE_BYTES) {
            *tensor = inner;
            continue;
        }
        memcpy(rest + *n_rest, begin, (size_t)(c.at - begin));
        *n_rest += (size_t)(c.at - begin);
    }
    return true;
}

/* --- checks ------------------------------------------------------------------------------------------------------------------------------- */

/* protobuf-c unpacks any depth by recursion, so the depth is counted before: a message is as deep as its bytes nest under the descriptors. */
static bool shallow(const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *type, int depth)
{
    struct cursor c = {bytes, bytes + n};
    uint32_t number;
    uint64_t value;
    int wire;
    if (depth > DEPTH_MAX) return false;
    while (c.at < c.end) {
        struct cursor inner = {NULL, NULL};
        if (!get_field(&c, &number, &wire, &value, &inner)) return true; /* malformed: unpacking says so */
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(type, number);
        if (f == NULL || f->type != PROTOBUF_C_TYPE_MESSAGE || wire != WIRE_BYTES) continue;
        if (!shallow(inner.at, (size_t)(inner.end - inner.at), f->descriptor, depth + 1)) return false;
    }
    return true;
}

static bool present(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    if (!(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)) return true;
    uint32_t which;
    memcpy(&which, (const char *)m + f->quantifier_offset, sizeof(which));
    return which == f->id;
}

static int check_value(const ProtobufCFieldDescriptor *f, const void *value, struct tpo_error *err, int depth);

static int check_fields(const ProtobufCMessage *m, struct tpo_error *err, int depth)
{
    int rc = TPO_OK;
    if (depth > DEPTH_MAX) return bad(err, "depth", "the message is nested too deep");
    for (unsigned i = 0; i < m->descriptor->n_fields && rc == TPO_OK; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if ((f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE) || !present(m, f)) continue;
        const char *member = (const char *)m + f->offset;
        if (f->label != PROTOBUF_C_LABEL_REPEATED) {
            rc = check_value(f, *(void *const *)member, err, depth);
            continue;
        }
        size_t n;
        memcpy(&n, (const char *)m + f->quantifier_offset, sizeof(n));
        for (size_t k = 0; k < n && rc == TPO_OK; k++) rc = check_value(f, (*(void *const *const *)member)[k], err, depth);
    }
    return rc;
}

static int check_value(const ProtobufCFieldDescriptor *f, const void *value, struct tpo_error *err, int depth)
{
    if (value == NULL) return TPO_OK;
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) return check_fields(value, err, depth + 1);
    if (tpo_utf8_valid(value, strlen(value))) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "utf8", "%s is not UTF-8", f->name);
}

int tpo_message_check(const ProtobufCMessage *message, struct tpo_error *err)
{
    return check_fields(message, err, 0);
}

/* protobuf-c stores a string that holds a NUL and everyone then reads half of it: look at the bytes instead. */
static bool strings_whole(const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *type)
{
    struct cursor c = {bytes, bytes + n};
    uint32_t number;
    uint64_t value;
    int wire;
    while (c.at < c.end) {
        struct cursor inner = {NULL, NULL};
        if (!get_field(&c, &number, &wire, &value, &inner)) return true;
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(type, number);
        size_t length = (size_t)(inner.end - inner.at);
        if (f == NULL || wire != WIRE_BYTES) continue;
        if (f->type == PROTOBUF_C_TYPE_STRING && memchr(inner.at, 0, length) != NULL) return false;
        if (f->type == PROTOBUF_C_TYPE_MESSAGE && !strings_whole(inner.at, length, f->descriptor)) return false;
    }
    return true;
}

static int unpack_header(ProtobufCMessage **message, const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *type, struct tpo_error *err)
{
    if (!shallow(bytes, n, type, 1)) return bad(err, "depth", "the message is nested too deep");
    if (!strings_whole(bytes, n, type)) return bad(err, "utf8", "a string holds NUL");
    *message = protobuf_c_message_unpack(type, NULL, n, bytes);
    if (*message == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "proto", "the bytes are no %s", type->name);
    int rc = tpo_message_check(*message, err);
    if (rc == TPO_OK) return TPO_OK;
    protobuf_c_message_free_unpacked(*message, NULL);
    *message = NULL;
    return rc;
}

int tpo_message_unpack(ProtobufCMessage **message, struct tpo_payload *payload, grpc_byte_buffer *bytes,
                       const ProtobufCMessageDescriptor *type, struct tpo_error *err)
{
    grpc_byte_buffer_reader reader;
    struct cursor tensor = {NULL, NULL};
    size_t n_rest = 0;
    *message = NULL;
    if (payload != NULL) memset(payload, 0, sizeof(*payload));
    if (!grpc_byte_buffer_reader_init(&reader, bytes)) return bad(err, "proto", "the message could not be decompressed");
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    const uint8_t *start = GRPC_SLICE_START_PTR(all);
    size_t n = GRPC_SLICE_LENGTH(all);
    int rc;
    if (payload == NULL) {
        rc = unpack_header(message, start, n, type, err);
    } else {
        uint8_t *rest = malloc(n + 1);
        rc = rest == NULL ? tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a message")
             : !split(start, n, rest, &n_rest, &tensor) ? bad(err, "proto", "the message is malformed")
                                                        : TPO_OK;
        if (rc == TPO_OK) rc = unpack_header(message, rest, n_rest, type, err);
        if (rc == TPO_OK && tensor.at != NULL) rc = read_tensor(payload, tensor, err);
        free(rest);
    }
    if (rc != TPO_OK && *message != NULL) {
        protobuf_c_message_free_unpacked(*message, NULL);
        *message = NULL;
    }
    grpc_slice_unref(all);
    return rc;
}
