/* This file owns the error details that cross a hop. */
#include "common/rpc/details.h"

#include <stdio.h>
#include <string.h>

#include "google/rpc.pb-c.h"

#define DOMAIN    "tpomesh"
#define TYPE_INFO  "type.googleapis.com/google.rpc.ErrorInfo"
#define TYPE_RETRY "type.googleapis.com/google.rpc.RetryInfo"

grpc_slice tpo_details_pack(const struct tpo_error *err)
{
    uint8_t info_bytes[512], retry_bytes[64];
    Google__Rpc__ErrorInfo__MetadataEntry stage = GOOGLE__RPC__ERROR_INFO__METADATA_ENTRY__INIT;
    Google__Rpc__ErrorInfo__MetadataEntry *metadata[] = {&stage};
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    Google__Rpc__Duration delay = GOOGLE__RPC__DURATION__INIT;
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    Google__Rpc__Any any[2] = {GOOGLE__RPC__ANY__INIT, GOOGLE__RPC__ANY__INIT};
    Google__Rpc__Any *details[] = {&any[0], &any[1]};
    Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
    stage.key = "stage";
    stage.value = (char *)err->stage;
    info.reason = (char *)err->reason;
    info.domain = DOMAIN;
    info.metadata = metadata;
    info.n_metadata = err->stage[0] != '\0';
    any[0].type_url = TYPE_INFO;
    any[0].value.len = google__rpc__error_info__pack(&info, info_bytes); /* bounded: both strings are fixed-size members */
    any[0].value.data = info_bytes;
    delay.seconds = err->retry_ms / 1000;
    delay.nanos = err->retry_ms % 1000 * 1000000;
    retry.retry_delay = &delay;
    any[1].type_url = TYPE_RETRY;
    any[1].value.len = google__rpc__retry_info__pack(&retry, retry_bytes);
    any[1].value.data = retry_bytes;
    status.code = err->code;
    status.message = (char *)err->message;
    status.details = details;
    status.n_details = err->retry_ms > 0 ? 2 : 1;
    grpc_slice out = grpc_slice_malloc(google__rpc__status__get_packed_size(&status));
    google__rpc__status__pack(&status, GRPC_SLICE_START_PTR(out));
    return out;
}

static void read_info(struct tpo_error *err, const ProtobufCBinaryData *bytes)
{
    Google__Rpc__ErrorInfo *info = google__rpc__error_info__unpack(NULL, bytes->len, bytes->data);
    if (info == NULL) return;
    snprintf(err->reason, sizeof(err->reason), "%s", info->reason);
    for (size_t i = 0; i < info->n_metadata; i++)
        if (strcmp(info->metadata[i]->key, "stage") == 0) snprintf(err->stage, sizeof(err->stage), "%s", info->metadata[i]->value);
    google__rpc__error_info__free_unpacked(info, NULL);
}

static void read_retry(struct tpo_error *err, const ProtobufCBinaryData *bytes)
{
    Google__Rpc__RetryInfo *retry = google__rpc__retry_info__unpack(NULL, bytes->len, bytes->data);
    if (retry == NULL) return;
    const Google__Rpc__Duration *d = retry->retry_delay;
    if (d != NULL && d->seconds >= 0 && d->seconds < 86400 && d->nanos >= 0) err->retry_ms = (int)(d->seconds * 1000 + d->nanos / 1000000);
    google__rpc__retry_info__free_unpacked(retry, NULL);
}

void tpo_details_unpack(struct tpo_error *err, const void *bytes, size_t n)
{
    Google__Rpc__Status *status = google__rpc__status__unpack(NULL, n, bytes);
    if (status == NULL) return;
    for (size_t i = 0; i < status->n_details; i++) {
        if (strcmp(status->details[i]->type_url, TYPE_INFO) == 0) read_info(err, &status->details[i]->value);
        if (strcmp(status->details[i]->type_url, TYPE_RETRY) == 0) read_retry(err, &status->details[i]->value);
    }
    google__rpc__status__free_unpacked(status, NULL);
}
