/* This file owns the weights that a service answers from. */
#include "services/host/serving.h"

int tpo_serving_open(struct tpo_serving *x, struct tpo_host *h, struct tpo_stream *s, struct tpo_params *params, const char *digest,
                     struct tpo_error *err)
{
    struct tpo_snapshot *first = NULL;
    *x = (struct tpo_serving){.host = h, .stream = s, .params = params};
    tpo_host_set_digest(h, digest);
    int rc = tpo_snapshot_open(&x->loaded, params, digest, err);
    if (rc == TPO_OK) rc = tpo_snapshot_open(&first, params, digest, err);
    if (rc == TPO_OK) rc = tpo_versions_start(tpo_host_versions(h), first, err);
    if (rc != TPO_OK) tpo_snapshot_close(first, s);
    return rc;
}

int tpo_serving_train(struct tpo_serving *x, const struct tpo_params *trainee, struct tpo_error *err)
{
    x->trainee = trainee;
    return tpo_snapshot_open(&x->untrained, trainee, "", err);
}

int tpo_serving_publish(struct tpo_serving *x, uint64_t version, struct tpo_error *err)
{
    struct tpo_versions *v = tpo_host_versions(x->host);
    struct tpo_snapshot *weights = NULL;
    bool held;
    int rc = tpo_versions_room(v, version, &held, x->stream, err);
    if (rc != TPO_OK || held) return rc;
    rc = tpo_snapshot_of_trained(&weights, x->stream, x->params, x->loaded, x->trainee, x->untrained, err);
    if (rc == TPO_OK) rc = tpo_versions_add(v, version, weights, err);
    if (rc != TPO_OK) tpo_snapshot_close(weights, x->stream);
    return rc;
}

void tpo_serving_close(struct tpo_serving *x)
{
    if (x->host == NULL) return;
    tpo_versions_clear(tpo_host_versions(x->host), x->stream);
    tpo_snapshot_close(x->untrained, x->stream);
    tpo_snapshot_close(x->loaded, x->stream);
    *x = (struct tpo_serving){0};
}

int tpo_serving_take(struct tpo_serving *x, const struct tpo_job *job, uint64_t field, struct tpo_version **out,
                     struct tpo_error *err)
{
    return tpo_versions_take(tpo_host_versions(x->host), tpo_call_metadata(job->call, "tpo-version"), field, out, err);
}

void tpo_serving_use(struct tpo_serving *x, const struct tpo_version *version)
{
    tpo_snapshot_use(version->weights, x->params);
}
