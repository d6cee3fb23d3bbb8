/* protojson.h -- the canonical proto3 JSON mapping, both ways, for every message that protobuf-c describes.
 *
 * https://protobuf.dev/programming-guides/json/ : lowerCamelCase out, both spellings in; bytes as base64 (in: standard or URL-safe,
 * padded or not); 64-bit integers as strings (in: numbers too); enums by name (in: numbers too); null means absent.
 * Ours, on top: out, zeros are printed in messages that are present and empty lists as []; in, unknown fields, duplicate keys (also
 * one field in both spellings), two members of a oneof, nesting beyond 16, ill-formed UTF-8, NUL in a string, a number out of its
 * range and any NaN or infinity are refused, with the field's path in the message.
 *
 * Both directions recurse at most 16 deep, whatever comes in. More than 65,536 keys and values, a string of any length being one, are
 * refused before any is built: so reading takes a few times the text's own size and some tens of MiB at most. Thread-safe: nothing is shared. */
#ifndef TPO_COMMON_PROTOJSON_H
#define TPO_COMMON_PROTOJSON_H

#include <protobuf-c/protobuf-c.h>

#include "common/status.h"
#include "common/text.h"

#define TPO_PROTOJSON_DEPTH  16
#define TPO_PROTOJSON_VALUES 65536 /* commas, colons and opening brackets outside of strings */

/* *out is to be freed with protobuf_c_message_free_unpacked(*out, NULL). INVALID_ARGUMENT, reasons: "json" (not JSON),
 * "json_field" (unknown, duplicate), "json_value" (wrong type or range), "json_depth", "json_values" (too many); RESOURCE_EXHAUSTED "memory". */
int tpo_protojson_decode(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type, const char *json, size_t size,
                         struct tpo_error *err);

/* Appends to *out. INTERNAL "json_value" for a NaN, an infinity or ill-formed UTF-8, which no message of ours should hold;
 * RESOURCE_EXHAUSTED "memory". */
int tpo_protojson_encode(struct tpo_text *out, const ProtobufCMessage *message, struct tpo_error *err);

#endif
