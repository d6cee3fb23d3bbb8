/* This file owns the walk over a message's bytes. */
#include "common/rpc/wire.h"

#include "common/utf8.h"

size_t tpo_wire_put(uint8_t *out, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

const uint8_t *tpo_wire_get(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && at < end; shift += 7, at++) {
        *value |= (uint64_t)(*at & 0x7f) << shift;
        if (*at < 0x80) return at + 1;
    }
    return NULL;
}

bool tpo_wire_next(const uint8_t **at, const uint8_t *end, struct tpo_wire_field *f)
{
    uint64_t key;
    const uint8_t *p = *at == end ? NULL : tpo_wire_get(*at, end, &key);
    if (p == NULL || key >> 3 == 0 || key >> 3 > (1u << 29) - 1) return false;
    *f = (struct tpo_wire_field){.number = (uint32_t)(key >> 3), .type = (int)(key & 7), .data = p};
    switch (f->type) {
    case TPO_WIRE_VARINT:
        f->data = tpo_wire_get(p, end, &f->value);
        break;
    case TPO_WIRE_FIXED64:
        f->size = 8;
        break;
    case TPO_WIRE_FIXED32:
        f->size = 4;
        break;
    case TPO_WIRE_BYTES:
        f->data = tpo_wire_get(p, end, &f->value);
        if (f->value > INT32_MAX) return false;
        f->size = (size_t)f->value;
        break;
    default: /* groups left the language with proto2 */
        return false;
    }
    if (f->data == NULL) return false;
    *at = f->data;
    return true;
}

struct walk {
    size_t memory; /* an estimate of what protobuf-c will allocate */
    struct tpo_error *err;
};

static int unsound(struct walk *w, const ProtobufCMessageDescriptor *type)
{
    return tpo_fail(w->err, TPO_INVALID_ARGUMENT, "proto", "the bytes are no %s", type->name);
}

/* What `n` bytes of packed numbers unpack to: a varint of one byte becomes up to eight. */
static size_t packed_bytes(ProtobufCType type, size_t n)
{
    switch (type) {
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return n;
    default:
        return n * 8;
    }
}

static int check(struct walk *w, const ProtobufCMessageDescriptor *type, const uint8_t *at, const uint8_t *end, int depth)
{
    struct tpo_wire_field f;
    if (depth > TPO_WIRE_DEPTH_MAX)
        return tpo_fail(w->err, TPO_INVALID_ARGUMENT, "proto", "nested deeper than %d", TPO_WIRE_DEPTH_MAX);
    w->memory += type->sizeof_message;
    while (tpo_wire_next(&at, end, &f)) {
        if (f.size > (size_t)(end - f.data)) return unsound(w, type);
        /* A scanned member and, where repeated, a pointer: what a two-byte field may cost. */
        w->memory += 48;
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(type, f.number);
        int rc = TPO_OK;
        if (field == NULL || f.type != TPO_WIRE_BYTES) {
            /* A number, or a field of a later version. */
        } else if (field->type == PROTOBUF_C_TYPE_STRING) {
            if (!tpo_utf8_valid((const char *)f.data, f.size))
                rc = tpo_fail(w->err, TPO_INVALID_ARGUMENT, "utf8", "%s.%s is not UTF-8 or holds a NUL", type->short_name,
                              field->name);
        } else if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
            rc = check(w, field->descriptor, f.data, f.data + f.size, depth + 1);
        } else if (field->type != PROTOBUF_C_TYPE_BYTES) {
            w->memory += packed_bytes(field->type, f.size);
        }
        if (rc != TPO_OK) return rc;
        at = f.data + f.size;
    }
    return at == end ? TPO_OK : unsound(w, type);
}

int tpo_wire_check(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t n, struct tpo_error *err)
{
    struct walk w = {.err = err};
    int rc = check(&w, type, bytes, bytes + n, 1);
    if (rc == TPO_OK && w.memory > TPO_WIRE_MEMORY_MAX + 2 * n)
        rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "proto_memory", "%zu bytes would unpack to more than %zu", n, w.memory);
    return rc;
}
