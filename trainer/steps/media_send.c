/* This file owns the sending of one file: a piece whenever the stream takes one. */
#include "trainer/steps/media_send.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "media.pb-c.h"

#define PIECE_BYTES (1 << 20)

struct sending {
    FILE *file;
    uint8_t *piece; /* (PIECE_BYTES) */
    bool ended, failed, done;
    struct tpo_error err;
};

/* 0 at the end of the file, and where it cannot be read on. */
static size_t piece_read(struct sending *s)
{
    const size_t n = fread(s->piece, 1, PIECE_BYTES, s->file);
    s->failed = n == 0 && ferror(s->file);
    return n;
}

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void on_writable(void *owner, struct tpo_rpc *r)
{
    struct sending *s = owner;
    if (s->ended) return;
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){piece_read(s), s->piece};
    s->ended = chunk.data.len == 0;
    if (s->failed)
        tpo_rpc_cancel(r);
    else if (s->ended)
        tpo_rpc_send_end(r);
    else
        tpo_rpc_send(r, &chunk.base);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct sending *s = owner;
    (void)r;
    if (status != TPO_OK) s->err = *err;
    s->done = true;
}

static int unreadable(const char *path, struct tpo_error *err)
{
    return tpo_fail(err, TPO_NOT_FOUND, "media_missing", "%.200s: %s", path, strerror(errno));
}

static int send_all(struct sending *s, struct tpo_loop *loop, struct tpo_peers *peers, const char *id, int timeout_ms,
                    const _Atomic bool *stop)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = timeout_ms};
    const struct tpo_rpc_events on = {.owner = s, .on_message = on_message, .on_writable = on_writable, .on_done = on_done};
    Tpo__V1__MediaChunk first = TPO__V1__MEDIA_CHUNK__INIT;
    bool cancelled = false;
    first.id = (char *)id;
    first.data = (ProtobufCBinaryData){piece_read(s), s->piece};
    if (s->failed) return TPO_NOT_FOUND;
    struct tpo_rpc *rpc = tpo_rpc_open(peers, &start, &first.base, NULL, &on, &s->err);
    while (rpc != NULL && !s->done) {
        tpo_loop_wait(loop, 20);
        if (s->done || cancelled || stop == NULL || !*stop) continue;
        tpo_rpc_cancel(rpc);
        cancelled = true;
    }
    return s->err.code;
}

int tpo_media_send(struct tpo_loop *loop, struct tpo_peers *peers, const char *id, const char *path, int timeout_ms,
                   const _Atomic bool *stop, struct tpo_error *err)
{
    struct sending s = {.file = fopen(path, "rb")};
    if (s.file == NULL) return unreadable(path, err);
    s.piece = malloc(PIECE_BYTES);
    int rc = s.piece != NULL ? send_all(&s, loop, peers, id, timeout_ms, stop)
                             : tpo_fail(&s.err, TPO_ENOMEM, "memory", "no memory for a piece");
    if (s.failed)
        rc = unreadable(path, err);
    else if (rc != TPO_OK && err != NULL)
        *err = s.err;
    fclose(s.file);
    free(s.piece);
    return rc;
}
