/* metrics.h -- counters, gauges and histograms of one process, and their Prometheus text (exposition format 0.0.4).
 *
 * A sample is named by its metric and its labels, a text made by tpo_metrics_labels. The first call makes it. Names follow
 * Prometheus: prefix tpo_, base units, `_total` on counters. There is room for 4096 samples; more are dropped, since labels that
 * grow without bound are a fault of ours and may not take the process down. Any thread may call. */
#ifndef TPO_COMMON_METRICS_H
#define TPO_COMMON_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "common/text.h"

struct tpo_metrics;

int tpo_metrics_open(struct tpo_metrics **out, struct tpo_error *err);
void tpo_metrics_close(struct tpo_metrics *m);

/* `stage="encoder",code="OK"` from pairs of key and value, NULL after the last; values are escaped. Returns out. */
const char *tpo_metrics_labels(char *out, size_t size, ...) __attribute__((sentinel));

/* The sentence after # HELP; `name` and `help` are borrowed for the life of m. Optional. */
void tpo_metrics_help(struct tpo_metrics *m, const char *name, const char *help);
void tpo_metrics_add(struct tpo_metrics *m, const char *name, const char *labels, double value); /* counter; labels may be "" */
void tpo_metrics_set(struct tpo_metrics *m, const char *name, const char *labels, double value); /* gauge */
/* A counter whose running total someone else keeps. */
void tpo_metrics_total(struct tpo_metrics *m, const char *name, const char *labels, double value);
/* A histogram in seconds over the buckets .005, .01, .02, .04, ... 81.92. */
void tpo_metrics_observe(struct tpo_metrics *m, const char *name, const char *labels, double seconds);
/* A histogram whose running sum and count someone else keeps, and the buckets not: all of it is in +Inf. */
void tpo_metrics_summed(struct tpo_metrics *m, const char *name, const char *labels, double seconds, uint64_t count);
double tpo_metrics_get(struct tpo_metrics *m, const char *name, const char *labels); /* 0 where there is none */

/* Every sample but the histograms' buckets, for a Status reply: name, labels as above, value. */
void tpo_metrics_each(struct tpo_metrics *m,
                      void (*on_sample)(void *owner, const char *name, const char *labels, double value, bool gauge), void *owner);
/* Adds every sample of `from` to those of `to`, help included; `from` stays as it is. Not from two threads in both directions. */
void tpo_metrics_merge(struct tpo_metrics *to, struct tpo_metrics *from);
void tpo_metrics_render(struct tpo_metrics *m, struct tpo_text *out);

#endif
