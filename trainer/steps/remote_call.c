/* This file owns one call to a service's learner: sent, waited for, made again where that can help. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "learner.pb-c.h"
#include "trainer/steps/remote_private.h"

#define AGAIN_MS_MOST 1000

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct remote_call *w = owner;
    tpo_payload_free(payload);
    w->told = true;
    if (w->on_chunk == NULL && w->reply == NULL) {
        w->reply = message;
        return;
    }
    if (w->on_chunk != NULL && w->err.code == TPO_OK && w->on_chunk(w->arg, message, &w->err) != TPO_OK) tpo_rpc_cancel(r);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct remote_call *w = owner;
    (void)r;
    if (w->err.code == TPO_OK && status != TPO_OK) w->err = *err;
    w->done = true;
}

static int call_once(struct remote *r, const struct tpo_rpc_start *start, const ProtobufCMessage *message, struct remote_call *w,
                     bool stoppable)
{
    const struct tpo_rpc_events on = {.owner = w, .on_message = on_message, .on_done = on_done};
    bool cancelled = false;
    struct tpo_rpc *rpc = tpo_rpc_open(r->peers, start, message, NULL, &on, &w->err);
    if (rpc == NULL) return w->err.code;
    while (!w->done) {
        tpo_loop_wait(r->loop, 20);
        if (!w->done && !cancelled && stoppable && r->o.stop != NULL && *r->o.stop) {
            tpo_rpc_cancel(rpc);
            cancelled = true;
        }
    }
    if (w->err.code == TPO_OK && w->on_chunk == NULL && w->reply == NULL)
        tpo_fail(&w->err, TPO_INTERNAL, "message_missing", "%s answered without a message", r->o.service);
    if (w->err.code != TPO_OK && w->reply != NULL) {
        protobuf_c_message_free_unpacked(w->reply, NULL);
        w->reply = NULL;
    }
    return w->err.code;
}

/* How long to wait before the call is made again; -1: it is not. What has come of a stream cannot be taken back. A service that is full is waited for
 * while the deadline lets, unless the step is given up. */
static int again_ms(const struct remote *r, const struct remote_call *w, int tried, int64_t until_us, bool stoppable)
{
    const struct tpo_error *err = &w->err;
    if (w->told) return -1;
    if (err->code == TPO_UNAVAILABLE && tried == 0 && w->on_chunk == NULL) return 50;
    if (strcmp(err->reason, "queue_full") != 0 || err->retry_ms <= 0 || tpo_now_us() >= until_us) return -1;
    if (stoppable && r->o.stop != NULL && *r->o.stop) return -1;
    return err->retry_ms < AGAIN_MS_MOST ? err->retry_ms : AGAIN_MS_MOST;
}

static bool is_v6(const char *address)
{
    return address[0] == '[';
}

/* A name that leads to several hosts would have its calls go now to one and now to another. One address of each kind is taken for one host's; a name
 * may get more of them at any time. */
static int one_host_check(const struct remote *r, struct tpo_error *err)
{
    const int n = tpo_peers_count(r->peers);
    for (int i = 1; i < n; i++)
        for (int k = 0; k < i; k++) {
            const char *a = tpo_peers_address(r->peers, k, NULL), *b = tpo_peers_address(r->peers, i, NULL);
            if (is_v6(a) == is_v6(b))
                return tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh",
                                "--mesh: %s leads to %s and %s: name each replica by its own address", r->o.address, a, b);
        }
    return TPO_OK;
}

/* What gRPC says of a deadline names neither the call nor the setting. A service's own deadlines, as that of a medium, have reasons of their own. */
static void late_tell(const struct remote *r, const char *path, struct tpo_error *err)
{
    if (err->code != TPO_DEADLINE_EXCEEDED || strcmp(err->reason, "deadline") != 0) return;
    tpo_fail(err, TPO_DEADLINE_EXCEEDED, TPO_CALL_LATE, "%s did not answer %s within %d ms (--call-timeout)", r->o.service,
             strrchr(path, '/') + 1, r->o.timeout_ms);
}

int tpo_remote_call(struct remote *r, const char *path, const ProtobufCMessageDescriptor *type, const ProtobufCMessage *message,
                    struct remote_call *w, bool stoppable, struct tpo_error *err)
{
    const struct tpo_rpc_start start = {.path = path, .reply = type, .timeout_ms = r->o.timeout_ms};
    const int64_t until_us = tpo_now_us() + (int64_t)r->o.timeout_ms * 1000;
    int rc = one_host_check(r, err);
    if (rc != TPO_OK) return rc;
    for (int tried = 0, ms = 0; ms >= 0; tried++) {
        if (ms > 0) usleep((useconds_t)ms * 1000);
        w->done = false;
        w->err = (struct tpo_error){0};
        rc = call_once(r, &start, message, w, stoppable);
        ms = rc == TPO_OK ? -1 : again_ms(r, w, tried, until_us, stoppable);
    }
    if (rc == TPO_OK) return rc;
    late_tell(r, path, &w->err);
    if (w->err.stage[0] == '\0') snprintf(w->err.stage, sizeof(w->err.stage), "%s", r->o.service);
    if (err != NULL) *err = w->err;
    return rc;
}

int tpo_remote_ask(struct remote *r, struct remote_reply *keep, const char *path, const ProtobufCMessageDescriptor *type,
                   const ProtobufCMessage *message, struct tpo_error *err)
{
    struct remote_call w = {0};
    int rc = tpo_remote_call(r, path, type, message, &w, true, err);
    if (rc != TPO_OK) return rc;
    if (keep->message != NULL) protobuf_c_message_free_unpacked(keep->message, NULL);
    keep->message = w.reply;
    tpo_arena_reset(&keep->arena);
    return TPO_OK;
}

int tpo_remote_tell(struct remote *r, const char *path, const ProtobufCMessage *message, bool stoppable, struct tpo_error *err)
{
    struct remote_call w = {0};
    int rc = tpo_remote_call(r, path, &tpo__v1__empty__descriptor, message, &w, stoppable, err);
    if (rc == TPO_OK) protobuf_c_message_free_unpacked(w.reply, NULL);
    return rc;
}
