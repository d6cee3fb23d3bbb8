/* payload.h -- a message with a Tensor as its last field, without copying the data through protobuf-c.
 *
 * proto/common.proto: Tensor {dtype = 1, repeated int64 shape = 2 (packed), bytes data = 3}. In the messages that carry one beside a header it is
 * field 15. A sender packs the header, appends the Tensor's own header, and hands the data over as a slice; a receiver finds the field without
 * unpacking the data. On the wire it is an ordinary message: a field order of another encoder's, and an unpacked shape, are read too. */
#ifndef TPO_COMMON_RPC_PAYLOAD_H
#define TPO_COMMON_RPC_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>

#include "common/dtype.h"
#include "common/status.h"

#define TPO_PAYLOAD_FIELD    15
#define TPO_PAYLOAD_DIMS_MAX 8

/* data is 64-byte aligned and owned: tpo_payload_free, or given away with a send. A zeroed payload is "none". */
struct tpo_payload {
    int dtype; /* enum tpo_dtype */
    int n_dims;
    int64_t shape[TPO_PAYLOAD_DIMS_MAX];
    void *data;
    size_t size_bytes;
};

/* Allocates data for `dtype` and the n_dims sizes of `shape`; TPO_EINVAL for sizes below 0 or past 2^31 bytes, TPO_ENOMEM. */
int tpo_payload_alloc(struct tpo_payload *p, int dtype, int n_dims, const int64_t *shape);
void tpo_payload_free(struct tpo_payload *p); /* leaves it zeroed */

/* Header and payload (NULL: none) as one byte buffer. Takes the payload's data, also on failure, and zeroes it. NULL when out of memory. */
grpc_byte_buffer *tpo_message_pack(const ProtobufCMessage *header, struct tpo_payload *take_payload);

/* The reverse. *message is freed with protobuf_c_message_free_unpacked(message, NULL). payload NULL: the message has none, field 15 is unpacked as
 * any other. Checks besides the encoding: every string is UTF-8 without NUL, nesting is at most 16 deep, shape and data agree.
 * INVALID_ARGUMENT with a reason ("proto", "utf8", "tensor_shape") otherwise. */
int tpo_message_unpack(ProtobufCMessage **message, struct tpo_payload *payload, grpc_byte_buffer *bytes,
                       const ProtobufCMessageDescriptor *type, struct tpo_error *err);

#endif
