/* This file owns grpc.health.v1 on a server. */
#include <string.h>

#include "common/rpc/server_private.h"
#include "grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckResponse reply_t;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus status_t;

/* The empty name and every service that the methods name. */
static bool known(struct tpo_server *s, const char *service)
{
    size_t n = strlen(service);
    if (n == 0) return true;
    for (int i = 0; i < s->n_methods; i++)
        if (strncmp(s->methods[i].path + 1, service, n) == 0 && s->methods[i].path[1 + n] == '/') return true;
    return false;
}

/* A watcher need not read: nothing but the newest state waits for it. */
static void send(struct tpo_call *c, status_t status)
{
    reply_t reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    reply.status = status;
    tpo_call_send_newest(c, &reply.base);
}

static status_t now(struct tpo_server *s)
{
    return atomic_load(&s->serving) ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                                    : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

static void on_check(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct tpo_server *s = owner;
    struct tpo_error err;
    (void)payload;
    bool ok = known(s, ((Grpc__Health__V1__HealthCheckRequest *)message)->service);
    protobuf_c_message_free_unpacked(message, NULL);
    if (ok)
        send(c, now(s));
    else
        tpo_fail(&err, TPO_NOT_FOUND, "service", "there is no such service here");
    tpo_call_finish(c, ok ? TPO_OK : TPO_NOT_FOUND, ok ? NULL : &err);
}

/* A watch of a name we know has the server for its owner, of another nothing. */
static void on_watch(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct tpo_server *s = owner;
    (void)payload;
    bool ok = known(s, ((Grpc__Health__V1__HealthCheckRequest *)message)->service);
    protobuf_c_message_free_unpacked(message, NULL);
    if (ok) tpo_call_set_owner(c, s);
    send(c, ok ? now(s) : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN);
}

static void on_watch_lost(void *owner, struct tpo_call *c)
{
    (void)owner;
    tpo_call_finish(c, TPO_CANCELLED, NULL);
}

static void on_serving(void *owner, int ok)
{
    struct tpo_server *s = owner;
    (void)ok;
    pthread_mutex_lock(&s->lock);
    s->serving_posted = false;
    pthread_mutex_unlock(&s->lock);
    for (struct tpo_call *c = s->calls; c != NULL; c = c->next)
        if (c->method == &s->health_methods[1] && c->owner == s && !c->told_lost) send(c, now(s));
}

void tpo_health_init(struct tpo_server *s)
{
    s->serving_tag = (struct tpo_tag){.on_event = on_serving, .owner = s};
    s->health_methods[0] = (struct tpo_method){.path = "/grpc.health.v1.Health/Check",
                                               .request = &grpc__health__v1__health_check_request__descriptor,
                                               .on_message = on_check,
                                               .owner = s};
    s->health_methods[1] = (struct tpo_method){.path = "/grpc.health.v1.Health/Watch",
                                               .request = &grpc__health__v1__health_check_request__descriptor,
                                               .on_message = on_watch,
                                               .on_cancel = on_watch_lost,
                                               .owner = s};
}
