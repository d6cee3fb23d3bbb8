/* wire.h -- the Protocol Buffers wire form, read before anything is unpacked. Private to common/rpc.
 *
 * protobuf-c accepts ill-formed UTF-8, cuts strings at a NUL and has no bound on depth or on what a few bytes unpack to. So every message of a
 * stranger is walked here first, along its descriptor. */
#ifndef TPO_COMMON_RPC_WIRE_H
#define TPO_COMMON_RPC_WIRE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#define TPO_WIRE_DEPTH_MAX  16
#define TPO_WIRE_MEMORY_MAX (64u << 20) /* what unpacking may take beyond twice the message's own size */

enum { TPO_WIRE_VARINT = 0, TPO_WIRE_FIXED64 = 1, TPO_WIRE_BYTES = 2, TPO_WIRE_FIXED32 = 5 };

/* A field: its value (varint) or where its bytes begin; `size` may reach past what is at hand. */
struct tpo_wire_field {
    uint32_t number;
    int type;
    uint64_t value;
    const uint8_t *data;
    size_t size; /* of data; 0 for a varint */
};

size_t tpo_wire_put(uint8_t *out, uint64_t value); /* a varint; at most 10 bytes */
const uint8_t *tpo_wire_get(const uint8_t *at, const uint8_t *end,
                            uint64_t *value); /* after it; NULL when it is cut off or too long */
/* Reads the key and length at *at, which moves to f->data. False at the end and where there is none (then *at != end). */
bool tpo_wire_next(const uint8_t **at, const uint8_t *end, struct tpo_wire_field *f);

/* INVALID_ARGUMENT "proto" (not sound, or too deep), "utf8" (a string that is not UTF-8 or holds a NUL); RESOURCE_EXHAUSTED "proto_memory". */
int tpo_wire_check(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t n, struct tpo_error *err);

#endif
