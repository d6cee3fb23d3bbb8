/* This file owns the router's wire: a GenerateRequest into the scheduler, its events out as they happen.
 *
 * A job lives from submit to on_done, which the scheduler owes every sequence it took. Before every step each active one is asked whether its reader
 * went away or ran out of time: then its sequence ends within that step, prompt or answer alike. */
#include "services/router/rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "kernels/stream.h"
#include "nn/check.h"
#include "router.pb-c.h"
#include "services/host/learner.h"
#include "services/host/serving.h"
#include "services/router/learn.h"
#include "services/router/router.h"

struct service {
    struct tpo_host *host;
    struct tpo_stream *stream;
    struct tpo_router *router;
    struct tpo_router_trainee *trainee; /* with --train, what learns; serving never reads it */
    struct tpo_serving serving;         /* router's weights, version by version */
    struct tpo_config config;
    struct active *actives; /* what is in the scheduler, in no order */
    int n_running;
};

static struct service the_service;
static struct {
    int64_t kv_bytes, sequences, prefill_tokens;
    bool merge_lora;
} set;

/* A sequence in the scheduler: it holds its job, hence its call, until on_done. */
struct active {
    struct active *next, **link; /* link: what points at this one */
    struct service *service;
    struct tpo_job *job;
    uint64_t handle;             /* the router's name of it */
    struct tpo_version *version; /* held */
    double first_ms;             /* of its run, when the first token was chosen */
};

/* Messages that may wait for a slow reader before its answer is given up: it must not stall the others. */
#define UNSENT_MAX 4096

static int open_model(void *self, struct tpo_host *h, struct tpo_error *err)
{
    struct service *s = self;
    const struct tpo_host_settings *host = tpo_host_settings(h);
    struct tpo_router_options o = {.folder = host->model,
                                   .merge_lora = set.merge_lora && !host->train,
                                   .kv_bytes = (size_t)set.kv_bytes,
                                   .max_sequences = (int)set.sequences,
                                   .prefill_tokens = (int)set.prefill_tokens};
    char digest[72];
    s->host = h;
    int rc = tpo_config_load(&s->config, host->model, err);
    s->config.keep_bf16 = strcmp(host->dtype, "bf16") == 0;
    if (rc == TPO_OK) rc = tpo_stream_open(&s->stream, host->device, (int)host->threads, err);
    if (rc == TPO_OK && s->config.keep_bf16 && !host->train) tpo_stream_let_round(s->stream);
    if (rc == TPO_OK) rc = tpo_router_open(&s->router, s->stream, &s->config, &o, err);
    if (rc == TPO_OK) rc = tpo_router_check_pool(s->router, err);
    if (rc == TPO_OK) rc = tpo_params_digest(digest, host->model, "router", true, err);
    if (rc == TPO_OK) rc = tpo_serving_open(&s->serving, h, s->stream, tpo_router_params(s->router), digest, err);
    return rc;
}

static void close_model(void *self)
{
    struct service *s = self;
    tpo_serving_close(&s->serving);
    tpo_router_close(s->router);
    tpo_router_trainee_close(s->trainee);
    tpo_stream_close(s->stream);
    s->router = NULL;
    s->stream = NULL;
}

static int open_learner(void *self, struct tpo_learner *out, struct tpo_error *err)
{
    struct service *s = self;
    int rc = tpo_router_trainee_open(&s->trainee, s->stream, &s->config, tpo_host_settings(s->host)->model, false, 0, 1, err);
    if (rc == TPO_OK) rc = tpo_serving_train(&s->serving, tpo_router_trainee_model(s->trainee)->params, err);
    return rc == TPO_OK ? tpo_learner_open_direct(out, tpo_router_trainee_model(s->trainee), s->stream, err) : rc;
}

static int publish(void *self, uint64_t version, struct tpo_error *err)
{
    struct service *s = self;
    return tpo_serving_publish(&s->serving, version, err);
}

/* --- events of one sequence ------------------------------------------------------------------------------------------------------------ */

static int send_event(struct active *a, Tpo__V1__GenerateEvent *event)
{
    struct tpo_call *call = a->job->call;
    if (tpo_call_cancelled(call) || tpo_call_unsent(call) > UNSENT_MAX) return 1;
    tpo_call_send(call, &event->base, NULL);
    return 0;
}

static int on_text(void *owner, const char *text, size_t length)
{
    struct active *a = owner;
    Tpo__V1__TextDelta delta = TPO__V1__TEXT_DELTA__INIT;
    Tpo__V1__GenerateEvent event = TPO__V1__GENERATE_EVENT__INIT;
    char *copy = strndup(text, length);
    if (copy == NULL) return 1;
    delta.text = copy;
    event.kind_case = TPO__V1__GENERATE_EVENT__KIND_TEXT;
    event.text = &delta;
    int cancel = send_event(a, &event);
    free(copy);
    return cancel;
}

static int on_task(void *owner, const char *task, int index, int text_offset, const float *e, int D)
{
    struct active *a = owner;
    Tpo__V1__TaskEmbedding embedding = TPO__V1__TASK_EMBEDDING__INIT;
    Tpo__V1__GenerateEvent event = TPO__V1__GENERATE_EVENT__INIT;
    Tpo__V1__Tensor tensor = TPO__V1__TENSOR__INIT;
    int64_t shape = D;
    embedding.task = (char *)task;
    embedding.index = (uint32_t)index;
    embedding.text_offset = (uint32_t)text_offset;
    /* The tensor is a field of a field here, so it is packed the ordinary way: 8 KB for the published model. */
    tensor.dtype = TPO__V1__DTYPE__DTYPE_F32;
    tensor.n_shape = 1;
    tensor.shape = &shape;
    tensor.data = (ProtobufCBinaryData){(size_t)D * sizeof(*e), (uint8_t *)e};
    embedding.e = &tensor;
    event.kind_case = TPO__V1__GENERATE_EVENT__KIND_TASK;
    event.task = &embedding;
    return send_event(a, &event);
}

static void count_running(struct service *s, int change)
{
    s->n_running += change;
    tpo_metrics_set(tpo_host_metrics(s->host), "tpo_sequences_running", "", s->n_running);
}

static void send_done(struct active *a, const char *finish_reason, int prompt_tokens, int completion_tokens)
{
    Tpo__V1__GenerateDone done = TPO__V1__GENERATE_DONE__INIT;
    Tpo__V1__GenerateEvent event = TPO__V1__GENERATE_EVENT__INIT;
    done.finish_reason = (char *)finish_reason;
    done.prompt_tokens = (uint32_t)prompt_tokens;
    done.completion_tokens = (uint32_t)completion_tokens;
    done.queue_ms = a->job->queue_ms;
    done.run_ms = tpo_job_run_ms(a->job);
    done.digest = (char *)a->version->digest;
    done.version = a->version->number;
    event.kind_case = TPO__V1__GENERATE_EVENT__KIND_DONE;
    event.done = &done;
    tpo_call_send_last(a->job->call, &event.base, NULL);
}

static void on_first(void *owner)
{
    struct active *a = owner;
    a->first_ms = tpo_job_run_ms(a->job);
}

static void enter(struct active *a)
{
    struct service *s = a->service;
    a->next = s->actives;
    a->link = &s->actives;
    if (a->next != NULL) a->next->link = &a->next;
    s->actives = a;
    count_running(s, 1);
}

static void leave(struct active *a)
{
    *a->link = a->next;
    if (a->next != NULL) a->next->link = a->link;
    count_running(a->service, -1);
}

static void on_done(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                    const struct tpo_error *err)
{
    struct active *a = owner;
    struct tpo_metrics *m = tpo_host_metrics(a->service->host);
    struct tpo_error late;
    leave(a);
    if (status == TPO_CANCELLED && tpo_call_left_ms(a->job->call) <= 0) {
        status = tpo_fail(&late, TPO_DEADLINE_EXCEEDED, "deadline", "the time for the answer ran out");
        err = &late;
    }
    tpo_metrics_add(m, "tpo_prompt_tokens_total", "", prompt_tokens);
    tpo_metrics_add(m, "tpo_generated_tokens_total", "", completion_tokens);
    tpo_log(TPO_LOG_INFO, "answer", "req=%s prompt=%d tokens=%d first_ms=%.3f run_ms=%.3f", tpo_call_request_id(a->job->call),
            prompt_tokens, completion_tokens, a->first_ms, tpo_job_run_ms(a->job));
    if (status == TPO_OK) send_done(a, finish_reason, prompt_tokens, completion_tokens);
    tpo_versions_give(tpo_host_versions(a->service->host), a->version);
    tpo_job_finish(a->job, status == TPO_OK ? NULL : err);
    free(a);
}

/* --- a request ---------------------------------------------------------------------------------------------------------------------------- */

/* Views of the message in the shape the router takes, until submit has returned. */
struct request {
    struct tpo_router_request q;
    struct tpo_chat_turn *turns;
    float (*boxes)[4];
    double *times;
};

static void request_free(struct request *r)
{
    free(r->turns);
    free(r->boxes);
    free(r->times);
}

static int request_visual(struct request *r, const struct tpo_payload *visual, const struct tpo_config *c, struct tpo_error *err)
{
    int Q = tpo_config_queries(c), C = c->bridge.hidden_size;
    if (visual->dtype == 0 && r->q.media_kind == NULL) return TPO_OK;
    if (visual->dtype == 0 || r->q.media_kind == NULL)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "visual_shape", "media_kind and visual come together or not at all");
    if (visual->dtype != TPO_F32 || visual->n_dims != 2 || visual->shape[0] != Q || visual->shape[1] != C)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "visual_shape", "visual must be f32 [%d,%d]", Q, C);
    r->q.visual = visual->data;
    return TPO_OK;
}

static int request_fill(struct request *r, const struct tpo_job *job, const struct tpo_config *c, struct tpo_error *err)
{
    const Tpo__V1__GenerateRequest *m = (const Tpo__V1__GenerateRequest *)job->message;
    r->turns = calloc(m->n_turns + 1, sizeof(*r->turns));
    r->boxes = calloc(m->n_boxes + 1, sizeof(*r->boxes));
    r->times = calloc(m->n_frames + 1, sizeof(*r->times));
    if (r->turns == NULL || r->boxes == NULL || r->times == NULL)
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a request");
    for (size_t i = 0; i < m->n_turns; i++) r->turns[i] = (struct tpo_chat_turn){m->turns[i]->role, m->turns[i]->text};
    for (size_t i = 0; i < m->n_boxes; i++) {
        const Tpo__V1__Rect *b = m->boxes[i];
        r->boxes[i][0] = b->x0, r->boxes[i][1] = b->y0, r->boxes[i][2] = b->x1, r->boxes[i][3] = b->y1;
    }
    for (size_t i = 0; i < m->n_frames; i++) r->times[i] = m->frames[i]->time_s;
    r->q.n_turns = (int)m->n_turns;
    r->q.turns = r->turns;
    r->q.n_boxes = (int)m->n_boxes;
    r->q.boxes = (const float(*)[4])r->boxes;
    r->q.n_frames = (int)m->n_frames;
    r->q.frame_times_s = r->times;
    r->q.task = m->task[0] != '\0' ? m->task : "auto";
    r->q.media_kind = m->media_kind[0] != '\0' ? m->media_kind : NULL;
    r->q.max_new_tokens = m->max_new_tokens > INT_MAX ? INT_MAX : (int)m->max_new_tokens;
    r->q.seed = m->seed == 0 ? 1 : m->seed;
    r->q.temperature = m->temperature;
    r->q.top_p = m->top_p;
    return request_visual(r, &job->payload, c, err);
}

static int run(void *self, struct tpo_job *job)
{
    struct service *s = self;
    /* Before each step a job that waits comes here: its prompt must not be read anew each time. */
    if (!tpo_router_room(s->router, job->wants)) return TPO_UNAVAILABLE;
    struct request r = {0};
    struct tpo_error err = {0};
    struct active *a = calloc(1, sizeof(*a));
    int rc = a != NULL ? request_fill(&r, job, &s->config, &err) : tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a request");
    if (rc == TPO_OK)
        rc = tpo_serving_take(&s->serving, job, ((const Tpo__V1__GenerateRequest *)job->message)->version, &a->version, &err);
    if (rc == TPO_OK) {
        a->service = s;
        a->job = job;
        r.q.weights = a->version->weights;
        struct tpo_router_events on = {a, on_text, on_task, on_done, on_first};
        rc = tpo_router_submit(s->router, &r.q, &on, &a->handle, &err);
        tpo_metrics_add(tpo_host_metrics(s->host), "tpo_prompts_read_total", "", 1);
    }
    request_free(&r);
    if (rc == TPO_OK) {
        enter(a);
        return TPO_OK;
    }
    if (a != NULL) tpo_versions_give(tpo_host_versions(s->host), a->version);
    free(a);
    if (rc == TPO_UNAVAILABLE) { /* the pool is full: the job waits */
        job->wants = tpo_router_wanted(s->router);
        return rc;
    }
    tpo_job_finish(job, &err);
    return TPO_OK;
}

static bool waited_for(const struct active *a)
{
    return !tpo_call_cancelled(a->job->call) && tpo_call_left_ms(a->job->call) > 0;
}

static int step(void *self)
{
    struct service *s = self;
    for (const struct active *a = s->actives; a != NULL; a = a->next)
        if (!waited_for(a)) tpo_router_cancel(s->router, a->handle);
    return tpo_router_step(s->router);
}

/* --- the rest ------------------------------------------------------------------------------------------------------------------------------ */

static int ignore_text(void *owner, const char *text, size_t length)
{
    (void)owner, (void)text, (void)length;
    return 0;
}

static int ignore_task(void *owner, const char *task, int index, int text_offset, const float *e, int D)
{
    (void)owner, (void)task, (void)index, (void)text_offset, (void)e, (void)D;
    return 0;
}

static void keep_status(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                        const struct tpo_error *err)
{
    (void)finish_reason, (void)prompt_tokens, (void)completion_tokens;
    struct tpo_error *kept = owner;
    if (err != NULL) *kept = *err;
    kept->code = status;
}

static int warm_up(void *self, struct tpo_error *err)
{
    struct service *s = self;
    static const struct tpo_chat_turn turn = {"user", "hello"};
    struct tpo_router_request q = {.n_turns = 1, .turns = &turn, .task = "none", .max_new_tokens = 2, .seed = 1, .top_p = 1.0f};
    struct tpo_error ended = {0};
    struct tpo_router_events on = {&ended, ignore_text, ignore_task, keep_status, NULL};
    uint64_t handle;
    int rc = tpo_router_submit(s->router, &q, &on, &handle, err);
    while (rc == TPO_OK && tpo_router_step(s->router) > 0) continue;
    if (rc == TPO_OK && ended.code != TPO_OK) {
        if (err != NULL) *err = ended;
        rc = ended.code;
    }
    return rc;
}

static void declare(struct tpo_params *schema, const struct tpo_config *c)
{
    tpo_router_schema(schema, c, 0);
}

static int check(void *self, const char *dir)
{
    (void)self;
    return tpo_check_folder("router", declare, dir);
}

const struct tpo_host_service *tpo_router_service(void)
{
    static const struct tpo_setting settings[] = {
        {"kv-bytes", TPO_SET_BYTES, &set.kv_bytes, "0", .min = 0, .max = 1e12,
         .help = "the pool of keys and values all sequences share; a request reserves its prompt and max_new_tokens in it; 0: "
                 "8192 tokens of this model, 64M at least"},
        {"sequences", TPO_SET_INT, &set.sequences, "64", .min = 1, .max = 4096,
         .help = "answers in flight at once; others wait in the queue"},
        {"prefill-tokens", TPO_SET_INT, &set.prefill_tokens, "512", .min = 1, .max = 65536,
         .help = "prompt tokens one step takes at most, so that long prompts don't hold up answers that stream"},
        {"merge-lora", TPO_SET_BOOL, &set.merge_lora, "yes", .help = "add the adapters to the weights once, at start"},
    };
    static const struct tpo_host_method methods[] = {
        {"/tpo.v1.Router/Generate", &tpo__v1__generate_request__descriptor, true, run},
    };
    static const struct tpo_host_service service = {
        .stage = "router",
        .about =
            "The language model of the mesh: text and visual tokens in, text out, and a task call where it emits a task token.",
        .examples = "tpo-router --model models/small\ntpo-router --model models/small --kv-bytes 1G --sequences 256\ntpo-router "
                    "--check models/small",
        .default_port = 8440,
        .settings = settings,
        .n_settings = sizeof(settings) / sizeof(settings[0]),
        .methods = methods,
        .n_methods = 1,
        .self = &the_service,
        .open = open_model,
        .open_learner = open_learner,
        .publish = publish,
        .warm_up = warm_up,
        .step = step,
        .close = close_model,
        .check = check,
    };
    return &service;
}
