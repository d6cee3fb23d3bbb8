/* This file owns the bytes of a message and of the tensor at its end. */
#include "common/rpc/payload.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <stdlib.h>
#include <string.h>

#include "common.pb-c.h"
#include "common/rpc/wire.h"

#define ALIGNMENT    64
#define INLINE_BYTES 4096 /* below this a copy is cheaper than a slice of its own */
#define HEAD_MAX     (16 + 11 * TPO_PAYLOAD_DIMS_MAX + 32)

/* Elements of a shape, -1 when a size is negative or the product too large to mean it. */
static int64_t elements(int n_dims, const int64_t *shape)
{
    int64_t n = 1;
    if (n_dims < 0 || n_dims > TPO_PAYLOAD_DIMS_MAX) return -1;
    for (int i = 0; i < n_dims; i++) {
        if (shape[i] < 0 || shape[i] > INT32_MAX) return -1;
        if (shape[i] != 0 && n > INT32_MAX / shape[i]) return -1;
        n *= shape[i];
    }
    return n;
}

static void *alloc_aligned(size_t bytes)
{
    return aligned_alloc(ALIGNMENT, bytes == 0 ? ALIGNMENT : (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1));
}

int tpo_payload_alloc(struct tpo_payload *p, int dtype, int n_dims, const int64_t *shape)
{
    memset(p, 0, sizeof(*p));
    int64_t n = elements(n_dims, shape), size = (int64_t)tpo_dtype_size(dtype);
    if (n < 0 || size == 0 || n > INT32_MAX / size) return TPO_EINVAL;
    p->data = alloc_aligned((size_t)(n * size));
    if (p->data == NULL) return TPO_ENOMEM;
    p->dtype = dtype;
    p->n_dims = n_dims;
    for (int i = 0; i < n_dims; i++) p->shape[i] = shape[i];
    p->size_bytes = (size_t)(n * size);
    return TPO_OK;
}

void tpo_payload_free(struct tpo_payload *p)
{
    if (p == NULL) return;
    free(p->data);
    memset(p, 0, sizeof(*p));
}

/* --- sending ---------------------------------------------------------------------------------------------------------------------- */

/* The bytes between header and data: field 15, dtype, shape, data's key and length. */
static size_t payload_head(uint8_t *out, const struct tpo_payload *p)
{
    uint8_t inner[HEAD_MAX], shape[11 * TPO_PAYLOAD_DIMS_MAX];
    size_t n_shape = 0, n = 0, total = 0;
    for (int i = 0; i < p->n_dims; i++) n_shape += tpo_wire_put(shape + n_shape, (uint64_t)p->shape[i]);
    inner[n++] = 1 << 3;
    n += tpo_wire_put(inner + n, (uint64_t)p->dtype);
    if (n_shape > 0) {
        inner[n++] = 2 << 3 | 2;
        n += tpo_wire_put(inner + n, n_shape);
        memcpy(inner + n, shape, n_shape);
        n += n_shape;
    }
    inner[n++] = 3 << 3 | 2;
    n += tpo_wire_put(inner + n, p->size_bytes);
    out[total++] = TPO_PAYLOAD_FIELD << 3 | 2;
    total += tpo_wire_put(out + total, n + p->size_bytes);
    memcpy(out + total, inner, n);
    return total + n;
}

grpc_byte_buffer *tpo_message_pack(const ProtobufCMessage *header, struct tpo_payload *take_payload)
{
    uint8_t head[HEAD_MAX];
    struct tpo_payload p = {0};
    if (take_payload != NULL) {
        p = *take_payload;
        memset(take_payload, 0, sizeof(*take_payload));
    }
    size_t n_head = p.data != NULL ? payload_head(head, &p) : 0;
    size_t n_header = protobuf_c_message_get_packed_size(header), n_inline = p.size_bytes <= INLINE_BYTES ? p.size_bytes : 0;
    grpc_slice slices[2];
    size_t n_slices = 1;
    slices[0] = grpc_slice_malloc(n_header + n_head + n_inline);
    uint8_t *start = GRPC_SLICE_START_PTR(slices[0]);
    protobuf_c_message_pack(header, start);
    memcpy(start + n_header, head, n_head);
    if (n_inline > 0) memcpy(start + n_header + n_head, p.data, n_inline);
    /* The slice may be let go on any thread; free does not mind. */
    if (p.data != NULL && p.size_bytes > n_inline)
        slices[n_slices++] = grpc_slice_new_with_user_data(p.data, p.size_bytes, free, p.data);
    else
        free(p.data);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(slices, n_slices);
    for (size_t i = 0; i < n_slices; i++) grpc_slice_unref(slices[i]);
    return buffer;
}

/* --- receiving -------------------------------------------------------------------------------------------------------------------- */

/* Where a payload was found: the header's length, and where data begins; it goes to the end of the message. */
struct place {
    size_t header, data;
};

static bool read_shape(struct tpo_payload *p, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint64_t size;
        if (p->n_dims == TPO_PAYLOAD_DIMS_MAX || (at = tpo_wire_get(at, end, &size)) == NULL) return false;
        p->shape[p->n_dims++] = (int64_t)size;
    }
    return true;
}

/* The Tensor's own fields, from `at`; the message has `total` bytes of which those before `end` are at hand. False: not the form we write. */
static bool find_data(struct tpo_payload *p, struct place *place, const uint8_t *bytes, const uint8_t *at, const uint8_t *end,
                      size_t total)
{
    struct tpo_wire_field f;
    while (tpo_wire_next(&at, end, &f)) {
        if (f.number == 3 && f.type == TPO_WIRE_BYTES) {
            place->data = (size_t)(f.data - bytes);
            p->size_bytes = f.size;
            return place->data + f.size == total;
        }
        if (f.size > (size_t)(end - f.data)) return false;
        if (f.number == 1 && f.type == TPO_WIRE_VARINT)
            p->dtype = f.value <= INT32_MAX ? (int)f.value : -1;
        else if (f.number == 2 && f.type == TPO_WIRE_BYTES && read_shape(p, f.data, f.data + f.size)) {
        } else
            return false;
        at = f.data + f.size;
    }
    return false;
}

static bool find_payload(struct tpo_payload *p, struct place *place, const uint8_t *bytes, size_t n, size_t total)
{
    const uint8_t *at = bytes, *end = bytes + n;
    struct tpo_wire_field f;
    memset(p, 0, sizeof(*p));
    for (;;) {
        const uint8_t *field = at;
        if (!tpo_wire_next(&at, end, &f)) return false;
        if (f.number == TPO_PAYLOAD_FIELD) {
            place->header = (size_t)(field - bytes);
            return f.type == TPO_WIRE_BYTES && (size_t)(f.data - bytes) + f.size == total &&
                   find_data(p, place, bytes, f.data, end, total);
        }
        if (f.size > (size_t)(end - f.data)) return false;
        at = f.data + f.size;
    }
}

static int check_payload(const struct tpo_payload *p, struct tpo_error *err)
{
    int64_t n = elements(p->n_dims, p->shape);
    size_t size = tpo_dtype_size(p->dtype);
    if (size == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "tensor_shape", "tensor: dtype %d is not known", p->dtype);
    if (n < 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "tensor_shape", "tensor: a size of its shape is negative or too large");
    if ((size_t)n * size != p->size_bytes)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "tensor_shape", "tensor: %zu bytes of data, its shape asks for %zu",
                        p->size_bytes, (size_t)n * size);
    return TPO_OK;
}

/* Copies what follows `skip` bytes of the message to aligned memory, slice by slice. */
static int copy_data(struct tpo_payload *p, grpc_byte_buffer *bytes, size_t skip)
{
    grpc_byte_buffer_reader reader;
    grpc_slice *slice;
    size_t filled = 0;
    p->data = alloc_aligned(p->size_bytes);
    if (p->data == NULL || !grpc_byte_buffer_reader_init(&reader, bytes)) return TPO_ENOMEM;
    while (filled < p->size_bytes && grpc_byte_buffer_reader_peek(&reader, &slice)) {
        size_t n = GRPC_SLICE_LENGTH(*slice), from = skip < n ? skip : n;
        if (n - from > 0) memcpy((char *)p->data + filled, GRPC_SLICE_START_PTR(*slice) + from, n - from);
        filled += n - from;
        skip -= from;
    }
    grpc_byte_buffer_reader_destroy(&reader);
    return filled == p->size_bytes ? TPO_OK : TPO_DATA_LOSS;
}

static int unpack_header(ProtobufCMessage **message, const uint8_t *bytes, size_t n, const ProtobufCMessageDescriptor *type,
                         struct tpo_error *err)
{
    int rc = tpo_wire_check(type, bytes, n, err);
    if (rc != TPO_OK) return rc;
    *message = protobuf_c_message_unpack(type, NULL, n, bytes);
    if (*message == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "proto", "the bytes are no %s", type->name);
    return TPO_OK;
}

/* The slow way: a Tensor that another encoder wrote, unpacked with the rest and then taken out. */
static int take_tensor(struct tpo_payload *p, ProtobufCMessage *message, struct tpo_error *err)
{
    memset(p, 0, sizeof(*p));
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(message->descriptor, TPO_PAYLOAD_FIELD);
    if (field == NULL || field->descriptor != &tpo__v1__tensor__descriptor) return TPO_OK;
    Tpo__V1__Tensor **slot = (Tpo__V1__Tensor **)((char *)message + field->offset), *t = *slot;
    if (t == NULL) return TPO_OK;
    if (t->n_shape > TPO_PAYLOAD_DIMS_MAX)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "tensor_shape", "tensor: %zu dimensions", t->n_shape);
    p->dtype = (int)t->dtype;
    p->n_dims = (int)t->n_shape;
    for (int i = 0; i < p->n_dims; i++) p->shape[i] = t->shape[i];
    p->size_bytes = t->data.len;
    int rc = check_payload(p, err);
    if (rc != TPO_OK) return rc;
    p->data = alloc_aligned(p->size_bytes);
    if (p->data == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory for a tensor");
    if (p->size_bytes > 0) memcpy(p->data, t->data.data, p->size_bytes);
    tpo__v1__tensor__free_unpacked(t, NULL);
    *slot = NULL;
    return TPO_OK;
}

static int unpack_found(ProtobufCMessage **message, struct tpo_payload *payload, const struct place *place, const uint8_t *head,
                        grpc_byte_buffer *bytes, const ProtobufCMessageDescriptor *type, struct tpo_error *err)
{
    int rc = check_payload(payload, err);
    if (rc == TPO_OK) rc = unpack_header(message, head, place->header, type, err);
    if (rc != TPO_OK) return rc;
    rc = copy_data(payload, bytes, place->data);
    return rc == TPO_OK ? rc : tpo_fail(err, rc, "memory", "no room for a tensor of %zu bytes", payload->size_bytes);
}

/* The header nearly always lies within the first slice: then the data is copied once and nothing else of the message is. */
static int unpack_first_slice(ProtobufCMessage **message, struct tpo_payload *payload, grpc_byte_buffer *bytes, size_t total,
                              const ProtobufCMessageDescriptor *type, struct tpo_error *err, bool *found)
{
    grpc_byte_buffer_reader reader;
    grpc_slice *slice;
    struct place place;
    int rc = TPO_OK;
    if (!grpc_byte_buffer_reader_init(&reader, bytes))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "proto", "the message cannot be read");
    *found = grpc_byte_buffer_reader_peek(&reader, &slice) &&
             find_payload(payload, &place, GRPC_SLICE_START_PTR(*slice), GRPC_SLICE_LENGTH(*slice), total);
    if (*found) rc = unpack_found(message, payload, &place, GRPC_SLICE_START_PTR(*slice), bytes, type, err);
    grpc_byte_buffer_reader_destroy(&reader);
    return rc;
}

static int unpack_whole(ProtobufCMessage **message, struct tpo_payload *payload, grpc_byte_buffer *bytes,
                        const ProtobufCMessageDescriptor *type, struct tpo_error *err)
{
    grpc_byte_buffer_reader reader;
    struct place place;
    if (!grpc_byte_buffer_reader_init(&reader, bytes))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "proto", "the message cannot be read");
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    const uint8_t *start = GRPC_SLICE_START_PTR(all);
    size_t n = GRPC_SLICE_LENGTH(all);
    int rc;
    if (payload != NULL && find_payload(payload, &place, start, n, n)) {
        rc = unpack_found(message, payload, &place, start, bytes, type, err);
    } else {
        rc = unpack_header(message, start, n, type, err);
        if (rc == TPO_OK && payload != NULL) rc = take_tensor(payload, *message, err);
    }
    grpc_slice_unref(all);
    return rc;
}

int tpo_message_unpack(ProtobufCMessage **message, struct tpo_payload *payload, grpc_byte_buffer *bytes,
                       const ProtobufCMessageDescriptor *type, struct tpo_error *err)
{
    bool found = false;
    int rc = TPO_OK;
    *message = NULL;
    if (payload != NULL) {
        memset(payload, 0, sizeof(*payload));
        rc = unpack_first_slice(message, payload, bytes, grpc_byte_buffer_length(bytes), type, err, &found);
    }
    if (rc == TPO_OK && !found) rc = unpack_whole(message, payload, bytes, type, err);
    if (rc == TPO_OK) return TPO_OK;
    if (*message != NULL) protobuf_c_message_free_unpacked(*message, NULL);
    *message = NULL;
    tpo_payload_free(payload);
    return rc;
}
