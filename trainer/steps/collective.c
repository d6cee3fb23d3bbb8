/* This file owns the adding of replicas' gradients in the trainer. */
#include "trainer/steps/collective.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/steps/crew.h"

/* One tensor's sums, one per replica. */
struct sum {
    char *name;
    int n_dims;
    int64_t shape[TPO_DIMS_MAX], size;
    float *of[TPO_REPLICAS_MAX];
    int64_t got[TPO_REPLICAS_MAX]; /* elements of this step */
    bool told;                     /* by all replicas; a tensor of an earlier stage is not */
};

struct job {
    struct through_trainer *owner;
    struct tpo_crew *crew;
    int part, replica;
    struct tpo_key key;
    uint32_t skipped;
};

struct service {
    pthread_mutex_t lock; /* of the list; what a replica's slots hold is its worker's */
    struct sum *sums;
    int n, capacity;
    struct job jobs[TPO_REPLICAS_MAX];
};

struct through_trainer {
    struct tpo_collective base;
    struct service services[TPO_PARTS];
};

void tpo_sums_fold(float *const *sums, int n, int64_t count)
{
    for (int stride = 1; stride < n; stride *= 2)
        for (int r = 0; r + stride < n; r += 2 * stride)
            for (int64_t i = 0; i < count; i++) sums[r][i] += sums[r + stride][i];
}

/* --- gather -------------------------------------------------------------------------------------------------------------------------- */

static bool same_shape(const struct sum *s, const struct tpo_chunk *x)
{
    bool same = s->n_dims == x->n_dims;
    for (int k = 0; k < s->n_dims && same; k++) same = s->shape[k] == x->shape[k];
    return same;
}

static int sum_add(struct service *s, const struct tpo_chunk *x)
{
    if (s->n == s->capacity) {
        const int capacity = s->capacity * 2 + 64;
        struct sum *grown = realloc(s->sums, sizeof(*grown) * (size_t)capacity);
        if (grown == NULL) return TPO_ENOMEM;
        s->sums = grown;
        s->capacity = capacity;
    }
    struct sum *own = &s->sums[s->n];
    *own = (struct sum){.name = strdup(x->name), .n_dims = x->n_dims, .size = 1};
    if (own->name == NULL) return TPO_ENOMEM;
    for (int k = 0; k < x->n_dims; k++) own->size *= own->shape[k] = x->shape[k];
    s->n++;
    return TPO_OK;
}

/* Where a replica's sum of that tensor lies; NULL when it does not fit what another replica told, or for lack of memory. */
static float *place_of(struct service *s, int replica, const struct tpo_chunk *x)
{
    float *place = NULL;
    pthread_mutex_lock(&s->lock);
    int i = 0;
    while (i < s->n && strcmp(s->sums[i].name, x->name) != 0) i++;
    if (i < s->n || sum_add(s, x) == TPO_OK) {
        struct sum *own = &s->sums[i];
        if (own->of[replica] == NULL) own->of[replica] = malloc(sizeof(float) * (size_t)own->size);
        if (same_shape(own, x) && x->offset >= 0 && x->count >= 0 && x->offset <= own->size - x->count) place = own->of[replica];
        if (place != NULL) own->got[replica] += x->count;
    }
    pthread_mutex_unlock(&s->lock);
    return place;
}

static int sink(void *arg, const struct tpo_chunk *x)
{
    struct job *j = arg;
    if (x == NULL) return TPO_OK;
    float *place = place_of(&j->owner->services[j->part], j->replica, x);
    if (place == NULL) return TPO_INTERNAL;
    memcpy(place + x->offset, x->data, sizeof(float) * (size_t)x->count);
    return TPO_OK;
}

static int gather(void *arg, struct tpo_error *err)
{
    struct job *j = arg;
    struct tpo_learner *l = &j->crew->replicas[j->part][j->replica].learner;
    return l->gather(l->self, &j->key, j->skipped, sink, j, err);
}

static void start(struct tpo_collective *self, struct tpo_crew *t, int part, int replica, const struct tpo_key *key,
                  uint32_t skipped)
{
    struct through_trainer *c = (struct through_trainer *)self;
    struct job *j = &c->services[part].jobs[replica];
    *j = (struct job){c, t, part, replica, *key, skipped};
    tpo_worker_give(t->replicas[part][replica].worker, gather, j);
}

/* --- scatter ------------------------------------------------------------------------------------------------------------------------- */

static int scatter(void *arg, struct tpo_error *err)
{
    struct job *j = arg;
    const struct service *s = &j->owner->services[j->part];
    struct tpo_learner *l = &j->crew->replicas[j->part][j->replica].learner;
    for (int i = 0; i < s->n; i++) {
        const struct sum *own = &s->sums[i];
        struct tpo_chunk x = {.name = own->name, .part = "gradient", .n_dims = own->n_dims};
        if (!own->told) continue;
        memcpy(x.shape, own->shape, sizeof(x.shape));
        for (; x.offset < own->size; x.offset += x.count) {
            x.count = own->size - x.offset < TPO_CHUNK_ELEMENTS ? own->size - x.offset : TPO_CHUNK_ELEMENTS;
            x.data = own->of[0] + x.offset;
            int rc = l->scatter(l->self, &j->key, &x, err);
            if (rc != TPO_OK) return rc;
        }
    }
    return l->scatter(l->self, &j->key, NULL, err);
}

static int all_wait(struct tpo_crew *t, int part, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int r = 0; r < t->options.n_replicas[part]; r++) {
        const int one = tpo_worker_wait(t->replicas[part][r].worker, rc == TPO_OK ? err : NULL);
        if (rc == TPO_OK) rc = one;
    }
    return rc;
}

static void forget(struct service *s)
{
    for (int i = 0; i < s->n; i++) memset(s->sums[i].got, 0, sizeof(s->sums[i].got));
}

/* Adds what came, tensor by tensor; every replica must have told every element. */
static int total(struct service *s, int n, const char *name, struct tpo_error *err)
{
    for (int i = 0; i < s->n; i++) {
        struct sum *own = &s->sums[i];
        own->told = false;
        for (int r = 0; r < n; r++) own->told |= own->got[r] != 0;
        if (!own->told) continue;
        for (int r = 0; r < n; r++)
            if (own->got[r] != own->size)
                return tpo_fail(err, TPO_INTERNAL, "gather", "%s, replica %d: %lld of %lld elements of %.96s came", name, r,
                                (long long)own->got[r], (long long)own->size, own->name);
        tpo_sums_fold(own->of, n, own->size);
    }
    return TPO_OK;
}

static int finish(struct tpo_collective *self, struct tpo_crew *t, int part, const struct tpo_key *key, struct tpo_error *err)
{
    struct through_trainer *c = (struct through_trainer *)self;
    struct service *s = &c->services[part];
    const int n = t->options.n_replicas[part];
    (void)key;
    int rc = all_wait(t, part, err);
    if (rc == TPO_OK) rc = total(s, n, tpo_part_names[part], err);
    forget(s);
    if (rc != TPO_OK) return rc;
    for (int r = 0; r < n; r++) tpo_worker_give(t->replicas[part][r].worker, scatter, &s->jobs[r]);
    return all_wait(t, part, err);
}

static void drop(struct tpo_collective *self, struct tpo_crew *t, int part)
{
    all_wait(t, part, NULL);
    forget(&((struct through_trainer *)self)->services[part]);
}

static void service_free(struct service *s)
{
    for (int i = 0; i < s->n; i++) {
        for (int r = 0; r < TPO_REPLICAS_MAX; r++) free(s->sums[i].of[r]);
        free(s->sums[i].name);
    }
    free(s->sums);
    pthread_mutex_destroy(&s->lock);
}

static void collective_close(struct tpo_collective *self)
{
    struct through_trainer *c = (struct through_trainer *)self;
    for (int p = 0; p < TPO_PARTS; p++) service_free(&c->services[p]);
    free(c);
}

int tpo_collective_open_trainer(struct tpo_collective **out, struct tpo_error *err)
{
    struct through_trainer *c = calloc(1, sizeof(*c));
    if (c == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the replicas' sums");
    c->base = (struct tpo_collective){.start = start, .finish = finish, .drop = drop, .close = collective_close};
    for (int p = 0; p < TPO_PARTS; p++) pthread_mutex_init(&c->services[p].lock, NULL);
    *out = &c->base;
    return TPO_OK;
}
