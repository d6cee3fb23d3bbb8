/* This file owns the measure of an unpacked message. */
#include "common/message.h"

#include <stdbool.h>
#include <string.h>

#define EXTRA 16 /* of malloc's, for each piece */

/* Beyond the member itself. */
static size_t pointed_to(const void *at, const ProtobufCFieldDescriptor *f)
{
    const char *text;
    const ProtobufCMessage *m;
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING:
        text = *(char *const *)at;
        return text != NULL && text != f->default_value ? strlen(text) + 1 + EXTRA : 0;
    case PROTOBUF_C_TYPE_BYTES:
        return ((const ProtobufCBinaryData *)at)->len + EXTRA;
    case PROTOBUF_C_TYPE_MESSAGE:
        m = *(ProtobufCMessage *const *)at;
        return m != NULL ? tpo_message_bytes(m) : 0;
    default:
        return 0;
    }
}

static size_t list_bytes(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    size_t n = *(const size_t *)((const char *)m + f->quantifier_offset);
    size_t stride =
        f->type == PROTOBUF_C_TYPE_BYTES ? sizeof(ProtobufCBinaryData) : sizeof(void *); /* at most: a number may be less */
    const char *items = *(char *const *)((const char *)m + f->offset);
    bool walk = f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES || f->type == PROTOBUF_C_TYPE_MESSAGE;
    size_t bytes = n > 0 ? n * stride + EXTRA : 0;
    for (size_t i = 0; walk && i < n; i++) bytes += pointed_to(items + i * stride, f);
    return bytes;
}

size_t tpo_message_bytes(const ProtobufCMessage *m)
{
    size_t bytes = m->descriptor->sizeof_message + EXTRA;
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        bool oneof = f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF;
        if (f->label == PROTOBUF_C_LABEL_REPEATED)
            bytes += list_bytes(m, f);
        else if (!oneof || *(const uint32_t *)((const char *)m + f->quantifier_offset) == f->id)
            bytes += pointed_to((const char *)m + f->offset, f);
    }
    for (unsigned i = 0; i < m->n_unknown_fields; i++) bytes += sizeof(m->unknown_fields[i]) + m->unknown_fields[i].len + EXTRA;
    return bytes;
}
