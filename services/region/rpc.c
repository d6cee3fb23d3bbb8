/* This file owns the region head's wire: a TaskCall's tensor to the model, its box to a TaskResult. */
#include "services/region/rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "head.pb-c.h"
#include "kernels/stream.h"
#include "nn/check.h"
#include "services/host/learner.h"
#include "services/host/serving.h"
#include "services/region/region.h"

struct service {
    struct tpo_host *host;
    struct tpo_stream *stream;
    struct tpo_region *region, *trainee; /* trainee: with --train, what learns; serving never reads it */
    struct tpo_serving serving;          /* region's weights, version by version */
    struct tpo_config config;
};

static struct service the_service;

static int open_model(void *self, struct tpo_host *h, struct tpo_error *err)
{
    struct service *s = self;
    const struct tpo_host_settings *set = tpo_host_settings(h);
    char digest[72];
    s->host = h;
    int rc = tpo_config_load(&s->config, set->model, err);
    s->config.keep_bf16 = strcmp(set->dtype, "bf16") == 0;
    if (rc == TPO_OK) rc = tpo_stream_open(&s->stream, set->device, (int)set->threads, err);
    if (rc == TPO_OK && s->config.keep_bf16 && !set->train) tpo_stream_let_round(s->stream);
    if (rc == TPO_OK) rc = tpo_region_open(&s->region, s->stream, &s->config, set->model, 0, err);
    if (rc == TPO_OK) rc = tpo_params_digest(digest, set->model, "region", false, err);
    if (rc == TPO_OK) rc = tpo_serving_open(&s->serving, h, s->stream, tpo_region_model(s->region)->params, digest, err);
    return rc;
}

static int warm_up(void *self, struct tpo_error *err)
{
    struct service *s = self;
    float box[4];
    float *e = calloc((size_t)s->config.llm.hidden_size, sizeof(*e));
    if (e == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a task embedding");
    int rc = tpo_region_run(s->region, box, e, 1, err);
    free(e);
    return rc;
}

static void close_model(void *self)
{
    struct service *s = self;
    tpo_serving_close(&s->serving);
    tpo_region_close(s->region);
    tpo_region_close(s->trainee);
    tpo_stream_close(s->stream);
    s->region = NULL;
    s->stream = NULL;
}

static int open_learner(void *self, struct tpo_learner *out, struct tpo_error *err)
{
    struct service *s = self;
    int rc = tpo_region_open(&s->trainee, s->stream, &s->config, tpo_host_settings(s->host)->model, 0, err);
    if (rc == TPO_OK) rc = tpo_serving_train(&s->serving, tpo_region_model(s->trainee)->params, err);
    return rc == TPO_OK ? tpo_learner_open_direct(out, tpo_region_model(s->trainee), s->stream, err) : rc;
}

static int publish(void *self, uint64_t version, struct tpo_error *err)
{
    struct service *s = self;
    return tpo_serving_publish(&s->serving, version, err);
}

static void send_box(struct tpo_call *c, const float box[4])
{
    Tpo__V1__Rect rect = TPO__V1__RECT__INIT;
    Tpo__V1__TaskResult result = TPO__V1__TASK_RESULT__INIT;
    rect.x0 = box[0], rect.y0 = box[1], rect.x1 = box[2], rect.y1 = box[3];
    result.kind_case = TPO__V1__TASK_RESULT__KIND_BOX;
    result.box = &rect;
    tpo_call_send_last(c, &result.base, NULL); /* `done` comes at once */
}

static void send_done(const struct tpo_version *version, struct tpo_job *job)
{
    Tpo__V1__HeadDone done = TPO__V1__HEAD_DONE__INIT;
    Tpo__V1__TaskResult result = TPO__V1__TASK_RESULT__INIT;
    done.queue_ms = job->queue_ms;
    done.run_ms = tpo_job_run_ms(job);
    done.digest = (char *)version->digest;
    done.version = version->number;
    result.kind_case = TPO__V1__TASK_RESULT__KIND_DONE;
    result.done = &done;
    tpo_call_send_last(job->call, &result.base, NULL);
}

static int run(void *self, struct tpo_job *job)
{
    struct service *s = self;
    struct tpo_error err = {0};
    const struct tpo_payload *e = &job->payload;
    struct tpo_version *version;
    float box[4];
    int rc = tpo_serving_take(&s->serving, job, ((const Tpo__V1__TaskCall *)job->message)->version, &version, &err);
    if (rc == TPO_OK && (e->dtype != TPO_F32 || e->n_dims != 1 || e->shape[0] != s->config.llm.hidden_size))
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "tensor_shape", "e must be f32 [%d]", s->config.llm.hidden_size);
    if (rc == TPO_OK) tpo_serving_use(&s->serving, version);
    if (rc == TPO_OK) rc = tpo_region_run(s->region, box, e->data, 1, &err);
    if (rc == TPO_OK) {
        tpo_metrics_add(tpo_host_metrics(s->host), "tpo_head_runs_total", "", 1);
        send_box(job->call, box);
        send_done(version, job);
    }
    tpo_versions_give(tpo_host_versions(s->host), version);
    tpo_job_finish(job, rc == TPO_OK ? NULL : &err);
    return TPO_OK;
}

static int check(void *self, const char *dir)
{
    (void)self;
    return tpo_check_folder("region", tpo_region_schema, dir);
}

const struct tpo_host_service *tpo_region_service(void)
{
    static const struct tpo_host_method methods[] = {
        {"/tpo.v1.Head/Run", &tpo__v1__task_call__descriptor, true, run},
    };
    static const struct tpo_host_service service = {
        .stage = "region",
        .about = "Turns a task embedding into a box: the region head of the mesh (loc_decoder of the model folder).",
        .examples = "tpo-region --model models/small\ntpo-region --check models/small",
        .default_port = 8450,
        .methods = methods,
        .n_methods = 1,
        .self = &the_service,
        .open = open_model,
        .open_learner = open_learner,
        .publish = publish,
        .warm_up = warm_up,
        .close = close_model,
        .check = check,
    };
    return &service;
}
