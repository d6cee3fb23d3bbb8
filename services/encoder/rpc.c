/* This file owns the encoder's wire: a media id to its visual tokens, from the cache, from an equal request in flight, or from the model.
 *
 * A request moves  arrived (completion-queue thread: checked, queued)
 *               -> looking (the looking thread: joins an equal flight, or leads one and asks the cache)
 *               -> loading (a media thread: decodes and resizes) -> encoding (compute thread) -> answered
 * Only a leader goes past looking; its passengers are answered when it lands, whatever came of it. */
#include "services/encoder/rpc.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cache.h"
#include "common/clock.h"
#include "common/media/put.h"
#include "encoder.pb-c.h"
#include "media.pb-c.h"
#include "nn/check.h"
#include "services/encoder/encoder.h"
#include "services/encoder/frames.h"
#include "services/encoder/recorded.h"
#include "services/encoder/requests.h"
#include "services/host/learner.h"
#include "services/host/serving.h"

#define THREADS_MAX 16

struct service;

/* What a leader carries to the compute thread. */
struct work {
    struct tpo_job job;
    struct service *service;
    struct tpo_encode *leader;
    struct tpo_frames frames;
    double began_ms; /* looking */
    bool hurried;    /* by the deadlines of those aboard: its load had less than --media-timeout */
};

struct service {
    struct tpo_host *host;
    struct tpo_stream *stream;
    struct tpo_encoder *encoder, *trainee; /* trainee: with --train, what learns; serving never reads it */
    struct tpo_recorded *recorded;         /* the trainee's model, media ids understood */
    struct tpo_serving serving;            /* encoder's weights, version by version */
    struct tpo_config config;
    struct tpo_encoder_how how;
    struct work *retired; /* the job that ran last: the host may look at it until the next one runs */

    tpo_store_t *store;
    tpo_media_t *media;
    tpo_cache_t *cache; /* NULL: off */
    struct tpo_requests requests;
    pthread_t looking, threads[THREADS_MAX];
    bool looks;
    int n_threads;

    /* settings */
    const char *cache_address, *cache_secret, *media_dir, *media_program;
    int64_t cache_ttl_ms, media_bytes, media_file_bytes, media_workers, media_timeout_ms, media_pixels;
};

static struct service the_service;

/* --- arriving ---------------------------------------------------------------------------------------------------------------------- */
static struct tpo_encode *admit(struct service *s, struct tpo_call *call, const Tpo__V1__EncodeRequest *q, struct tpo_error *err)
{
    if (!tpo_host_ready(s->host))
        tpo_fail(err, TPO_UNAVAILABLE, "loading", "the encoder is not ready");
    else if (!tpo_sha256_is_hex(q->media_id))
        tpo_fail(err, TPO_INVALID_ARGUMENT, "media_id", "a media id is 64 lower-case hex digits");
    struct tpo_encode *r = err->code == TPO_OK ? tpo_requests_new(&s->requests, call, err) : NULL;
    if (r == NULL) return NULL;
    if (tpo_versions_take(tpo_host_versions(s->host), tpo_call_metadata(call, "tpo-version"), q->version, &r->version, err) !=
        TPO_OK) {
        tpo_requests_drop(&s->requests, r);
        return NULL;
    }
    memcpy(r->id, q->media_id, sizeof(r->id));
    tpo_encoder_key(&r->key, &s->how, r->id, r->version->digest);
    return r;
}

static void on_encode(void *owner, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct service *s = owner;
    struct tpo_error err = {0};
    struct tpo_encode *r = admit(s, call, (const Tpo__V1__EncodeRequest *)message, &err);
    protobuf_c_message_free_unpacked(message, NULL);
    (void)payload;
    if (r != NULL && tpo_requests_queue(&s->requests, r, TPO_TO_LOOK)) return;
    if (r != NULL) {
        tpo_versions_give(tpo_host_versions(s->host), r->version);
        tpo_requests_drop(&s->requests, r);
        tpo_fail(&err, TPO_UNAVAILABLE, "draining", "this process is shutting down");
    }
    tpo_call_finish(call, err.code, &err);
}

/* --- looking and loading ------------------------------------------------------------------------------------------------------------- */
/* Whether a value is one that this encoder could have made. Another program with our secret could have put something else under the key. */
static bool fits(const struct tpo_cached *v, const struct tpo_config *c)
{
    bool sound = v->dtype == TPO_F32 && v->n_dims == 2 && v->shape[0] == tpo_config_queries(c) &&
                 v->shape[1] == c->bridge.hidden_size && v->n_frames >= 1 && v->n_frames <= c->vision_encoder.num_frames &&
                 v->width >= 1 && v->height >= 1 && v->duration_s >= 0;
    for (int i = 0; sound && i < v->n_frames; i++) sound = v->times[i] >= 0 && v->times[i] <= TPO_MEDIA_SECONDS_MAX;
    return sound;
}

static bool from_cache(struct service *s, struct tpo_encode *r, double began_ms)
{
    struct tpo_cached v;
    if (s->cache == NULL || tpo_cache_get(s->cache, &r->key, &v) != TPO_CACHE_HIT) return false;
    bool sound = fits(&v, &s->config);
    if (sound) tpo_requests_land(&s->requests, r, &v, "hit", "hit", began_ms, NULL);
    tpo_cached_free(&v);
    return sound;
}

static int run_encode(void *self, struct tpo_job *job);

static double patience_ms(void *owner)
{
    struct work *w = owner;
    double left = tpo_requests_left_ms(&w->service->requests, w->leader);
    w->hurried = w->hurried || left < (double)w->service->media_timeout_ms;
    return left;
}

static int load(struct service *s, struct work *w, struct tpo_stream *stream, struct tpo_error *err)
{
    const struct tpo_frames_patience patience = {patience_ms, w};
    int fd = tpo_store_fd(s->store, w->leader->id);
    if (fd < 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "media_missing", "the encoder lacks the bytes of %s", w->leader->id);
    int rc = tpo_frames_load_while(&w->frames, s->media, fd, &s->config, stream, (int)s->media_timeout_ms, &patience, err);
    close(fd);
    tpo_metrics_add(tpo_host_metrics(s->host), "tpo_media_decodes_total", rc == TPO_OK ? "result=\"ok\"" : "result=\"error\"", 1);
    return rc;
}

/* The load was cut short for those who were aboard then, not by --media-timeout: who came later may have more time. */
static bool cut_short(const struct work *w, int rc)
{
    return rc == TPO_CANCELLED || (rc == TPO_DEADLINE_EXCEEDED && w->hurried);
}

static void work_free(struct work *w)
{
    if (w != NULL) tpo_frames_free(&w->frames);
    free(w);
}

/* On the way from the look to here the leader may have waited for others' decoders: that is no work of its own. */
static void load_and_submit(struct service *s, struct tpo_encode *r, struct tpo_stream *stream)
{
    struct tpo_error err = {0};
    const double began_ms = tpo_now_ms() - r->looked_ms;
    if (tpo_requests_abandoned(&s->requests, r)) return;
    struct work *w = calloc(1, sizeof(*w));
    int rc = TPO_OK;
    if (w == NULL) rc = tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a request");
    if (rc == TPO_OK) {
        *w = (struct work){.job = {.run = run_encode, .user = w}, .service = s, .leader = r, .began_ms = began_ms};
        rc = load(s, w, stream, &err);
    }
    if (rc != TPO_OK && w != NULL && cut_short(w, rc)) {
        work_free(w);
        tpo_requests_disband(&s->requests, r);
        return;
    }
    if (rc == TPO_OK) rc = tpo_host_submit(s->host, &w->job, &err);
    if (rc == TPO_OK) return;
    work_free(w);
    tpo_requests_land(&s->requests, r, NULL, "", "", began_ms, &err);
}

static void *media_thread(void *arg)
{
    struct service *s = arg;
    struct tpo_stream *stream = NULL;
    struct tpo_error err;
    TPO_ASSERT(tpo_stream_open(&stream, "cpu", 1, &err) == TPO_OK);
    for (struct tpo_encode *r; (r = tpo_requests_next(&s->requests, TPO_TO_LOAD)) != NULL;) load_and_submit(s, r, stream);
    tpo_stream_close(stream);
    return NULL;
}

static void look(struct service *s, struct tpo_encode *r)
{
    const double began_ms = tpo_now_ms();
    if (!tpo_flight_join(s->requests.flights, &r->key, &r->passenger)) return;
    if (tpo_requests_abandoned(&s->requests, r) || from_cache(s, r, began_ms)) return;
    r->looked_ms = tpo_now_ms() - began_ms;
    TPO_ASSERT(tpo_requests_queue(&s->requests, r, TPO_TO_LOAD)); /* that line is closed after this thread has ended */
}

static void *look_thread(void *arg)
{
    struct service *s = arg;
    for (struct tpo_encode *r; (r = tpo_requests_next(&s->requests, TPO_TO_LOOK)) != NULL;) look(s, r);
    return NULL;
}

/* --- encoding ------------------------------------------------------------------------------------------------------------------------ */
static void retire(struct service *s, struct work *w)
{
    work_free(s->retired);
    s->retired = w;
}

static int run_encode(void *self, struct tpo_job *job)
{
    struct service *s = self;
    struct work *w = job->user;
    if (tpo_requests_abandoned(&s->requests, w->leader)) {
        retire(s, w);
        return TPO_OK;
    }
    struct tpo_error err = {0};
    struct tpo_frames *f = &w->frames;
    struct tpo_cached v = {.dtype = TPO_F32, .n_dims = 2, .shape = {tpo_config_queries(&s->config), s->config.bridge.hidden_size}};
    v.data_bytes = (size_t)v.shape[0] * (size_t)v.shape[1] * sizeof(float);
    v.width = (uint32_t)f->width, v.height = (uint32_t)f->height, v.duration_s = f->duration_s;
    v.n_frames = f->T, v.indices = f->indices, v.times = f->times;
    v.data = malloc(v.data_bytes);
    tpo_serving_use(&s->serving, w->leader->version);
    int rc = v.data != NULL ? tpo_encoder_run(s->encoder, v.data, f->pixels, f->T, &err)
                            : tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for tokens");
    tpo_metrics_add(tpo_host_metrics(s->host), "tpo_encoder_runs_total", "", 1);
    if (rc == TPO_OK && s->cache != NULL) {
        tpo_cache_put(s->cache, &w->leader->key, &v);
        tpo_cache_missed(s->cache, tpo_now_ms() - w->began_ms);
    }
    tpo_requests_land(&s->requests, w->leader, rc == TPO_OK ? &v : NULL, s->cache != NULL ? "miss" : "off", "shared", w->began_ms,
                      &err);
    free(v.data);
    retire(s, w);
    return TPO_OK;
}

/* --- start and end --------------------------------------------------------------------------------------------------------------------- */
static int prepare(void *self, struct tpo_host *h, struct tpo_error *err)
{
    struct service *s = self;
    const struct tpo_store_options store = {.dir = s->media_dir, .budget_bytes = s->media_bytes, .file_bytes = s->media_file_bytes};
    const struct tpo_media_options media = {.program = s->media_program[0] != '\0' ? s->media_program : NULL,
                                            .n_workers = (int)s->media_workers,
                                            .max_pixels = s->media_pixels,
                                            .timeout_ms = (int)s->media_timeout_ms};
    const struct tpo_cache_options cache = {.address = s->cache_address,
                                            .secret_file = s->cache_secret,
                                            .name = "encoder",
                                            .metrics = tpo_host_metrics(h),
                                            .ttl_s = (int)(s->cache_ttl_ms / 1000)};
    s->host = h;
    int rc = tpo_requests_open(&s->requests, h, err);
    if (rc == TPO_OK) rc = tpo_store_open(&s->store, &store, err);
    if (rc == TPO_OK) rc = tpo_media_open(&s->media, &media, err);
    if (rc == TPO_OK && s->cache_address[0] != '\0') rc = tpo_cache_open(&s->cache, &cache, err);
    return rc;
}

static int open_model(void *self, struct tpo_host *h, struct tpo_error *err)
{
    struct service *s = self;
    const struct tpo_host_settings *set = tpo_host_settings(h);
    char digest[72];
    int rc = tpo_config_load(&s->config, set->model, err);
    s->config.keep_bf16 = strcmp(set->dtype, "bf16") == 0;
    if (rc == TPO_OK) rc = tpo_stream_open(&s->stream, set->device, (int)set->threads, err);
    if (rc == TPO_OK && s->config.keep_bf16 && !set->train) tpo_stream_let_round(s->stream);
    if (rc == TPO_OK)
        rc = tpo_encoder_how_make(&s->how, &s->config, set->model, tpo_stream_device_name(s->stream), s->stream->rounds, err);
    if (rc == TPO_OK) rc = tpo_encoder_open(&s->encoder, s->stream, &s->config, set->model, 0, 0, err);
    if (rc == TPO_OK) rc = tpo_params_digest(digest, set->model, "encoder", false, err);
    if (rc == TPO_OK) rc = tpo_serving_open(&s->serving, h, s->stream, tpo_encoder_model(s->encoder)->params, digest, err);
    if (rc != TPO_OK) return rc;
    /* As many threads as workers: each waits for its own. */
    for (; s->n_threads < (int)s->media_workers && s->n_threads < THREADS_MAX; s->n_threads++)
        if (pthread_create(&s->threads[s->n_threads], NULL, media_thread, s) != 0) break;
    s->looks = pthread_create(&s->looking, NULL, look_thread, s) == 0;
    return s->n_threads > 0 && s->looks ? TPO_OK : tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "threads", "no thread can be started");
}

/* A picture reads every weight once, too, and takes seconds where a whole clip of the published size takes minutes. */
static int warm_up(void *self, struct tpo_error *err)
{
    struct service *s = self;
    const int T = s->config.vision_encoder.tubelet_size == 1 ? 1 : s->config.vision_encoder.num_frames,
              side = s->config.vision_encoder.img_size;
    float *visual = malloc((size_t)tpo_config_queries(&s->config) * (size_t)s->config.bridge.hidden_size * sizeof(*visual));
    uint8_t *pixels = calloc((size_t)T, (size_t)side * (size_t)side * 3);
    int rc = visual != NULL && pixels != NULL ? tpo_encoder_run(s->encoder, visual, pixels, T, err)
                                              : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a clip");
    free(visual), free(pixels);
    return rc;
}

static void close_model(void *self)
{
    struct service *s = self;
    tpo_requests_stop(&s->requests, TPO_TO_LOOK);
    if (s->looks) pthread_join(s->looking, NULL);
    tpo_requests_stop(&s->requests, TPO_TO_LOAD);
    while (s->n_threads > 0) pthread_join(s->threads[--s->n_threads], NULL);
    work_free(s->retired);
    tpo_serving_close(&s->serving);
    tpo_encoder_close(s->encoder);
    tpo_recorded_close(s->recorded);
    tpo_encoder_close(s->trainee);
    tpo_stream_close(s->stream);
    tpo_cache_close(s->cache);
    tpo_media_close(s->media);
    tpo_store_close(s->store);
    tpo_requests_close(&s->requests);
}

static int open_learner(void *self, struct tpo_learner *out, struct tpo_error *err)
{
    struct service *s = self;
    int rc = tpo_encoder_open(&s->trainee, s->stream, &s->config, tpo_host_settings(s->host)->model, 1, 0, err);
    if (rc == TPO_OK) rc = tpo_serving_train(&s->serving, tpo_encoder_model(s->trainee)->params, err);
    if (rc != TPO_OK) return rc;
    const struct tpo_recorded_options o = {.encoder = s->trainee,
                                           .config = &s->config,
                                           .how = &s->how,
                                           .store = s->store,
                                           .media = s->media,
                                           .cache = s->cache,
                                           .metrics = tpo_host_metrics(s->host),
                                           .digest = tpo_host_digest(s->host),
                                           .timeout_ms = (int)s->media_timeout_ms,
                                           .threads = (int)s->media_workers};
    rc = tpo_recorded_open(&s->recorded, &o, err);
    return rc == TPO_OK ? tpo_learner_open_direct(out, tpo_recorded_model(s->recorded), s->stream, err) : rc;
}

static int publish(void *self, uint64_t version, struct tpo_error *err)
{
    struct service *s = self;
    return tpo_serving_publish(&s->serving, version, err);
}

static void declare(struct tpo_params *schema, const struct tpo_config *c)
{
    tpo_encoder_schema(schema, c, 0);
}

static int check(void *self, const char *dir)
{
    (void)self;
    return tpo_check_folder("encoder", declare, dir);
}

/* Not while loading: if that fails, the store goes, and no upload may hold it. */
static int on_put_open(void *owner, struct tpo_call *call, struct tpo_error *err)
{
    struct service *s = owner;
    (void)call;
    return tpo_host_ready(s->host) ? TPO_OK : tpo_fail(err, TPO_UNAVAILABLE, "loading", "the encoder is not ready");
}

static void on_put(void *owner, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct service *s = owner;
    (void)payload;
    tpo_put_message(s->store, call, message);
}

static void on_put_cancel(void *owner, struct tpo_call *call)
{
    (void)owner;
    tpo_put_cancel(call);
}

const struct tpo_host_service *tpo_encoder_service(void)
{
    static const struct tpo_setting settings[] = {
        {"cache", TPO_SET_TEXT, &the_service.cache_address, "127.0.0.1:6379", .what = "ADDRESS",
         .help = "Redis that keeps visual tokens, HOST:PORT or unix:PATH; empty: none. One that is absent or slow is done without"},
        {"cache-secret", TPO_SET_TEXT, &the_service.cache_secret, "", .what = "FILE",
         .help = "sign cached values with this file's bytes, for a Redis one does not trust"},
        {"cache-ttl", TPO_SET_MS, &the_service.cache_ttl_ms, "168h", .min = 1000, .max = 3e10,
         .help = "how long a cached value lives"},
        {"media-dir", TPO_SET_TEXT, &the_service.media_dir, "build/run/encoder-media", .what = "DIR",
         .help = "where media that were put are kept"},
        {"media-bytes", TPO_SET_BYTES, &the_service.media_bytes, "4G", .min = 1 << 20, .max = 1e15,
         .help = "what all of them may take; the longest unused goes first"},
        {"media-file-bytes", TPO_SET_BYTES, &the_service.media_file_bytes, "1G", .min = 1 << 10, .max = 1e15,
         .help = "what one may take"},
        {"media-workers", TPO_SET_INT, &the_service.media_workers, "2", .min = 1, .max = THREADS_MAX,
         .help = "files decoded at a time, each in a tpo-media process"},
        {"media-timeout", TPO_SET_MS, &the_service.media_timeout_ms, "20s", .min = 10, .max = 3600000,
         .help = "for opening a file, and for decoding its frames"},
        {"media-pixels", TPO_SET_INT, &the_service.media_pixels, "67108864", .min = 1, .max = 268435456,
         .help = "of one frame, as coded and as displayed"},
        {"media-program", TPO_SET_TEXT, &the_service.media_program, "", .what = "FILE",
         .help = "the decoder; empty: tpo-media beside this program"},
    };
    static const struct tpo_method methods[] = {
        {.path = "/tpo.v1.Encoder/Encode", .request = &tpo__v1__encode_request__descriptor, .on_message = on_encode},
        {.path = "/tpo.v1.Media/Put",
         .request = &tpo__v1__media_chunk__descriptor,
         .stream_in = true,
         .on_open = on_put_open,
         .on_message = on_put,
         .on_cancel = on_put_cancel},
    };
    static const struct tpo_host_service service = {
        .stage = "encoder",
        .about = "Turns the frames of an image or a video into the visual tokens that the language model reads.",
        .examples = "tpo-encoder --model models/small\ntpo-encoder --model models/small --cache '' --media-workers 4\ntpo-encoder "
                    "--check models/small",
        .default_port = 8430,
        .settings = settings,
        .n_settings = sizeof(settings) / sizeof(settings[0]),
        .raw_methods = methods,
        .n_raw_methods = sizeof(methods) / sizeof(methods[0]),
        .self = &the_service,
        .prepare = prepare,
        .open = open_model,
        .open_learner = open_learner,
        .publish = publish,
        .warm_up = warm_up,
        .close = close_model,
        .check = check,
    };
    return &service;
}
