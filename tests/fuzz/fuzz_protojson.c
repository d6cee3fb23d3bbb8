/* Fuzzes what the HTTP door does with a body: JSON to a message, and back; what was read must survive another round. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/protojson.h"
#include "gateway.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &tpo__v1__perceive_request__descriptor, &tpo__v1__perceive_response__descriptor, &tpo__v1__perceive_event__descriptor};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        ProtobufCMessage *first, *second;
        struct tpo_text text = {0}, again = {0};
        if (tpo_protojson_decode(&first, types[i], (const char *)data, size, NULL) != TPO_OK) continue;
        if (tpo_protojson_encode(&text, first, NULL) != TPO_OK) abort();
        if (tpo_protojson_decode(&second, types[i], text.data, text.size, NULL) != TPO_OK) abort();
        if (tpo_protojson_encode(&again, second, NULL) != TPO_OK || strcmp(text.data, again.data) != 0) abort();
        protobuf_c_message_free_unpacked(first, NULL);
        protobuf_c_message_free_unpacked(second, NULL);
        tpo_text_free(&text);
        tpo_text_free(&again);
    }
    return 0;
}
