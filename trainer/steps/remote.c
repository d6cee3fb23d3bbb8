/* This file owns the learner at the other end of a wire. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "services/host/learner_wire.h"
#include "trainer/steps/media_send.h"
#include "trainer/steps/remote_private.h"

#define GIVES_MAX 4 /* of one Forward's media */

static uint64_t lease_of(const struct remote *r)
{
    return *r->o.lease;
}

static int no_memory(struct remote *r, struct tpo_error *err)
{
    return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a call to %s", r->o.service);
}

/* The service's answer is no reason to blame the caller. */
static int bad_reply(struct remote *r, struct tpo_error *err)
{
    if (err == NULL) return TPO_INTERNAL;
    err->code = TPO_INTERNAL;
    snprintf(err->stage, sizeof(err->stage), "%s", r->o.service);
    return TPO_INTERNAL;
}

/* --- runs ---------------------------------------------------------------------------------------------------------------------------- */

static void begun_read(struct tpo_begun *out, const Tpo__V1__BeginReply *m)
{
    *out = (struct tpo_begun){.version = m->version,
                              .prepared_step = m->prepared_step,
                              .committed_step = m->committed_step,
                              .tapes = m->tapes < 1024 ? (int)m->tapes : 1024,
                              .trainable = m->trainable < INT32_MAX ? (int)m->trainable : INT32_MAX,
                              .threads = m->threads < 4096 ? (int)m->threads : 4096,
                              .lease = m->lease,
                              .own_since = m->own_since,
                              .served = m->served};
    snprintf(out->instance, sizeof(out->instance), "%s", m->instance);
    snprintf(out->service, sizeof(out->service), "%s", m->stage);
    snprintf(out->config, sizeof(out->config), "%s", m->config);
    snprintf(out->device, sizeof(out->device), "%s", m->device);
    snprintf(out->tokenizer, sizeof(out->tokenizer), "%s", m->tokenizer);
}

static int remote_begin(void *self, const char *run, const struct tpo_plan *plan, struct tpo_begun *out, struct tpo_error *err)
{
    struct remote *r = self;
    struct remote_call w = {0};
    Tpo__V1__BeginRequest m = TPO__V1__BEGIN_REQUEST__INIT;
    tpo_arena_reset(&r->request);
    m.run = (char *)run;
    m.lease_ms = (uint32_t)r->o.lease_ms;
    m.holder = (char *)r->o.holder;
    m.plan = tpo_plan_pack(&r->request, plan);
    if (m.plan == NULL) return no_memory(r, err);
    int rc = tpo_remote_call(r, "/tpo.v1.Learner/Begin", &tpo__v1__begin_reply__descriptor, &m.base, &w, false, err);
    if (rc != TPO_OK) return rc;
    const Tpo__V1__BeginReply *reply = (const Tpo__V1__BeginReply *)w.reply;
    begun_read(out, reply);
    *r->o.lease = reply->lease;
    snprintf(r->run, sizeof(r->run), "%s", run);
    r->version = reply->version;
    protobuf_c_message_free_unpacked(w.reply, NULL);
    return TPO_OK;
}

/* --- forward and backward ------------------------------------------------------------------------------------------------------------ */

static int forward_read(struct remote *r, struct tpo_forwarded *out, struct tpo_error *err)
{
    const Tpo__V1__ForwardReply *m = (const Tpo__V1__ForwardReply *)r->forward.message;
    struct tpo_arena *a = &r->forward.arena;
    *out = (struct tpo_forwarded){.n_outputs = (int)m->n_tensors, .n_rows = (int)m->n_rows};
    int rc = tpo_tensors_unpack(out->outputs, a, m->tensors, m->n_tensors, err);
    if (rc == TPO_OK) rc = tpo_rows_unpack(&out->rows, a, m->rows, m->n_rows, err);
    if (rc == TPO_OK && m->n_losses > TPO_PORTS_MAX)
        rc = tpo_fail(err, TPO_INTERNAL, "losses", "%zu losses from %s", m->n_losses, r->o.service);
    if (rc != TPO_OK) return bad_reply(r, err);
    for (size_t i = 0; i < m->n_losses; i++) {
        out->losses[i].name = m->losses[i]->name;
        out->losses[i].value = m->losses[i]->value;
    }
    out->n_losses = (int)m->n_losses;
    r->run_ms = m->run_ms;
    return TPO_OK;
}

/* The service's errors about a medium; not those of a medium that cannot be read here either. */
static bool is_of_a_medium(const struct tpo_error *err)
{
    const bool own = strcmp(err->reason, "media_gone") == 0 || strcmp(err->reason, "media_slow") == 0;
    return !own && strncmp(err->reason, "media_", strlen("media_")) == 0;
}

/* The service cannot take this sample's medium by name: it is too large for it, or its decoder is busy for too long. Its frames come from here,
 * as they do in one process. */
static int pixels_instead(struct remote *r, struct tpo_sample *s, const struct tpo_error *why, struct tpo_error *err)
{
    tpo_log(TPO_LOG_WARN, "media_as_pixels", "id=%.16s service=%s reason=%s", s->media_id, r->o.service, why->reason);
    return r->o.pixels(r->o.owner, &r->request, s, err);
}

static void refused_keep(struct remote *r, const struct tpo_sample *s)
{
    snprintf(r->refused[r->n_refused++ % REMOTE_REFUSED_MAX], TPO_SHA256_HEX, "%s", s->media_id);
}

static bool was_refused(const struct remote *r, const struct tpo_sample *s)
{
    for (unsigned i = 0; i < r->n_refused && i < REMOTE_REFUSED_MAX && s->media_id != NULL; i++)
        if (strcmp(r->refused[i], s->media_id) == 0) return true;
    return false;
}

/* A service that lacks one medium of a Forward gets all of them: in the first epoch it lacks nearly all. */
static int media_give(struct remote *r, struct tpo_sample *samples, int n_samples, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = 0; i < n_samples && rc == TPO_OK; i++) {
        bool again = samples[i].media_path == NULL || samples[i].media_id == NULL;
        for (int k = 0; k < i && !again; k++)
            again = samples[k].media_id != NULL && strcmp(samples[k].media_id, samples[i].media_id) == 0;
        if (again) continue;
        struct tpo_error why = {0};
        rc = tpo_media_send(r->loop, r->peers, samples[i].media_id, samples[i].media_path, r->o.timeout_ms, r->o.stop, &why);
        if (rc != TPO_OK && is_of_a_medium(&why)) {
            refused_keep(r, &samples[i]);
            rc = pixels_instead(r, &samples[i], &why, &why);
        }
        if (rc != TPO_OK) *err = why;
    }
    return rc;
}

/* Checked before the first step (messages.h), but for media that are refused by name. */
static int too_large(const struct remote *r, const struct tpo_sample *samples, int n_samples, size_t bytes, struct tpo_error *err)
{
    int n_named = 0;
    for (int i = 0; i < n_samples; i++) n_named += samples[i].media_id != NULL;
    return tpo_fail(
        err, TPO_INVALID_ARGUMENT, "samples",
        "%d samples, %d of them as pixels, have %.1f MiB, a message to %s %d: take fewer samples (and more micro_batches), "
        "fewer frames, or media that it takes by name",
        n_samples, n_samples - n_named, (double)bytes / (1 << 20), r->o.service, TPO_RPC_MESSAGE_BYTES >> 20);
}

static int forward_ask(struct remote *r, Tpo__V1__ForwardRequest *m, const struct tpo_sample *samples, struct tpo_error *err)
{
    m->samples = tpo_samples_pack(&r->request, samples, (int)m->n_samples, strcmp(r->o.service, "encoder") == 0);
    if (m->samples == NULL) return no_memory(r, err);
    const size_t bytes = protobuf_c_message_get_packed_size(&m->base);
    if (bytes > TPO_RPC_MESSAGE_BYTES) return too_large(r, samples, (int)m->n_samples, bytes, err);
    return tpo_remote_ask(r, &r->forward, "/tpo.v1.Learner/Forward", &tpo__v1__forward_reply__descriptor, &m->base, err);
}

/* Those that the error names, or all where it names none. With none left that could come as pixels the error stays. */
static int refused_give(struct remote *r, struct tpo_sample *samples, int n_samples, struct tpo_error *err)
{
    const struct tpo_error why = *err;
    int n_named = 0, n_given = 0, rc = TPO_OK;
    for (int i = 0; i < n_samples; i++) n_named += samples[i].media_id != NULL && strstr(why.message, samples[i].media_id) != NULL;
    for (int i = 0; i < n_samples && rc == TPO_OK; i++) {
        if (samples[i].media_id == NULL || (n_named > 0 && strstr(why.message, samples[i].media_id) == NULL)) continue;
        if (n_named > 0) refused_keep(r, &samples[i]);
        rc = pixels_instead(r, &samples[i], &why, err);
        n_given++;
    }
    return n_given > 0 ? rc : why.code;
}

/* Media that the service lacks are given to it: more than once, since what serving stores may push out what has just come. What it has and cannot
 * read comes as pixels, one more with every turn; what it has refused before, from the first turn. */
static int forward_named(struct remote *r, Tpo__V1__ForwardRequest *m, struct tpo_sample *samples, struct tpo_error *err)
{
    const int n = (int)m->n_samples;
    int rc = TPO_OK, gives = 0;
    for (int i = 0; i < n && rc == TPO_OK; i++)
        if (was_refused(r, &samples[i])) rc = r->o.pixels(r->o.owner, &r->request, &samples[i], err);
    if (rc == TPO_OK) rc = forward_ask(r, m, samples, err);
    for (int turn = 0; turn < n + GIVES_MAX && rc != TPO_OK && is_of_a_medium(err); turn++) {
        const bool lacks = strcmp(err->reason, "media_missing") == 0 && gives++ < GIVES_MAX;
        rc = lacks ? media_give(r, samples, n, err) : refused_give(r, samples, n, err);
        if (rc == TPO_OK) rc = forward_ask(r, m, samples, err);
    }
    return rc;
}

static int remote_forward(void *self, const struct tpo_key *key, const struct tpo_sample *samples, int n_samples,
                          const struct tpo_named_tensor *inputs, int n_inputs, const char *const *wants, int n_wants,
                          struct tpo_forwarded *out, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__ForwardRequest m = TPO__V1__FORWARD_REQUEST__INIT;
    tpo_arena_reset(&r->request);
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    m.n_samples = (size_t)n_samples;
    m.n_tensors = (size_t)n_inputs;
    m.tensors = tpo_tensors_pack(&r->request, inputs, n_inputs);
    m.n_wants = (size_t)n_wants;
    m.wants = (char **)wants;
    struct tpo_sample *own = tpo_arena_alloc(&r->request, sizeof(*own) * (size_t)(n_samples + 1));
    if (own == NULL || m.tensors == NULL) return no_memory(r, err);
    memcpy(own, samples, sizeof(*own) * (size_t)n_samples);
    struct tpo_error why = {0};
    const int rc = forward_named(r, &m, own, &why);
    if (rc != TPO_OK && err != NULL) *err = why;
    return rc == TPO_OK ? forward_read(r, out, err) : rc;
}

static int remote_backward(void *self, const struct tpo_key *key, const struct tpo_named_tensor *gradients, int n_gradients,
                           struct tpo_named_tensor *inputs_out, int *n_inputs_out, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__BackwardRequest m = TPO__V1__BACKWARD_REQUEST__INIT;
    tpo_arena_reset(&r->request);
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    m.n_gradients = (size_t)n_gradients;
    m.gradients = tpo_tensors_pack(&r->request, gradients, n_gradients);
    if (m.gradients == NULL) return no_memory(r, err);
    int rc = tpo_remote_ask(r, &r->backward, "/tpo.v1.Learner/Backward", &tpo__v1__backward_reply__descriptor, &m.base, err);
    if (rc != TPO_OK) return rc;
    const Tpo__V1__BackwardReply *reply = (const Tpo__V1__BackwardReply *)r->backward.message;
    r->run_ms = reply->run_ms;
    rc = tpo_tensors_unpack(inputs_out, &r->backward.arena, reply->gradients, reply->n_gradients, err);
    *n_inputs_out = (int)reply->n_gradients;
    return rc == TPO_OK ? TPO_OK : bad_reply(r, err);
}

/* --- sums ---------------------------------------------------------------------------------------------------------------------------- */

struct gathering {
    struct remote *remote;
    int (*sink)(void *arg, const struct tpo_chunk *x);
    void *arg;
};

static int gathered(void *arg, ProtobufCMessage *message, struct tpo_error *err)
{
    struct gathering *g = arg;
    struct tpo_chunk x;
    tpo_arena_reset(&g->remote->chunk.arena);
    int rc = tpo_chunk_unpack(&x, &g->remote->chunk.arena, (const Tpo__V1__Chunk *)message, err);
    if (rc == TPO_OK && x.name[0] != '\0') rc = g->sink(g->arg, &x);
    if (rc != TPO_OK) tpo_fail(err, TPO_INTERNAL, "gather", "%s told a sum that fits nothing", g->remote->o.service);
    return rc;
}

static void step_pack(struct remote *r, Tpo__V1__StepRequest *m, Tpo__V1__Key *k, const struct tpo_key *key)
{
    tpo__v1__step_request__init(m);
    tpo_key_pack(k, key, lease_of(r));
    m->key = k;
}

static int remote_gather(void *self, const struct tpo_key *key, uint32_t skipped, int (*sink)(void *arg, const struct tpo_chunk *x),
                         void *arg, struct tpo_error *err)
{
    struct remote *r = self;
    struct gathering g = {r, sink, arg};
    struct remote_call w = {.on_chunk = gathered, .arg = &g};
    Tpo__V1__Key k;
    Tpo__V1__GatherRequest m = TPO__V1__GATHER_REQUEST__INIT;
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    m.skipped = skipped;
    int rc = tpo_remote_call(r, "/tpo.v1.Learner/Gather", &tpo__v1__chunk__descriptor, &m.base, &w, true, err);
    return rc == TPO_OK ? sink(arg, NULL) : rc;
}

static int chunk_tell(struct remote *r, const char *path, const struct tpo_key *key, const struct tpo_chunk *x,
                      struct tpo_error *err)
{
    Tpo__V1__Key k;
    Tpo__V1__Chunk m;
    int64_t shape[TPO_DIMS_MAX];
    tpo_chunk_pack(&m, x, shape);
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    return tpo_remote_tell(r, path, &m.base, true, err);
}

static int remote_scatter(void *self, const struct tpo_key *key, const struct tpo_chunk *x, struct tpo_error *err)
{
    return chunk_tell(self, "/tpo.v1.Learner/Scatter", key, x, err);
}

/* --- the step ------------------------------------------------------------------------------------------------------------------------ */

static int remote_norms(void *self, const struct tpo_key *key, const struct tpo_norm **out, int *n, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__StepRequest m;
    step_pack(r, &m, &k, key);
    int rc = tpo_remote_ask(r, &r->norms, "/tpo.v1.Learner/Norms", &tpo__v1__norms_reply__descriptor, &m.base, err);
    if (rc != TPO_OK) return rc;
    const Tpo__V1__NormsReply *reply = (const Tpo__V1__NormsReply *)r->norms.message;
    struct tpo_norm *norms = tpo_arena_alloc(&r->norms.arena, sizeof(*norms) * (reply->n_norms + 1));
    if (norms == NULL) return no_memory(r, err);
    for (size_t i = 0; i < reply->n_norms; i++)
        norms[i] = (struct tpo_norm){
            .name = reply->norms[i]->name, .group = (int)reply->norms[i]->group, .squared = reply->norms[i]->squared};
    *out = norms;
    *n = (int)reply->n_norms;
    return TPO_OK;
}

static int remote_prepare(void *self, const struct tpo_key *key, float clip, const float *rates, int n_rates, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__PrepareRequest m = TPO__V1__PREPARE_REQUEST__INIT;
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    m.clip = clip;
    m.rates = (float *)rates;
    m.n_rates = (size_t)n_rates;
    return tpo_remote_tell(r, "/tpo.v1.Learner/Prepare", &m.base, true, err);
}

static int remote_commit(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__StepRequest m;
    step_pack(r, &m, &k, key);
    int rc = tpo_remote_tell(r, "/tpo.v1.Learner/Commit", &m.base, true, err);
    if (rc == TPO_OK) r->version = key->version + 1;
    return rc;
}

static int remote_abort(void *self, const struct tpo_key *key, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__StepRequest m;
    step_pack(r, &m, &k, key);
    return tpo_remote_tell(r, "/tpo.v1.Learner/Abort", &m.base, false, err);
}

/* --- state --------------------------------------------------------------------------------------------------------------------------- */

static struct tpo_key key_now(const struct remote *r, uint64_t version)
{
    struct tpo_key key = {.version = version};
    memcpy(key.run, r->run, sizeof(key.run));
    return key;
}

static int remote_export(void *self, int at, int64_t offset, int64_t most, struct tpo_chunk *out, struct tpo_error *err)
{
    struct remote *r = self;
    const struct tpo_key key = key_now(r, r->version);
    Tpo__V1__Key k;
    Tpo__V1__ExportRequest m = TPO__V1__EXPORT_REQUEST__INIT;
    tpo_key_pack(&k, &key, lease_of(r));
    m.key = &k;
    m.at = (uint32_t)at;
    m.offset = (uint64_t)offset;
    m.most = (uint32_t)most;
    int rc = tpo_remote_ask(r, &r->chunk, "/tpo.v1.Learner/Export", &tpo__v1__chunk__descriptor, &m.base, err);
    if (rc != TPO_OK) return rc;
    rc = tpo_chunk_unpack(out, &r->chunk.arena, (const Tpo__V1__Chunk *)r->chunk.message, err);
    if (rc != TPO_OK) return bad_reply(r, err);
    if (out->name[0] == '\0') out->name = NULL;
    return TPO_OK;
}

static int remote_import(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err)
{
    struct remote *r = self;
    const struct tpo_key key = key_now(r, version);
    int rc = chunk_tell(r, "/tpo.v1.Learner/Import", &key, x, err);
    if (rc == TPO_OK && x == NULL) r->version = version;
    return rc;
}

static int remote_holds(void *self, const struct tpo_chunk *x, const uint8_t digest[TPO_SHA256_BYTES], bool *held,
                        struct tpo_error *err)
{
    struct remote *r = self;
    const struct tpo_key key = key_now(r, 0);
    struct remote_call w = {0};
    Tpo__V1__Key k;
    Tpo__V1__Chunk m;
    int64_t shape[TPO_DIMS_MAX];
    tpo_chunk_pack(&m, x, shape);
    tpo_key_pack(&k, &key, lease_of(r));
    m.key = &k;
    m.digest = (ProtobufCBinaryData){TPO_SHA256_BYTES, (uint8_t *)digest};
    int rc = tpo_remote_call(r, "/tpo.v1.Learner/Import", &tpo__v1__import_reply__descriptor, &m.base, &w, true, err);
    if (rc != TPO_OK) return rc;
    *held = ((const Tpo__V1__ImportReply *)w.reply)->held;
    protobuf_c_message_free_unpacked(w.reply, NULL);
    return TPO_OK;
}

static int remote_publish(void *self, const struct tpo_key *key, uint64_t version, struct tpo_error *err)
{
    struct remote *r = self;
    Tpo__V1__Key k;
    Tpo__V1__PublishRequest m = TPO__V1__PUBLISH_REQUEST__INIT;
    tpo_key_pack(&k, key, lease_of(r));
    m.key = &k;
    m.version = version;
    return tpo_remote_tell(r, "/tpo.v1.Learner/Publish", &m.base, true, err);
}

static int remote_end(void *self, struct tpo_error *err)
{
    struct remote *r = self;
    const struct tpo_key key = key_now(r, r->version);
    Tpo__V1__Key k;
    Tpo__V1__StepRequest m;
    step_pack(r, &m, &k, &key);
    int rc = tpo_remote_tell(r, "/tpo.v1.Learner/End", &m.base, true, err);
    if (rc == TPO_OK) *r->o.lease = 0;
    return rc;
}

/* --- opening ------------------------------------------------------------------------------------------------------------------------- */

static double remote_run_ms(void *self)
{
    return ((struct remote *)self)->run_ms;
}

static void reply_free(struct remote_reply *x)
{
    if (x->message != NULL) protobuf_c_message_free_unpacked(x->message, NULL);
    tpo_arena_free(&x->arena);
}

static void remote_close(void *self)
{
    struct remote *r = self;
    tpo_peers_close(r->peers);
    tpo_loop_close(r->loop);
    reply_free(&r->forward);
    reply_free(&r->backward);
    reply_free(&r->norms);
    reply_free(&r->chunk);
    tpo_arena_free(&r->request);
    free(r);
}

int tpo_learner_open_remote(struct tpo_learner *out, const struct tpo_remote_options *o, struct tpo_error *err)
{
    struct remote *r = calloc(1, sizeof(*r));
    if (r == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a learner");
    r->o = *o;
    struct tpo_arena *const arenas[] = {&r->request, &r->forward.arena, &r->backward.arena, &r->norms.arena, &r->chunk.arena};
    for (size_t i = 0; i < sizeof(arenas) / sizeof(arenas[0]); i++) tpo_arena_init(arenas[i], (size_t)1 << 16, 0);
    int rc = tpo_loop_open(&r->loop, NULL, NULL, err);
    if (rc == TPO_OK) rc = tpo_peers_open(&r->peers, r->loop, o->service, o->address, TPO_PICK_LEAST, err);
    if (rc != TPO_OK) {
        remote_close(r);
        return rc;
    }
    *out = (struct tpo_learner){.service = o->service,
                                .self = r,
                                .begin = remote_begin,
                                .forward = remote_forward,
                                .backward = remote_backward,
                                .gather = remote_gather,
                                .scatter = remote_scatter,
                                .norms = remote_norms,
                                .prepare = remote_prepare,
                                .commit = remote_commit,
                                .abort = remote_abort,
                                .export_state = remote_export,
                                .import_state = remote_import,
                                .holds = remote_holds,
                                .publish = remote_publish,
                                .end = remote_end,
                                .run_ms = remote_run_ms,
                                .close = remote_close};
    return TPO_OK;
}
