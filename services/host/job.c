/* This file owns a job's life: made on the completion-queue thread, queued, ended by whoever holds it. */
#include <stdlib.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/host/host_private.h"

int tpo_host_submit(struct tpo_host *h, struct tpo_job *job, struct tpo_error *err)
{
    if (h->state == TPO_HOST_LOADING) {
        tpo_fail(err, TPO_UNAVAILABLE, "loading", "the model is being loaded");
        if (err != NULL) err->retry_ms = 500;
        return TPO_UNAVAILABLE;
    }
    if (h->state != TPO_HOST_READY) return tpo_fail(err, TPO_UNAVAILABLE, "draining", "this process is shutting down");
    job->host = h;
    job->queued_us = tpo_now_us();
    int rc = job->reserved ? tpo_queue_put(h->queue, job) : tpo_queue_put_below(h->queue, job, (int)h->settings.queue);
    if (rc == TPO_OK) return TPO_OK;
    if (rc == TPO_UNAVAILABLE) return tpo_fail(err, rc, "draining", "this process is shutting down");
    tpo_metrics_add(h->metrics, "tpo_admission_rejected_total", "reason=\"queue_full\"", 1);
    tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "queue_full", "%d requests are waiting already", tpo_queue_length(h->queue));
    if (err != NULL) err->retry_ms = 100;
    return TPO_RESOURCE_EXHAUSTED;
}

double tpo_job_run_ms(const struct tpo_job *job)
{
    return (double)(tpo_now_us() - job->run_us) * 1e-3;
}

static void measure(const struct tpo_job *job, int code)
{
    struct tpo_metrics *m = job->host->metrics;
    char labels[64];
    tpo_metrics_labels(labels, sizeof(labels), "code", tpo_status_name(code), NULL);
    tpo_metrics_add(m, "tpo_requests_total", labels, 1);
    tpo_metrics_observe(m, "tpo_queue_duration_seconds", "", job->queue_ms * 1e-3);
    tpo_metrics_observe(m, "tpo_request_duration_seconds", "", (double)(tpo_now_us() - job->queued_us) * 1e-6);
}

void tpo_job_finish(struct tpo_job *job, const struct tpo_error *err)
{
    int code = err != NULL ? err->code : TPO_OK;
    measure(job, code);
    if (job->call != NULL) {
        double run_ms = job->run_us != 0 ? tpo_job_run_ms(job) : 0;
        tpo_log(code == TPO_OK ? TPO_LOG_INFO : TPO_LOG_WARN, "request", "req=%s code=%s%s%s queue_ms=%.3f run_ms=%.3f",
                tpo_call_request_id(job->call), tpo_status_name(code), code != TPO_OK ? " reason=" : "",
                code != TPO_OK ? err->reason : "", job->queue_ms, run_ms);
        tpo_call_finish(job->call, code, err);
    }
    if (!job->owned) return;
    if (job->message != NULL) protobuf_c_message_free_unpacked(job->message, NULL);
    tpo_payload_free(&job->payload);
    free(job);
}

void tpo_host_on_message(void *binding, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    const struct tpo_host_binding *b = binding;
    struct tpo_error err;
    struct tpo_job *job = calloc(1, sizeof(*job));
    if (job == NULL) {
        tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a request");
        protobuf_c_message_free_unpacked(message, NULL);
        tpo_payload_free(payload);
        tpo_call_finish(call, err.code, &err);
        return;
    }
    job->run = b->method->run;
    job->call = call;
    job->message = message;
    job->host = b->host;
    job->owned = true;
    job->reserved = b->reserved;
    job->queued_us = tpo_now_us();
    if (payload != NULL) {
        job->payload = *payload;
        *payload = (struct tpo_payload){0};
    }
    if (tpo_host_submit(b->host, job, &err) != TPO_OK) tpo_job_finish(job, &err);
}
