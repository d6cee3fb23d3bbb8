/* This file owns what is told of a request at its end: its stages, counters and log line. */
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/request_private.h"

void tpo_request_stages(struct tpo_request *r, const struct tpo_error *err)
{
    const char *failed = err != NULL ? err->stage : "";
    double begun_ms = r->begun_ms > 0 ? r->begun_ms : tpo_now_ms();
    tpo_answer_stage(&r->answer,
                     &(struct tpo_stage_result){.name = "gateway", .queue_ms = begun_ms - r->started_ms, .run_ms = r->put_ms});
    const Tpo__V1__EncodeReply *e = r->encoded;
    if (e != NULL)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){"encoder", r->encoder_instance, e->cache, e->digest, e->queue_ms,
                                                                e->run_ms, e->version, NULL,
                                                                r->encode_told_ms - r->encode_sent_ms - e->queue_ms - e->run_ms});
    else if (strcmp(failed, "encoder") == 0)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){.name = "encoder", .instance = r->encoder_instance, .err = err});
    const Tpo__V1__GenerateDone *d = r->generated;
    if (d != NULL)
        tpo_answer_stage(&r->answer,
                         &(struct tpo_stage_result){"router", r->router_instance, "", d->digest, d->queue_ms, d->run_ms, d->version,
                                                    NULL, r->generate_told_ms - r->generate_sent_ms - d->queue_ms - d->run_ms});
    else if (strcmp(failed, "router") == 0)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){.name = "router", .instance = r->router_instance, .err = err});
    for (uint32_t i = 0; i < r->n_calls; i++) {
        const struct head_call *c = r->calls[i];
        const Tpo__V1__HeadDone *h = c->end;
        struct tpo_stage_result s = {.name = c->task, .instance = c->instance, .err = c->err.code != TPO_OK ? &c->err : NULL};
        if (h != NULL)
            s = (struct tpo_stage_result){c->task,    c->instance, h->cache,
                                          h->digest,  h->queue_ms, h->run_ms,
                                          h->version, s.err,       c->told_ms - c->sent_ms - h->queue_ms - h->run_ms};
        if (h != NULL || s.err != NULL) tpo_answer_stage(&r->answer, &s);
    }
}

void tpo_request_count(struct tpo_request *r, int code)
{
    char labels[64];
    double total_ms = tpo_now_ms() - r->started_ms;
    if (!r->accepted) {
        tpo_metrics_labels(labels, sizeof(labels), "reason", r->early.reason[0] != '\0' ? r->early.reason : "cancelled", NULL);
        tpo_metrics_add(r->g->metrics, "tpo_admission_rejected_total", labels, 1);
    } else {
        tpo_metrics_labels(labels, sizeof(labels), "stage", "gateway", "code", tpo_status_name(code), NULL);
        tpo_metrics_add(r->g->metrics, "tpo_requests_total", labels, 1);
        tpo_metrics_observe(r->g->metrics, "tpo_request_duration_seconds", "stage=\"gateway\"", total_ms * 1e-3);
    }
    tpo_log(TPO_LOG_INFO, "request", "req=%s code=%s ms=%.1f media=%.12s calls=%u", r->id, tpo_status_name(code), total_ms,
            r->media_id, r->n_calls);
}
