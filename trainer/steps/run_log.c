/* This file owns what a run tells about itself. */
#include "trainer/steps/run_log.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/progress.h"
#include "common/utf8.h"
#include "trainer/steps/held.h"

#define STATUS_EVERY_S 1.0

/* Everything that a line tells. */
struct line {
    const char *stage;
    int step, steps;
    int samples, boxes;         /* since the stage began */
    struct tpo_step_report sum; /* losses and timing: sums; norm, norms, clip, rate, rates: of the last step */
    int n_losses[TPO_LOSSES_MAX], n_steps;
    double steps_per_s, eta_s;
    uint64_t aborted;
};

struct tpo_run_log {
    char path[4096];
    int log_every, first_step, line_step;
    bool with_bar, line_ended; /* the next step begins a line */
    struct tpo_progress bar;
    char recipe[32], stage[32], note[200];
    double begun_s, line_s, written_s;
    struct line line;
};

int tpo_run_log_open(struct tpo_run_log **out, const char *dir, int log_every, bool bar, struct tpo_error *err)
{
    struct tpo_run_log *log = calloc(1, sizeof(*log));
    if (log == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the run's log");
    snprintf(log->path, sizeof(log->path), "%s/status.json", dir);
    log->log_every = log_every;
    log->with_bar = bar;
    *out = log;
    return TPO_OK;
}

void tpo_run_log_close(struct tpo_run_log *log)
{
    if (log != NULL) tpo_progress_end(&log->bar);
    free(log);
}

void tpo_run_log_stage(struct tpo_run_log *log, const struct tpo_recipe *r, int stage, int first_step)
{
    tpo_progress_end(&log->bar);
    if (strcmp(log->stage, r->stages[stage].name) != 0) log->note[0] = '\0'; /* the stage before has written its model */
    snprintf(log->recipe, sizeof(log->recipe), "%s", r->name);
    snprintf(log->stage, sizeof(log->stage), "%s", r->stages[stage].name);
    log->line = (struct line){.stage = log->stage, .step = first_step - 1, .steps = r->stages[stage].steps};
    log->line_ended = false;
    log->begun_s = log->line_s = tpo_now_s();
    log->bar = (struct tpo_progress){.what = log->stage, .unit = " steps"};
    log->first_step = log->line_step = first_step - 1;
    tpo_run_log_state(log, "training", log->note);
}

/* --- sums since the last line ---------------------------------------------------------------------------------------------------------- */

/* A step that was given up has losses that are not finite, or come from gradients that are not: they would be the line's. */
static void losses_add(struct line *l, const struct tpo_step_report *r)
{
    struct tpo_step_report *sum = &l->sum;
    for (int i = 0; i < r->n_losses && !r->aborted; i++) {
        int k = 0;
        while (k < sum->n_losses && sum->losses[k].name != r->losses[i].name) k++;
        if (k == TPO_LOSSES_MAX) continue;
        if (k == sum->n_losses) {
            sum->losses[sum->n_losses++].name = r->losses[i].name;
            sum->losses[k].value = 0;
            l->n_losses[k] = 0;
        }
        sum->losses[k].value += r->losses[i].value;
        l->n_losses[k]++;
    }
}

static double loss_mean(const struct line *l, int k)
{
    return l->sum.losses[k].value / l->n_losses[k];
}

static void last_keep(struct tpo_step_report *sum, const struct tpo_step_report *r)
{
    sum->norm = r->norm;
    memcpy(sum->norms, r->norms, sizeof(sum->norms));
    sum->clip = r->clip;
    sum->rate = r->rate;
    memcpy(sum->rates, r->rates, sizeof(sum->rates));
    sum->aborted = r->aborted;
    sum->reads = r->reads;
    sum->skipped = r->skipped;
    tpo_timing_sum(&sum->timing, &r->timing);
}

static void line_end(struct tpo_run_log *log)
{
    struct line *l = &log->line;
    const double now = tpo_now_s(), took_s = now - log->line_s + 1e-9;
    l->steps_per_s = (l->step - log->line_step) / took_s;
    l->eta_s = (l->steps - l->step) / (l->steps_per_s > 0 ? l->steps_per_s : 1);
    log->line_s = now;
    log->line_step = l->step;
    log->line_ended = true;
}

/* --- where it goes ----------------------------------------------------------------------------------------------------------------------- */

static void line_print(const struct line *l)
{
    char losses[256] = "", phases[256] = "", skipped[32] = "";
    size_t at = 0, to = 0;
    const struct tpo_timing *t = &l->sum.timing;
    for (int k = 0; k < l->sum.n_losses && at < sizeof(losses); k++)
        at += (size_t)snprintf(losses + at, sizeof(losses) - at, " %s=%.4f", l->sum.losses[k].name, loss_mean(l, k));
    for (int k = 0; k < TPO_PHASES && to < sizeof(phases); k++)
        to += (size_t)snprintf(phases + to, sizeof(phases) - to, " %s_ms=%.1f", tpo_phase_names[k],
                               1000 * t->seconds[k] / l->n_steps);
    if (l->sum.reads) snprintf(skipped, sizeof(skipped), " skipped=%lld", (long long)l->sum.skipped);
    printf("stage=%s step=%d/%d samples=%d boxes=%d%s%s grad_norm=%.3f clip_factor=%.3f lr_scale=%.3f aborted=%llu%s bubble=%.3f "
           "steps_per_s=%.2f "
           "eta_s=%.0f\n",
           l->stage, l->step, l->steps, l->samples, l->boxes, skipped, losses, l->sum.norm, (double)l->sum.clip,
           (double)l->sum.rate, (unsigned long long)l->aborted, phases, t->wall_s > 0 ? t->bubble_s / t->wall_s : 0, l->steps_per_s,
           l->eta_s);
    fflush(stdout);
}

/* JSON holds UTF-8 alone, and a message may name a path of other bytes, or end within a character. */
static void text_of(char *out, size_t size, const char *bytes)
{
    size_t n = 0;
    for (size_t left = strlen(bytes), took; left > 0; bytes += took, left -= took) {
        took = 1;
        while (took < left && took < 4 && !tpo_utf8_valid(bytes, took)) took++;
        const bool valid = tpo_utf8_valid(bytes, took);
        if (!valid) took = 1;
        if (n + took >= size) break;
        memcpy(out + n, valid ? bytes : "?", took);
        n += took;
    }
    out[n] = '\0';
}

/* A run goes on without its status file. */
static void status_write(struct tpo_run_log *log, const char *state, const char *detail)
{
    const struct line *l = &log->line;
    const struct tpo_timing *t = &l->sum.timing;
    const double rate = (l->step - log->first_step) / (tpo_now_s() - log->begun_s + 1e-9), wall_s = t->wall_s > 0 ? t->wall_s : 1;
    char why[256]; /* as an error has room for */
    json_t *losses = json_object(), *busy = json_object();
    text_of(why, sizeof(why), detail);
    for (int k = 0; k < l->sum.n_losses; k++) json_object_set_new(losses, l->sum.losses[k].name, json_real(loss_mean(l, k)));
    for (int i = 0; i < TPO_PARTS; i++) json_object_set_new(busy, tpo_part_names[i], json_real(100 * t->busy_s[i] / wall_s));
    json_t *j = json_pack("{s:s s:s s:i s:s s:s s:i s:i s:o s:o s:f s:f s:f s:I}", "state", state, "detail", why, "pid",
                          (int)getpid(), "recipe", log->recipe, "stage", log->stage, "step", l->step, "steps", l->steps, "losses",
                          losses, "busy", busy, "bubble", t->bubble_s / wall_s, "steps_per_s", rate, "eta_s",
                          rate > 0 ? (l->steps - l->step) / rate : 0, "aborted", (json_int_t)l->aborted);
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    if (text != NULL) tpo_passing_file(log->path, text, NULL);
    free(text);
    json_decref(j);
    log->written_s = tpo_now_s();
}

void tpo_run_log_state(struct tpo_run_log *log, const char *state, const char *detail)
{
    tpo_progress_end(&log->bar);
    status_write(log, state, detail);
}

void tpo_run_log_note(struct tpo_run_log *log, const char *note)
{
    if (strcmp(log->note, note) == 0) return;
    snprintf(log->note, sizeof(log->note), "%s", note);
    tpo_run_log_state(log, "training", log->note);
}

void tpo_run_log_step(struct tpo_run_log *log, int step, const struct tpo_step_report *report, uint64_t aborted)
{
    struct line *l = &log->line;
    if (log->line_ended) {
        l->sum = (struct tpo_step_report){0};
        l->n_steps = 0;
        log->line_ended = false;
    }
    losses_add(l, report);
    last_keep(&l->sum, report);
    l->n_steps++;
    l->step = step;
    l->samples += report->samples;
    l->boxes += report->boxes;
    l->aborted = aborted;
    const bool last = step == l->steps;
    if (step % log->log_every == 0 || last) {
        line_end(log);
        tpo_progress_end(&log->bar); /* the line would begin where the bar ends */
        line_print(l);
    }
    if (log->with_bar && !last) tpo_progress_show(&log->bar, step, l->steps);
    if (last || tpo_now_s() - log->written_s >= STATUS_EVERY_S) status_write(log, "training", log->note);
}

/* --- another shell ------------------------------------------------------------------------------------------------------------------------- */

static double real_of(const json_t *j, const char *key)
{
    return json_number_value(json_object_get(j, key));
}

static void pairs_print(const json_t *j, const char *key, const char *format)
{
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(j, key), name, value)
    {
        printf("  %s ", name);
        printf(format, json_number_value(value));
    }
}

int tpo_run_log_print(const char *dir, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/status.json", dir);
    json_t *j = json_load_file(path, 0, NULL);
    const char *state = json_string_value(json_object_get(j, "state")), *stage = json_string_value(json_object_get(j, "stage")),
               *detail = json_string_value(json_object_get(j, "detail"));
    if (state == NULL || stage == NULL) {
        json_decref(j);
        return tpo_fail(err, TPO_NOT_FOUND, "status", "%.200s tells of no run", path);
    }
    const bool ended = strcmp(state, "done") == 0 || strcmp(state, "failed") == 0;
    const int eta = (int)real_of(j, "eta_s");
    printf("%s%s%s%s\n", !ended && !tpo_held_is(dir) ? "not running; was " : "", state,
           detail != NULL && detail[0] != '\0' ? ": " : "", detail != NULL ? detail : "");
    printf("stage %s, step %d of %d, %.2f steps/s, %d:%02d:%02d left, %d aborted\n", stage, (int)real_of(j, "step"),
           (int)real_of(j, "steps"), real_of(j, "steps_per_s"), eta / 3600, eta / 60 % 60, eta % 60, (int)real_of(j, "aborted"));
    printf("losses");
    pairs_print(j, "losses", "%.4f");
    printf("\nbusy  ");
    pairs_print(j, "busy", "%.0f%%");
    printf("  none %.0f%%\n", 100 * real_of(j, "bubble"));
    json_decref(j);
    return TPO_OK;
}
