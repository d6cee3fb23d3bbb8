/* This file owns the thread that renews leases. */
#include "trainer/steps/keeper.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/rpc/client.h"
#include "services/host/learner_wire.h"

#define WARDS_MAX (TPO_PARTS * TPO_REPLICAS_MAX)
#define LOOK_MS   50 /* how soon a close is seen */

/* One replica. */
struct ward {
    struct tpo_peers *peers;
    const _Atomic uint64_t *lease; /* 0: there is none to keep */
    bool asked;                    /* its call is on its way */
};

struct tpo_keeper {
    int64_t every_us;
    int call_ms;
    struct tpo_loop *loop; /* the thread's, but for open and close */
    struct ward wards[WARDS_MAX];
    int n_wards;
    pthread_t thread;
    bool threaded;
    _Atomic bool closing;
};

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    tpo_payload_free(payload);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r, (void)status, (void)err;
    ((struct ward *)owner)->asked = false;
}

/* A call that has not been answered waits there for its turn: it came in time, and a second one would not come sooner. */
static void ward_ask(const struct tpo_keeper *k, struct ward *w)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Learner/Keep", .reply = &tpo__v1__empty__descriptor, .timeout_ms = k->call_ms};
    const struct tpo_rpc_events on = {.owner = w, .on_message = on_message, .on_done = on_done};
    const struct tpo_key none = {0};
    Tpo__V1__StepRequest m = TPO__V1__STEP_REQUEST__INIT;
    Tpo__V1__Key key;
    const uint64_t lease = *w->lease;
    if (lease == 0 || w->asked) return;
    tpo_key_pack(&key, &none, lease);
    m.key = &key;
    w->asked = tpo_rpc_open(w->peers, &start, &m.base, NULL, &on, NULL) != NULL;
}

static void *keep(void *arg)
{
    struct tpo_keeper *k = arg;
    for (int64_t due_us = 0; !k->closing;) {
        const int64_t now_us = tpo_now_us(), left_ms = (due_us - now_us) / 1000;
        if (left_ms > 0) {
            tpo_loop_wait(k->loop, left_ms < LOOK_MS ? (int)left_ms : LOOK_MS);
            continue;
        }
        for (int i = 0; i < k->n_wards; i++) ward_ask(k, &k->wards[i]);
        due_us = now_us + k->every_us;
    }
    return NULL;
}

int tpo_keeper_open(struct tpo_keeper **out, struct tpo_mesh *m, struct tpo_error *err)
{
    struct tpo_keeper *k = calloc(1, sizeof(*k));
    *out = NULL;
    if (k == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a keeper of leases");
    k->every_us = (int64_t)m->lease_ms * 1000 / 3;
    k->call_ms = m->call_ms;
    int rc = tpo_loop_open(&k->loop, NULL, NULL, err);
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < m->n_replicas[p] && rc == TPO_OK; r++) {
            struct ward *w = &k->wards[k->n_wards];
            w->lease = &m->leases[p][r];
            rc = tpo_peers_open(&w->peers, k->loop, tpo_part_names[p], m->addresses[p][r], TPO_PICK_LEAST, err);
            k->n_wards += rc == TPO_OK;
        }
    if (rc == TPO_OK && !(k->threaded = pthread_create(&k->thread, NULL, keep, k) == 0))
        rc = tpo_fail(err, TPO_ENOMEM, "thread", "no thread for a keeper of leases");
    if (rc == TPO_OK)
        *out = k;
    else
        tpo_keeper_close(k);
    return rc;
}

void tpo_keeper_close(struct tpo_keeper *k)
{
    if (k == NULL) return;
    k->closing = true;
    if (k->threaded) pthread_join(k->thread, NULL);
    for (int i = 0; i < k->n_wards; i++) tpo_peers_close(k->wards[i].peers);
    tpo_loop_close(k->loop);
    free(k);
}
