/* This file owns uploads to a service. */
#include "common/media/put.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "media.pb-c.h"

#define CHUNK_MAX ((size_t)4 << 20)

/* Of one call; kept until the call is finished. */
struct put {
    tpo_store_writer_t *writer; /* NULL before the first chunk */
    char id[TPO_SHA256_HEX];    /* announced by the caller, then the file's */
    int64_t bytes;
};

static void finish(struct tpo_call *call, struct put *p, const struct tpo_error *err)
{
    tpo_log(err->code == TPO_OK ? TPO_LOG_INFO : TPO_LOG_WARN, "put", "req=%s media=%.12s code=%s%s%s bytes=%lld",
            tpo_call_request_id(call), p->id, tpo_status_name(err->code), err->code == TPO_OK ? "" : " reason=", err->reason,
            (long long)p->bytes);
    tpo_store_cancel(p->writer);
    tpo_call_set_owner(call, NULL);
    free(p);
    tpo_call_finish(call, err->code, err);
}

static int add_chunk(tpo_store_t *store, struct put *p, const Tpo__V1__MediaChunk *chunk, struct tpo_error *err)
{
    int rc = TPO_OK;
    if (chunk->data.len > CHUNK_MAX) return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_chunk", "a chunk may have 4 MiB");
    if (p->writer == NULL) rc = tpo_store_write(store, &p->writer, chunk->id, err);
    if (rc == TPO_OK && tpo_sha256_is_hex(chunk->id)) memcpy(p->id, chunk->id, sizeof(p->id));
    p->bytes += (int64_t)chunk->data.len;
    return rc == TPO_OK ? tpo_store_add(p->writer, chunk->data.data, chunk->data.len, err) : rc;
}

static void end(struct tpo_call *call, struct put *p)
{
    Tpo__V1__MediaPutReply reply = TPO__V1__MEDIA_PUT_REPLY__INIT;
    struct tpo_error err = {0};
    if (p->writer == NULL)
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "media_empty", "the file is empty");
    else
        tpo_store_end(p->writer, p->id, &p->bytes, &err);
    p->writer = NULL;
    if (err.code == TPO_OK) {
        reply.id = p->id;
        reply.size_bytes = (uint64_t)p->bytes;
        tpo_call_send(call, &reply.base, NULL);
    }
    finish(call, p, &err);
}

void tpo_put_message(tpo_store_t *store, struct tpo_call *call, ProtobufCMessage *message)
{
    struct tpo_error err = {0};
    struct put *p = tpo_call_owner(call);
    if (p == NULL) {
        p = calloc(1, sizeof(*p));
        tpo_call_set_owner(call, p);
    }
    if (p == NULL) {
        tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for an upload");
        tpo_call_finish(call, err.code, &err);
    } else if (message == NULL) {
        end(call, p);
    } else if (add_chunk(store, p, (const Tpo__V1__MediaChunk *)message, &err) != TPO_OK) {
        finish(call, p, &err);
    }
    if (message != NULL) protobuf_c_message_free_unpacked(message, NULL);
}

void tpo_put_cancel(struct tpo_call *call)
{
    struct tpo_error err = {0};
    struct put *p = tpo_call_owner(call);
    tpo_fail(&err, TPO_CANCELLED, "cancelled", "the caller went away");
    if (p != NULL)
        finish(call, p, &err);
    else
        tpo_call_finish(call, err.code, &err); /* before its first chunk */
}
