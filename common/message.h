/* message.h -- what an unpacked message takes in memory. Thread-safe: nothing is shared. */
#ifndef TPO_COMMON_MESSAGE_H
#define TPO_COMMON_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

/* Bytes of the message and all it points to: nested messages, lists, text, bytes and fields it does not know, each with what the
 * allocator adds. Recurses as deep as the message is, which both doors bound before they unpack. */
size_t tpo_message_bytes(const ProtobufCMessage *message);

#endif
