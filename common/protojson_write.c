/* This file owns the writing of protobuf-c messages as JSON. */
#include "common/protojson_private.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The shortest spelling that reads back the same. */
static int write_real(struct tpo_text *out, double d, bool single, const struct tpo_json_path *p, struct tpo_error *err)
{
    if (!isfinite(d)) return tpo_json_fail_at(err, TPO_INTERNAL, "json_value", p, "not a finite number");
    char text[40];
    for (int digits = single ? 6 : 15;; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, d);
        if (digits >= 17 || (single ? strtof(text, NULL) == (float)d : strtod(text, NULL) == d)) break;
    }
    tpo_text_puts(out, text);
    return TPO_OK;
}

static int write_message(struct tpo_text *out, const ProtobufCMessage *m, const struct tpo_json_path *p, int depth,
                         struct tpo_error *err);

static int write_value(struct tpo_text *out, const void *from, const ProtobufCFieldDescriptor *f, const struct tpo_json_path *p,
                       int depth, struct tpo_error *err)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        tpo_text_printf(out, "%d", *(const int32_t *)from);
        return TPO_OK;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        tpo_text_printf(out, "%u", *(const uint32_t *)from);
        return TPO_OK;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        tpo_text_printf(out, "\"%lld\"", (long long)*(const int64_t *)from);
        return TPO_OK;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        tpo_text_printf(out, "\"%llu\"", (unsigned long long)*(const uint64_t *)from);
        return TPO_OK;
    case PROTOBUF_C_TYPE_FLOAT:
        return write_real(out, *(const float *)from, true, p, err);
    case PROTOBUF_C_TYPE_DOUBLE:
        return write_real(out, *(const double *)from, false, p, err);
    case PROTOBUF_C_TYPE_BOOL:
        tpo_text_puts(out, *(const protobuf_c_boolean *)from ? "true" : "false");
        return TPO_OK;
    case PROTOBUF_C_TYPE_ENUM: {
        const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(f->descriptor, *(const int32_t *)from);
        if (value != NULL)
            tpo_text_printf(out, "\"%s\"", value->name);
        else
            tpo_text_printf(out, "%d", *(const int32_t *)from);
        return TPO_OK;
    }
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)from != NULL ? *(char *const *)from : "";
        if (!tpo_utf8_valid(text, strlen(text))) return tpo_json_fail_at(err, TPO_INTERNAL, "json_value", p, "ill-formed UTF-8");
        tpo_text_json(out, text, strlen(text));
        return TPO_OK;
    }
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *bytes = from;
        tpo_text_puts(out, "\"");
        tpo_text_base64(out, bytes->data, bytes->len);
        tpo_text_puts(out, "\"");
        return TPO_OK;
    }
    case PROTOBUF_C_TYPE_MESSAGE:
        return write_message(out, *(ProtobufCMessage *const *)from, p, depth, err);
    }
    return tpo_json_fail_at(err, TPO_INTERNAL, "json_value", p, "a field of unknown type");
}

static bool is_present(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED) return true;
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF && *(const uint32_t *)((const char *)m + f->quantifier_offset) != f->id)
        return false;
    return f->type != PROTOBUF_C_TYPE_MESSAGE || *(ProtobufCMessage *const *)((const char *)m + f->offset) != NULL;
}

static int write_list(struct tpo_text *out, const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
                      const struct tpo_json_path *p, int depth, struct tpo_error *err)
{
    size_t n = *(const size_t *)((const char *)m + f->quantifier_offset);
    const char *items = *(char *const *)((const char *)m + f->offset);
    tpo_text_puts(out, "[");
    for (size_t i = 0; i < n; i++) {
        struct tpo_json_path here = {.up = p, .index = i};
        if (i > 0) tpo_text_puts(out, ",");
        int rc = write_value(out, items + i * tpo_json_element_size(f), f, &here, depth, err);
        if (rc != TPO_OK) return rc;
    }
    tpo_text_puts(out, "]");
    return TPO_OK;
}

static int write_message(struct tpo_text *out, const ProtobufCMessage *m, const struct tpo_json_path *p, int depth,
                         struct tpo_error *err)
{
    if (depth >= TPO_PROTOJSON_DEPTH) return tpo_json_fail_at(err, TPO_INTERNAL, "json_depth", p, "nested too deep");
    const char *comma = "";
    tpo_text_puts(out, "{");
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (!is_present(m, f)) continue;
        char name[96];
        tpo_json_camel(name, sizeof(name), f->name);
        tpo_text_printf(out, "%s\"%s\":", comma, name);
        comma = ",";
        struct tpo_json_path here = {.up = p, .name = f->name};
        int rc = f->label == PROTOBUF_C_LABEL_REPEATED ? write_list(out, m, f, &here, depth + 1, err)
                                                       : write_value(out, (const char *)m + f->offset, f, &here, depth + 1, err);
        if (rc != TPO_OK) return rc;
    }
    tpo_text_puts(out, "}");
    return TPO_OK;
}

int tpo_protojson_encode(struct tpo_text *out, const ProtobufCMessage *message, struct tpo_error *err)
{
    int rc = write_message(out, message, NULL, 0, err);
    if (rc == TPO_OK && out->failed) rc = tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    return rc;
}
