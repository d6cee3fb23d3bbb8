/* This file owns the addresses of a mesh. */
#include "trainer/steps/mesh.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/rpc/client.h"
#include "status.pb-c.h"
#include "trainer/steps/remote.h"

#define ASK_MS   5000
#define AGAIN_MS 200

static int part_named(const char *name, size_t length)
{
    for (int p = 0; p < TPO_PARTS; p++)
        if (strlen(tpo_part_names[p]) == length && memcmp(tpo_part_names[p], name, length) == 0) return p;
    return -1;
}

static int address_add(struct tpo_mesh *m, int part, const char *address, struct tpo_error *err)
{
    if (strchr(address, ':') == NULL || strlen(address) >= TPO_ADDRESS_MAX)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: \"%.60s\" is no HOST:PORT", address);
    if (m->n_replicas[part] == TPO_REPLICAS_MAX)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: more than %d replicas of %s", TPO_REPLICAS_MAX,
                        tpo_part_names[part]);
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < m->n_replicas[p]; r++)
            if (strcmp(m->addresses[p][r], address) == 0)
                return tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: %s is named twice", address);
    snprintf(m->addresses[part][m->n_replicas[part]++], TPO_ADDRESS_MAX, "%s", address);
    return TPO_OK;
}

/* Which service listens there. */
static int stage_ask_once(const char *address, int *part, struct tpo_error *err)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Status/Get", .reply = &tpo__v1__status_reply__descriptor, .timeout_ms = ASK_MS};
    const Tpo__V1__StatusRequest request = TPO__V1__STATUS_REQUEST__INIT;
    struct tpo_loop *loop = NULL;
    struct tpo_peers *peers = NULL;
    ProtobufCMessage *reply = NULL;
    int rc = tpo_loop_open(&loop, NULL, NULL, err);
    if (rc == TPO_OK) rc = tpo_peers_open(&peers, loop, "mesh", address, TPO_PICK_LEAST, err);
    if (rc == TPO_OK) rc = tpo_rpc_call(peers, &start, &request.base, NULL, &reply, NULL, err);
    if (rc == TPO_OK) {
        const char *name = ((Tpo__V1__StatusReply *)reply)->stage;
        *part = part_named(name, strlen(name));
        if (*part < 0)
            rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: %s is \"%.32s\", which nobody trains", address, name);
        protobuf_c_message_free_unpacked(reply, NULL);
    }
    tpo_peers_close(peers);
    tpo_loop_close(loop);
    return rc;
}

/* A service that comes late is waited for as one that goes away is. */
static int stage_ask(const char *address, int64_t until_us, int *part, struct tpo_error *err)
{
    for (bool said = false;; said = true) {
        struct tpo_error why = {0};
        const int rc = stage_ask_once(address, part, &why);
        const bool again = rc == TPO_UNAVAILABLE || rc == TPO_DEADLINE_EXCEEDED;
        if (rc == TPO_OK || !again || tpo_now_us() >= until_us) {
            if (rc != TPO_OK && err != NULL) *err = why;
            return rc;
        }
        if (!said)
            tpo_log(TPO_LOG_WARN, "waiting", "for=%s wait_ms=%lld reason=%s", address, (long long)(until_us - tpo_now_us()) / 1000,
                    why.reason);
        usleep(AGAIN_MS * 1000);
    }
}

/* `tpo up` leaves RUN/services: SERVICE=ADDR,... , a line each. */
static int run_dir_read(const char *dir, char *out, size_t size, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/services", dir);
    FILE *f = fopen(path, "r");
    const size_t n = f != NULL ? fread(out, 1, size - 1, f) : 0;
    if (f != NULL) fclose(f);
    if (n == 0) return tpo_fail(err, TPO_NOT_FOUND, "mesh", "%.200s holds no mesh: start one by `tpo up --train`", dir);
    out[n] = '\0';
    for (char *at = out; *at != '\0'; at++)
        if (*at == '\n') *at = ',';
    return TPO_OK;
}

int tpo_mesh_read(struct tpo_mesh *m, const char *text, int wait_ms, struct tpo_error *err)
{
    const int64_t until_us = tpo_now_us() + (int64_t)wait_ms * 1000;
    char own[8192];
    struct stat st;
    char *next = NULL;
    int rc = TPO_OK, part = -1;
    memset(m, 0, sizeof(*m));
    if (stat(text, &st) == 0 && S_ISDIR(st.st_mode))
        rc = run_dir_read(text, own, sizeof(own), err);
    else if (strlen(text) >= sizeof(own))
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: too long");
    else
        snprintf(own, sizeof(own), "%s", text);
    if (rc != TPO_OK) return rc;
    for (char *at = strtok_r(own, ",", &next); at != NULL && rc == TPO_OK; at = strtok_r(NULL, ",", &next)) {
        const char *equals = strchr(at, '=');
        int own_part = part;
        if (equals != NULL && (part = own_part = part_named(at, (size_t)(equals - at))) < 0)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh: \"%.32s\" is none of encoder, router, region", at);
        const char *address = equals != NULL ? equals + 1 : at;
        if (strchr(address, ':') != NULL && own_part < 0) rc = stage_ask(address, until_us, &own_part, err);
        if (rc == TPO_OK) rc = address_add(m, own_part < 0 ? 0 : own_part, address, err);
    }
    if (rc == TPO_OK && m->n_replicas[TPO_PART_ENCODER] == 0)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "mesh", "--mesh names no encoder");
    return rc;
}

static int pixels(void *owner, struct tpo_arena *a, struct tpo_sample *s, struct tpo_error *err)
{
    const struct tpo_mesh *m = owner;
    return tpo_feed_pixels(m->feed, a, s, err);
}

int tpo_mesh_handle(void *owner, int part, int replica, struct tpo_learner *out, struct tpo_error *err)
{
    struct tpo_mesh *m = owner;
    const struct tpo_remote_options o = {.service = tpo_part_names[part],
                                         .address = m->addresses[part][replica],
                                         .holder = m->holder,
                                         .lease_ms = m->lease_ms,
                                         .timeout_ms = m->call_ms,
                                         .pixels = pixels,
                                         .owner = m,
                                         .lease = &m->leases[part][replica],
                                         .stop = &m->stop};
    return tpo_learner_open_remote(out, &o, err);
}
