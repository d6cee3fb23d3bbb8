/* This file owns a process's metrics. */
#include "common/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES_MAX 4096
#define BUCKETS     15

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct sample {
    char *name, *labels;
    enum kind kind;
    double value;      /* histogram: the sum */
    uint64_t *buckets; /* BUCKETS + 1, the last one +Inf; not cumulative */
    bool summed;       /* histogram: only +Inf is known */
};

struct help {
    const char *name, *text;
};

struct tpo_metrics {
    pthread_mutex_t lock;
    struct sample *samples; /* sorted by name, then labels: the order the text needs */
    size_t n, capacity;
    struct help helps[64];
    size_t n_helps;
};

int tpo_metrics_open(struct tpo_metrics **out, struct tpo_error *err)
{
    struct tpo_metrics *m = calloc(1, sizeof(*m));
    if (m == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    pthread_mutex_init(&m->lock, NULL);
    *out = m;
    return TPO_OK;
}

static void sample_free(struct sample *s)
{
    free(s->name);
    free(s->labels);
    free(s->buckets);
}

void tpo_metrics_close(struct tpo_metrics *m)
{
    if (m == NULL) return;
    for (size_t i = 0; i < m->n; i++) sample_free(&m->samples[i]);
    free(m->samples);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

const char *tpo_metrics_labels(char *out, size_t size, ...)
{
    struct tpo_text t = {0};
    va_list args;
    va_start(args, size);
    for (const char *key; (key = va_arg(args, const char *)) != NULL;) {
        tpo_text_printf(&t, "%s%s=\"", t.size > 0 ? "," : "", key);
        for (const char *v = va_arg(args, const char *); *v != '\0'; v++) {
            if (*v == '\n')
                tpo_text_puts(&t, "\\n");
            else
                tpo_text_printf(&t, *v == '"' || *v == '\\' ? "\\%c" : "%c", *v);
        }
        tpo_text_puts(&t, "\"");
    }
    va_end(args);
    /* Half a label would break the whole text; none is merely less. */
    snprintf(out, size, "%s", t.data != NULL && t.size < size ? t.data : "");
    tpo_text_free(&t);
    return out;
}

void tpo_metrics_help(struct tpo_metrics *m, const char *name, const char *help)
{
    pthread_mutex_lock(&m->lock);
    if (m->n_helps < sizeof(m->helps) / sizeof(m->helps[0])) m->helps[m->n_helps++] = (struct help){name, help};
    pthread_mutex_unlock(&m->lock);
}

/* Index of the first sample not before (name, labels). */
static size_t lower_bound(const struct tpo_metrics *m, const char *name, const char *labels, bool *found)
{
    size_t low = 0, high = m->n;
    *found = false;
    while (low < high) {
        size_t mid = (low + high) / 2;
        int order = strcmp(m->samples[mid].name, name);
        if (order == 0) order = strcmp(m->samples[mid].labels, labels);
        if (order == 0) *found = true;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Call with the lock held. NULL when there is no room or the name belongs to another kind. */
static struct sample *sample_get(struct tpo_metrics *m, const char *name, const char *labels, enum kind kind)
{
    bool found;
    size_t at = lower_bound(m, name, labels, &found);
    if (found) return m->samples[at].kind == kind ? &m->samples[at] : NULL;
    if (m->n >= SAMPLES_MAX) return NULL;
    if (m->n == m->capacity) {
        size_t capacity = m->capacity == 0 ? 32 : 2 * m->capacity;
        struct sample *samples = realloc(m->samples, capacity * sizeof(*samples));
        if (samples == NULL) return NULL;
        m->samples = samples;
        m->capacity = capacity;
    }
    struct sample s = {.name = strdup(name), .labels = strdup(labels), .kind = kind};
    if (kind == HISTOGRAM) s.buckets = calloc(BUCKETS + 1, sizeof(*s.buckets));
    if (s.name == NULL || s.labels == NULL || (kind == HISTOGRAM && s.buckets == NULL)) {
        sample_free(&s);
        return NULL;
    }
    memmove(&m->samples[at + 1], &m->samples[at], (m->n - at) * sizeof(*m->samples));
    m->samples[at] = s;
    m->n++;
    return &m->samples[at];
}

static void change(struct tpo_metrics *m, const char *name, const char *labels, enum kind kind, double value, bool absolute)
{
    pthread_mutex_lock(&m->lock);
    struct sample *s = sample_get(m, name, labels, kind);
    if (s != NULL) s->value = absolute ? value : s->value + value;
    pthread_mutex_unlock(&m->lock);
}

void tpo_metrics_add(struct tpo_metrics *m, const char *name, const char *labels, double value)
{
    change(m, name, labels, COUNTER, value, false);
}

void tpo_metrics_set(struct tpo_metrics *m, const char *name, const char *labels, double value)
{
    change(m, name, labels, GAUGE, value, true);
}

void tpo_metrics_total(struct tpo_metrics *m, const char *name, const char *labels, double value)
{
    change(m, name, labels, COUNTER, value, true);
}

static double bucket_limit(int i)
{
    return i == 0 ? 0.005 : ldexp(0.005, i);
}

void tpo_metrics_observe(struct tpo_metrics *m, const char *name, const char *labels, double seconds)
{
    int i = 0;
    while (i < BUCKETS && seconds > bucket_limit(i)) i++;
    pthread_mutex_lock(&m->lock);
    struct sample *s = sample_get(m, name, labels, HISTOGRAM);
    if (s != NULL) {
        s->buckets[i]++;
        s->value += seconds;
    }
    pthread_mutex_unlock(&m->lock);
}

void tpo_metrics_summed(struct tpo_metrics *m, const char *name, const char *labels, double seconds, uint64_t count)
{
    pthread_mutex_lock(&m->lock);
    struct sample *s = sample_get(m, name, labels, HISTOGRAM);
    if (s != NULL) {
        s->summed = true;
        s->buckets[BUCKETS] = count;
        s->value = seconds;
    }
    pthread_mutex_unlock(&m->lock);
}

double tpo_metrics_get(struct tpo_metrics *m, const char *name, const char *labels)
{
    pthread_mutex_lock(&m->lock);
    bool found;
    size_t at = lower_bound(m, name, labels, &found);
    double value = found ? m->samples[at].value : 0;
    pthread_mutex_unlock(&m->lock);
    return value;
}

static uint64_t histogram_count(const struct sample *s)
{
    uint64_t n = 0;
    for (int i = 0; i <= BUCKETS; i++) n += s->buckets[i];
    return n;
}

void tpo_metrics_each(struct tpo_metrics *m,
                      void (*on_sample)(void *owner, const char *name, const char *labels, double value, bool gauge), void *owner)
{
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < m->n; i++) {
        const struct sample *s = &m->samples[i];
        if (s->kind != HISTOGRAM) {
            on_sample(owner, s->name, s->labels, s->value, s->kind == GAUGE);
            continue;
        }
        char name[128];
        snprintf(name, sizeof(name), "%s_sum", s->name);
        on_sample(owner, name, s->labels, s->value, false);
        snprintf(name, sizeof(name), "%s_count", s->name);
        on_sample(owner, name, s->labels, (double)histogram_count(s), false);
    }
    pthread_mutex_unlock(&m->lock);
}

static void render_histogram(struct tpo_text *out, const struct sample *s)
{
    const char *comma = s->labels[0] != '\0' ? "," : "";
    uint64_t sum = 0;
    for (int i = 0; i < BUCKETS; i++) {
        sum += s->buckets[i];
        if (s->summed) continue;
        tpo_text_printf(out, "%s_bucket{%s%sle=\"%.6g\"} %llu\n", s->name, s->labels, comma, bucket_limit(i),
                        (unsigned long long)sum);
    }
    sum += s->buckets[BUCKETS];
    tpo_text_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", s->name, s->labels, comma, (unsigned long long)sum);
    const char *open = s->labels[0] != '\0' ? "{" : "", *close = s->labels[0] != '\0' ? "}" : "";
    tpo_text_printf(out, "%s_sum%s%s%s %.9g\n", s->name, open, s->labels, close, s->value);
    tpo_text_printf(out, "%s_count%s%s%s %llu\n", s->name, open, s->labels, close, (unsigned long long)sum);
}

void tpo_metrics_render(struct tpo_metrics *m, struct tpo_text *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < m->n; i++) {
        const struct sample *s = &m->samples[i];
        if (i == 0 || strcmp(s->name, m->samples[i - 1].name) != 0) {
            for (size_t h = 0; h < m->n_helps; h++)
                if (strcmp(m->helps[h].name, s->name) == 0) tpo_text_printf(out, "# HELP %s %s\n", s->name, m->helps[h].text);
            tpo_text_printf(out, "# TYPE %s %s\n", s->name, kinds[s->kind]);
        }
        if (s->kind == HISTOGRAM)
            render_histogram(out, s);
        else if (s->labels[0] != '\0')
            tpo_text_printf(out, "%s{%s} %.15g\n", s->name, s->labels, s->value);
        else
            tpo_text_printf(out, "%s %.15g\n", s->name, s->value);
    }
    pthread_mutex_unlock(&m->lock);
}

void tpo_metrics_merge(struct tpo_metrics *to, struct tpo_metrics *from)
{
    pthread_mutex_lock(&to->lock);
    pthread_mutex_lock(&from->lock);
    for (size_t i = 0; i < from->n; i++) {
        const struct sample *f = &from->samples[i];
        struct sample *t = sample_get(to, f->name, f->labels, f->kind);
        if (t == NULL) continue;
        t->value += f->value;
        t->summed |= f->summed;
        for (int b = 0; f->kind == HISTOGRAM && b <= BUCKETS; b++) t->buckets[b] += f->buckets[b];
    }
    for (size_t i = 0; i < from->n_helps && to->n_helps < sizeof(to->helps) / sizeof(to->helps[0]); i++)
        to->helps[to->n_helps++] = from->helps[i];
    pthread_mutex_unlock(&from->lock);
    pthread_mutex_unlock(&to->lock);
}
