/* This file owns the form of server-sent events. */
#include "gateway/sse.h"

#include "common/protojson.h"

int tpo_sse_event(struct tpo_text *out, const Tpo__V1__PerceiveEvent *event, struct tpo_error *err)
{
    const ProtobufCFieldDescriptor *kind =
        protobuf_c_message_descriptor_get_field(event->base.descriptor, (unsigned)event->kind_case);
    if (kind == NULL || event->text == NULL) return tpo_fail(err, TPO_INTERNAL, "event", "an event without a kind");
    tpo_text_printf(out, "id: %u\nevent: %s\ndata: ", event->seq, kind->name);
    int rc = tpo_protojson_encode(out, &event->base, err);
    tpo_text_puts(out, "\n\n");
    return rc;
}
