/* This file owns the event file of a stage. */
#include "trainer/steps/events.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "tfevents.pb-c.h"

#define SCALARS_MAX (TPO_LOSSES_MAX + TPO_GROUPS_MAX + TPO_PARTS + TPO_PHASES + 8)
#define TAG_MAX     64

struct tpo_events {
    int fd;    /* -1: the file could not be made */
    off_t end; /* of the last whole record */
    int next;  /* the step that needs no mark */
    uint64_t lost;
    char path[4096];
};

/* zlib's crc32 has another polynomial, and no library we link has this one; a table of 16 is quick enough for a kilobyte a step. */
uint32_t tpo_crc32c(const void *data, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                       0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    const uint8_t *at = data;
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc = table[(crc ^ at[i]) & 15] ^ (crc >> 4);
        crc = table[(crc ^ (uint32_t)(at[i] >> 4)) & 15] ^ (crc >> 4);
    }
    return ~crc;
}

static void little_put(uint8_t *out, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(x >> (8 * i));
}

static uint32_t crc_masked(const void *data, size_t n)
{
    const uint32_t crc = tpo_crc32c(data, n);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

static void record_lose(struct tpo_events *e, const char *why)
{
    char path[512], quoted[128];
    if (e->lost++ == 0)
        tpo_log(TPO_LOG_WARN, "events_lost", "file=%s why=%s", tpo_log_quote(path, sizeof(path), e->path),
                tpo_log_quote(quoted, sizeof(quoted), why));
}

/* A record that did not fit is cut off again: a torn one would hide everything after it from a reader. */
static void bytes_append(struct tpo_events *e, const uint8_t *bytes, size_t n)
{
    size_t done = 0;
    while (done < n) {
        const ssize_t put = e->fd < 0 ? -1 : write(e->fd, bytes + done, n - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) break;
        done += (size_t)put;
    }
    if (done == n) {
        e->end += (off_t)n;
        return;
    }
    record_lose(e, strerror(errno));
    if (e->fd >= 0 && (ftruncate(e->fd, e->end) != 0 || lseek(e->fd, e->end, SEEK_SET) < 0)) {
        close(e->fd);
        e->fd = -1;
    }
}

static void event_append(struct tpo_events *e, Tfevents__Event *event)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    event->wall_time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    const size_t n = tfevents__event__get_packed_size(event);
    uint8_t *record = malloc(n + 16);
    if (record == NULL) {
        record_lose(e, "no memory");
        return;
    }
    little_put(record, n, 8);
    little_put(record + 8, crc_masked(record, 8), 4);
    tfevents__event__pack(event, record + 12);
    little_put(record + 12 + n, crc_masked(record + 12, n), 4);
    bytes_append(e, record, n + 16);
    free(record);
}

struct tpo_events *tpo_events_open(const char *dir)
{
    /* TensorBoard finds a file by "tfevents" in its name; the rest keeps two runs of one second apart. */
    static atomic_int count;
    struct tpo_events *e = calloc(1, sizeof(*e));
    char host[65] = "";
    if (e == NULL) return NULL;
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0') snprintf(host, sizeof(host), "localhost");
    snprintf(e->path, sizeof(e->path), "%s/events.out.tfevents.%010lld.%s.%ld.%d", dir, (long long)time(NULL), host, (long)getpid(),
             atomic_fetch_add(&count, 1));
    e->fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    Tfevents__Event event = TFEVENTS__EVENT__INIT;
    event.what_case = TFEVENTS__EVENT__WHAT_FILE_VERSION;
    event.file_version = "brain.Event:2";
    event_append(e, &event);
    return e;
}

void tpo_events_close(struct tpo_events *e)
{
    if (e == NULL) return;
    if (e->fd >= 0) close(e->fd);
    free(e);
}

/* --- the scalars of a step ----------------------------------------------------------------------------------------------------------- */

struct scalars {
    Tfevents__Summary__Value values[SCALARS_MAX], *pointers[SCALARS_MAX];
    char tags[SCALARS_MAX][TAG_MAX];
    size_t n;
};

static void scalar_add(struct scalars *s, const char *folder, const char *name, double value)
{
    if (s->n == SCALARS_MAX) return;
    Tfevents__Summary__Value *v = &s->values[s->n];
    tfevents__summary__value__init(v);
    snprintf(s->tags[s->n], TAG_MAX, "%s%s", folder, name);
    v->tag = s->tags[s->n];
    v->value_case = TFEVENTS__SUMMARY__VALUE__VALUE_SIMPLE_VALUE;
    v->simple_value = (float)value;
    s->pointers[s->n++] = v;
}

static void scalars_of(struct scalars *v, const struct tpo_recipe_stage *s, const struct tpo_step_report *r, uint64_t aborted)
{
    static const char *const parts[TPO_PARTS] = {"encoder", "router", "region"};
    v->n = 0;
    for (int i = 0; i < r->n_losses; i++) scalar_add(v, "loss/", r->losses[i].name, r->losses[i].value);
    for (int g = 0; g < s->plan.n_groups; g++) {
        char number[16];
        snprintf(number, sizeof(number), "%d", g);
        scalar_add(v, "rate/", s->groups[g].name[0] != '\0' ? s->groups[g].name : number, (double)r->rates[g]);
    }
    scalar_add(v, "norm/", "all", r->norm);
    for (int p = 0; p < TPO_PARTS; p++) scalar_add(v, "norm/", parts[p], r->norms[p]);
    scalar_add(v, "clip", "", (double)r->clip);
    scalar_add(v, "aborted", "", (double)aborted);
    for (int i = 0; i < TPO_PHASES; i++) scalar_add(v, "time/", tpo_phase_names[i], r->timing.seconds[i]);
    scalar_add(v, "time/", "bubble", r->timing.bubble_s);
    if (r->reads) scalar_add(v, "data/", "skipped", (double)r->skipped);
    scalar_add(v, "speed/", "samples_per_s", r->timing.wall_s > 0 ? r->samples / r->timing.wall_s : 0);
}

/* A run goes on behind its last checkpoint: without the mark a reader would draw the steps that were lost beside those done again. */
static void start_append(struct tpo_events *e, int step)
{
    Tfevents__Event event = TFEVENTS__EVENT__INIT;
    Tfevents__SessionLog log = TFEVENTS__SESSION_LOG__INIT;
    log.status = TFEVENTS__SESSION_LOG__SESSION_STATUS__START;
    event.step = step;
    event.what_case = TFEVENTS__EVENT__WHAT_SESSION_LOG;
    event.session_log = &log;
    event_append(e, &event);
}

void tpo_events_step(struct tpo_events *e, const struct tpo_recipe_stage *s, int step, const struct tpo_step_report *r,
                     uint64_t aborted)
{
    if (e == NULL) return;
    const uint64_t lost = e->lost;
    if (step != e->next) start_append(e, step);
    if (e->lost == lost) e->next = step + 1;
    struct scalars *v = malloc(sizeof(*v));
    if (v == NULL) {
        record_lose(e, "no memory");
        return;
    }
    Tfevents__Event event = TFEVENTS__EVENT__INIT;
    Tfevents__Summary summary = TFEVENTS__SUMMARY__INIT;
    scalars_of(v, s, r, aborted);
    summary.n_value = v->n;
    summary.value = v->pointers;
    event.step = step;
    event.what_case = TFEVENTS__EVENT__WHAT_SUMMARY;
    event.summary = &summary;
    event_append(e, &event);
    free(v);
}
