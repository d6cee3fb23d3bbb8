/* This file owns the form in which an error crosses a hop. */
#include "common/rpc/details.h"

#include <stdio.h>
#include <string.h>

#include "common/rpc/wire.h"
#include "google/rpc.pb-c.h"

#define TYPE_PREFIX "type.googleapis.com/google.rpc."

/* Every part has a bounded size, so the whole is packed on the stack. */
grpc_slice tpo_details_pack(const struct tpo_error *err)
{
    uint8_t info_bytes[512], retry_bytes[32];
    Google__Rpc__ErrorInfo__MetadataEntry stage = GOOGLE__RPC__ERROR_INFO__METADATA_ENTRY__INIT, *entries[] = {&stage};
    stage.key = "stage";
    stage.value = (char *)err->stage;
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    info.reason = (char *)err->reason;
    info.domain = "tpomesh";
    info.n_metadata = err->stage[0] != '\0';
    info.metadata = entries;

    Google__Rpc__Duration delay = GOOGLE__RPC__DURATION__INIT;
    delay.seconds = err->retry_ms / 1000;
    delay.nanos = err->retry_ms % 1000 * 1000000;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    retry.retry_delay = &delay;

    Google__Rpc__Any any[2] = {GOOGLE__RPC__ANY__INIT, GOOGLE__RPC__ANY__INIT}, *details[] = {&any[0], &any[1]};
    any[0].type_url = TYPE_PREFIX "ErrorInfo";
    any[0].value = (ProtobufCBinaryData){google__rpc__error_info__pack(&info, info_bytes), info_bytes};
    any[1].type_url = TYPE_PREFIX "RetryInfo";
    any[1].value = (ProtobufCBinaryData){google__rpc__retry_info__pack(&retry, retry_bytes), retry_bytes};
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    status.code = err->code;
    status.message = (char *)err->message;
    status.n_details = err->retry_ms > 0 ? 2 : 1;
    status.details = details;
    grpc_slice bytes = grpc_slice_malloc(google__rpc__status__get_packed_size(&status));
    google__rpc__status__pack(&status, GRPC_SLICE_START_PTR(bytes));
    return bytes;
}

/* NULL for damaged bytes, and for strings that are no text: they would go into answers. */
static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t n)
{
    return tpo_wire_check(type, bytes, n, NULL) == TPO_OK ? protobuf_c_message_unpack(type, NULL, n, bytes) : NULL;
}

/* A word that does not fit is none that a service of ours says, and cut it might end within a code point. */
static void copy_word(char *out, size_t capacity, const char *word)
{
    if (word[0] != '\0' && strlen(word) < capacity) strcpy(out, word);
}

static void read_info(struct tpo_error *err, const ProtobufCBinaryData *value)
{
    Google__Rpc__ErrorInfo *info = (Google__Rpc__ErrorInfo *)unpack(&google__rpc__error_info__descriptor, value->data, value->len);
    if (info == NULL) return;
    copy_word(err->reason, sizeof(err->reason), info->reason);
    for (size_t i = 0; i < info->n_metadata; i++)
        if (strcmp(info->metadata[i]->key, "stage") == 0) copy_word(err->stage, sizeof(err->stage), info->metadata[i]->value);
    google__rpc__error_info__free_unpacked(info, NULL);
}

static void read_retry(struct tpo_error *err, const ProtobufCBinaryData *value)
{
    Google__Rpc__RetryInfo *retry = (Google__Rpc__RetryInfo *)unpack(&google__rpc__retry_info__descriptor, value->data, value->len);
    if (retry == NULL) return;
    const Google__Rpc__Duration *d = retry->retry_delay;
    if (d != NULL && d->seconds >= 0 && d->seconds < 86400 && d->nanos >= 0 && d->nanos < 1000000000)
        err->retry_ms = (int)(d->seconds * 1000 + d->nanos / 1000000);
    google__rpc__retry_info__free_unpacked(retry, NULL);
}

void tpo_details_unpack(struct tpo_error *err, const void *bytes, size_t n)
{
    Google__Rpc__Status *status = (Google__Rpc__Status *)unpack(&google__rpc__status__descriptor, bytes, n);
    if (status == NULL) return;
    for (size_t i = 0; i < status->n_details; i++) {
        const Google__Rpc__Any *any = status->details[i];
        if (strcmp(any->type_url, TYPE_PREFIX "ErrorInfo") == 0) read_info(err, &any->value);
        if (strcmp(any->type_url, TYPE_PREFIX "RetryInfo") == 0) read_retry(err, &any->value);
    }
    google__rpc__status__free_unpacked(status, NULL);
}
