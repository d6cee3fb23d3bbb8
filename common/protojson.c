/* This file owns the reading of JSON into protobuf-c messages; protojson_write.c is the other way. */
#include "common/protojson_private.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* --- what both ways need ------------------------------------------------------------------------------------------------------- */

static void path_print(const struct tpo_json_path *p, struct tpo_text *out)
{
    const struct tpo_json_path *stack[2 * TPO_PROTOJSON_DEPTH + 4];
    size_t n = 0;
    for (; p != NULL && n < sizeof(stack) / sizeof(stack[0]); p = p->up) stack[n++] = p;
    while (n-- > 0) {
        if (stack[n]->name != NULL)
            tpo_text_printf(out, "%s%.64s", out->size > 0 ? "." : "", stack[n]->name);
        else
            tpo_text_printf(out, "[%zu]", stack[n]->index);
    }
}

int tpo_json_fail_at(struct tpo_error *err, int code, const char *reason, const struct tpo_json_path *p, const char *what)
{
    struct tpo_text where = {0};
    path_print(p, &where);
    int rc = tpo_fail(err, code, reason, "%s: %s", where.data != NULL ? where.data : "message", what);
    /* A field's name may be cut in the middle of a code point. */
    if (err != NULL)
        for (char *c = err->message; *c != '\0'; c++)
            if ((unsigned char)*c >= 0x7f || (unsigned char)*c < 0x20) *c = '?';
    tpo_text_free(&where);
    return rc;
}

size_t tpo_json_element_size(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default:
        return 4;
    }
}

void tpo_json_camel(char *out, size_t size, const char *name)
{
    size_t n = 0;
    for (bool upper = false; *name != '\0' && n + 1 < size; name++) {
        if (*name == '_') {
            upper = true;
            continue;
        }
        out[n++] = upper && *name >= 'a' && *name <= 'z' ? (char)(*name - 'a' + 'A') : *name;
        upper = false;
    }
    out[n] = '\0';
}

/* --- reading ------------------------------------------------------------------------------------------------------------------- */

static int refuse(struct tpo_error *err, const struct tpo_json_path *p, const char *what)
{
    return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_value", p, what);
}

static int base64_digit(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' || c == '-' ? 62 : c == '/' || c == '_' ? 63 : -1;
}

static int read_bytes(ProtobufCBinaryData *out, const json_t *v, const struct tpo_json_path *p, struct tpo_error *err)
{
    if (!json_is_string(v)) return refuse(err, p, "base64 text expected");
    const char *text = json_string_value(v);
    size_t n = json_string_length(v), padding = 0;
    while (n > 0 && text[n - 1] == '=' && padding < 2) n--, padding++;
    if (n % 4 == 1 || (padding > 0 && (n + padding) % 4 != 0)) return refuse(err, p, "base64 of a wrong length");
    unsigned char *data = malloc(n / 4 * 3 + 3);
    if (data == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    size_t size = 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < n; i++) {
        int digit = base64_digit((unsigned char)text[i]);
        if (digit < 0) {
            free(data);
            return refuse(err, p, "not a base64 digit");
        }
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 != 0) data[size++] = (unsigned char)(bits >> (6 - 2 * (i % 4)));
    }
    *out = (ProtobufCBinaryData){.len = size, .data = data};
    return TPO_OK;
}

/* Digits of an integer that came as text. strtoll takes white space, '+' and hexadecimal, none of which is JSON. */
static bool plain_integer(const char *text)
{
    if (*text == '-') text++;
    if (*text == '\0' || (text[0] == '0' && text[1] != '\0')) return false;
    return strspn(text, "0123456789") == strlen(text);
}

/* Any spelling of an integer within [low, high], where high may need all 64 bits. */
static int read_integer(uint64_t *out, const json_t *v, int64_t low, uint64_t high, const struct tpo_json_path *p,
                        struct tpo_error *err)
{
    bool negative;
    uint64_t magnitude;
    if (json_is_integer(v)) {
        json_int_t i = json_integer_value(v);
        negative = i < 0;
        magnitude = negative ? (uint64_t)0 - (uint64_t)i : (uint64_t)i;
    } else if (json_is_real(v)) {
        double d = json_real_value(v);
        if (!(fabs(d) < 9007199254740992.0) || d != floor(d)) return refuse(err, p, "an integer expected");
        negative = d < 0;
        magnitude = (uint64_t)fabs(d);
    } else if (json_is_string(v) && plain_integer(json_string_value(v)) && strlen(json_string_value(v)) == json_string_length(v)) {
        const char *text = json_string_value(v);
        negative = *text == '-';
        errno = 0;
        magnitude = strtoull(text + negative, NULL, 10);
        if (errno == ERANGE) return refuse(err, p, "an integer out of range");
    } else {
        return refuse(err, p, "an integer expected");
    }
    if (negative ? magnitude > (uint64_t)0 - (uint64_t)low : magnitude > high) return refuse(err, p, "an integer out of range");
    *out = negative ? (uint64_t)0 - magnitude : magnitude;
    return TPO_OK;
}

static int read_real(double *out, const json_t *v, double limit, const struct tpo_json_path *p, struct tpo_error *err)
{
    if (json_is_string(v)) {
        const char *text = json_string_value(v);
        char *end;
        /* The canonical mapping lets numbers come as text; what strtod takes beyond JSON's own spelling stays out. */
        if (*text == '\0' || strspn(text, "0123456789+-.eE") != json_string_length(v))
            return refuse(err, p, "a finite number expected");
        *out = strtod(text, &end);
        if (*end != '\0') return refuse(err, p, "a number expected");
    } else if (json_is_number(v)) {
        *out = json_number_value(v);
    } else {
        return refuse(err, p, "a number expected");
    }
    if (!isfinite(*out) || fabs(*out) > limit) return refuse(err, p, "a number out of range");
    return TPO_OK;
}

static int read_enum(int32_t *out, const ProtobufCEnumDescriptor *type, const json_t *v, const struct tpo_json_path *p,
                     struct tpo_error *err)
{
    if (json_is_string(v)) {
        const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value_by_name(type, json_string_value(v));
        if (value == NULL) return refuse(err, p, "not a name of this enum");
        *out = value->value;
        return TPO_OK;
    }
    uint64_t number;
    int rc = read_integer(&number, v, INT32_MIN, INT32_MAX, p, err);
    if (rc == TPO_OK) *out = (int32_t)(int64_t)number;
    return rc;
}

static int read_message(ProtobufCMessage *m, const json_t *object, const struct tpo_json_path *p, int depth, struct tpo_error *err);

static int read_nested(ProtobufCMessage **slot, const ProtobufCMessageDescriptor *type, const json_t *v,
                       const struct tpo_json_path *p, int depth, struct tpo_error *err)
{
    ProtobufCMessage *m = calloc(1, type->sizeof_message);
    if (m == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    type->message_init(m);
    *slot = m; /* the caller's to free from here on, also when the rest fails */
    return read_message(m, v, p, depth, err);
}

/* One value into its member (or element) at `to`. */
static int read_value(void *to, const ProtobufCFieldDescriptor *f, const json_t *v, const struct tpo_json_path *p, int depth,
                      struct tpo_error *err)
{
    uint64_t i = 0;
    double d = 0;
    int rc = TPO_OK;
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        rc = read_integer(&i, v, INT32_MIN, INT32_MAX, p, err);
        *(int32_t *)to = (int32_t)(int64_t)i;
        return rc;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        rc = read_integer(&i, v, 0, UINT32_MAX, p, err);
        *(uint32_t *)to = (uint32_t)i;
        return rc;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        rc = read_integer(&i, v, INT64_MIN, INT64_MAX, p, err);
        *(uint64_t *)to = i;
        return rc;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        rc = read_integer(&i, v, 0, UINT64_MAX, p, err);
        *(uint64_t *)to = i;
        return rc;
    case PROTOBUF_C_TYPE_FLOAT:
        rc = read_real(&d, v, 3.4028234663852886e38, p, err);
        *(float *)to = (float)d;
        return rc;
    case PROTOBUF_C_TYPE_DOUBLE:
        return read_real(to, v, INFINITY, p, err);
    case PROTOBUF_C_TYPE_BOOL:
        if (!json_is_boolean(v)) return refuse(err, p, "true or false expected");
        *(protobuf_c_boolean *)to = json_is_true(v);
        return TPO_OK;
    case PROTOBUF_C_TYPE_ENUM:
        return read_enum(to, f->descriptor, v, p, err);
    case PROTOBUF_C_TYPE_STRING:
        if (!json_is_string(v)) return refuse(err, p, "text expected");
        char *text = strdup(json_string_value(v));
        if (text == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
        *(char **)to = text;
        return TPO_OK;
    case PROTOBUF_C_TYPE_BYTES:
        return read_bytes(to, v, p, err);
    case PROTOBUF_C_TYPE_MESSAGE:
        return read_nested(to, f->descriptor, v, p, depth, err);
    }
    return refuse(err, p, "a field of unknown type");
}

static int read_list(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, const json_t *list, const struct tpo_json_path *p,
                     int depth, struct tpo_error *err)
{
    if (!json_is_array(list)) return refuse(err, p, "a list expected");
    if (depth >= TPO_PROTOJSON_DEPTH) return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_depth", p, "nested too deep");
    size_t n = json_array_size(list), *count = (size_t *)((char *)m + f->quantifier_offset), size = tpo_json_element_size(f);
    if (n == 0) return TPO_OK;
    char *items = calloc(n, size);
    if (items == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    *(void **)((char *)m + f->offset) = items;
    for (size_t i = 0; i < n; i++) {
        struct tpo_json_path here = {.up = p, .index = i};
        *count = i + 1; /* so that whatever happens, freeing the message frees this element; it accepts a NULL */
        int rc = read_value(items + i * size, f, json_array_get(list, i), &here, depth + 1, err);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

static const ProtobufCFieldDescriptor *find_field(const ProtobufCMessageDescriptor *type, const char *key)
{
    const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field_by_name(type, key);
    char name[96];
    for (unsigned i = 0; f == NULL && i < type->n_fields; i++) {
        tpo_json_camel(name, sizeof(name), type->fields[i].name);
        if (strcmp(name, key) == 0) f = &type->fields[i];
    }
    return f;
}

static int read_field(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, const json_t *v, const struct tpo_json_path *p,
                      int depth, struct tpo_error *err)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED) return read_list(m, f, v, p, depth, err);
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t *which = (uint32_t *)((char *)m + f->quantifier_offset);
        if (*which != 0)
            return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_field", p, "another member of this oneof is set already");
        /* The union holds whatever message_init put there; freeing looks at it as soon as the case is set. */
        memset((char *)m + f->offset, 0, tpo_json_element_size(f));
        *which = f->id;
    }
    return read_value((char *)m + f->offset, f, v, p, depth, err);
}

static int read_message(ProtobufCMessage *m, const json_t *object, const struct tpo_json_path *p, int depth, struct tpo_error *err)
{
    if (!json_is_object(object)) return refuse(err, p, "an object expected");
    if (depth >= TPO_PROTOJSON_DEPTH) return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_depth", p, "nested too deep");
    const char *key;
    json_t *v;
    uint64_t seen = 0;
    json_object_foreach((json_t *)object, key, v)
    {
        struct tpo_json_path here = {.up = p, .name = key};
        const ProtobufCFieldDescriptor *f = find_field(m->descriptor, key);
        if (f == NULL) return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_field", &here, "no such field");
        uint64_t bit = 1ull << ((size_t)(f - m->descriptor->fields) % 64);
        if (m->descriptor->n_fields <= 64 && seen & bit)
            return tpo_json_fail_at(err, TPO_INVALID_ARGUMENT, "json_field", &here, "given twice, in both spellings");
        seen |= bit;
        if (json_is_null(v)) continue;
        int rc = read_field(m, f, v, &here, depth + 1, err);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

/* The depth and the number of values, looked at before the parser recurses into the one and allocates for the other: a value of two
 * bytes takes some two hundred. */
static int check_bounds(const char *json, size_t size, struct tpo_error *err)
{
    int depth = 0;
    size_t values = 0; /* each but the first follows one of { [ , : */
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        char c = json[i];
        if (quoted && c == '\\')
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (quoted)
            continue;
        else if (c == '}' || c == ']')
            depth--;
        else if (c == ',' || c == ':')
            values++;
        else if (c == '{' || c == '[') {
            values++;
            depth++;
        }
        if (depth > TPO_PROTOJSON_DEPTH)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "json_depth", "nested deeper than %d", TPO_PROTOJSON_DEPTH);
        if (values > TPO_PROTOJSON_VALUES)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "json_values", "over %d keys and values", TPO_PROTOJSON_VALUES);
    }
    return TPO_OK;
}

int tpo_protojson_decode(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type, const char *json, size_t size,
                         struct tpo_error *err)
{
    *out = NULL;
    int rc = check_bounds(json, size, err);
    if (rc != TPO_OK) return rc;
    json_error_t why;
    json_t *root = json_loadb(json, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (root == NULL) {
        enum json_error_code code = json_error_code(&why);
        if (code == json_error_out_of_memory) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
        const char *reason = code == json_error_duplicate_key ? "json_field" : "json";
        /* jansson quotes the text near the fault, which may be anything; its position is enough. */
        return tpo_fail(err, TPO_INVALID_ARGUMENT, reason, "line %d, column %d: %s", why.line, why.column,
                        code == json_error_duplicate_key            ? "a key twice in one object"
                        : code == json_error_invalid_utf8           ? "ill-formed UTF-8"
                        : code == json_error_null_character         ? "NUL in a string"
                        : code == json_error_null_byte_in_key       ? "NUL in a key"
                        : code == json_error_numeric_overflow       ? "a number out of range"
                        : code == json_error_premature_end_of_input ? "the text ends early"
                        : code == json_error_end_of_input_expected  ? "text after the end"
                                                                    : "not JSON");
    }
    rc = read_nested(out, type, root, NULL, 0, err);
    json_decref(root);
    if (rc == TPO_OK) return TPO_OK;
    if (*out != NULL) protobuf_c_message_free_unpacked(*out, NULL);
    *out = NULL;
    return rc;
}
