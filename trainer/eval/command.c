/* This file owns `tpo eval`: its arguments, the order of the rows, the progress it shows. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/progress.h"
#include "common/settings.h"
#include "trainer/eval/eval.h"

static struct {
    const char *device, *out, *kinds, *split;
    int64_t n, threads, frames;
    bool images;
} set;

#define QUOTED(id, name, image, clip) " \"" name "\""
static const struct tpo_setting rows[] = {
    {"n", TPO_SET_INT, &set.n, "500", .min = 2, .max = 100000,
     .help = "questions per kind; relations get four times as many, so that over N are hard"},
    {"images", TPO_SET_BOOL, &set.images, "no", .help = "images only, no clips"},
    {"frames", TPO_SET_INT, &set.frames, NULL, .min = 2, .max = TPO_WORLD_FRAMES_MAX,
     .help = "of a clip, 2..8; nothing: as many as the model takes, 8 at most"},
    {"kinds", TPO_SET_TEXT, &set.kinds, NULL, .what = "A,B",
     .help = "of these kinds only (nothing: of all), out of" TPO_WORLD_KIND_MAP(QUOTED)},
    {"split", TPO_SET_TEXT, &set.split, "all", .choices = "all|held-out|validation",
     .help = "all: held-out scenes, new pairs of colour and shape, unseen phrasings; held-out: held-out scenes alone; validation: "
             "scenes for "
             "choices, so that held-out ones stay for scores"},
    {"out", TPO_SET_TEXT, &set.out, NULL, .what = "DIR", .help = "write DIR/scores.md and DIR/scores.json, too"},
    {"device", TPO_SET_TEXT, &set.device, "auto", .choices = "cpu|cuda|auto", .help = "where to compute"},
    {"threads", TPO_SET_INT, &set.threads, "2", .min = 1, .max = 256, .help = "of the compute team"},
};
static const struct tpo_settings table = {
    .program = "tpo eval",
    .arguments = "MODEL",
    .about = "Scores a model folder on scenes never trained on, through the code that serves: a table on stdout with a row for "
             "each kind of "
             "question, each score beside what no look at the picture would score. Exit status: 0 scored, 1 something failed, 2 "
             "wrong usage.",
    .examples = "tpo eval models/small --n 500\n"
                "tpo eval models/mine --split validation --images --n 200 --kinds \"relation box,how many\"",
    .rows = rows,
    .n_rows = sizeof(rows) / sizeof(rows[0])};

struct walk {
    struct tpo_asker *asker;
    struct tpo_eval *e;
    unsigned kinds; /* bit k: kind k is asked */
    int media;
    bool alone; /* the scenes of e->split alone, no new pairs, no unseen phrasings */
    int answered, total;
    struct tpo_progress bar;
};

static void on_answered(void *owner)
{
    struct walk *w = owner;
    tpo_progress_show(&w->bar, ++w->answered, w->total);
}

static bool asked(const struct walk *w, enum tpo_world_kind kind, int medium)
{
    return (w->kinds >> kind & 1) && !(kind == TPO_KIND_DIRECTION && medium == 0) &&
           !(kind == TPO_KIND_ATTRIBUTE_RELATION && medium == 1);
}

/* "relation box,how many" as bits. */
static int kinds_of(unsigned *kinds, const char *text, struct tpo_error *err)
{
    *kinds = 0;
    while (*text != '\0') {
        const int length = (int)strcspn(text, ",");
        int kind = 0;
        while (kind < TPO_WORLD_KINDS && (strlen(tpo_world_kind_name(kind)) != (size_t)length ||
                                          memcmp(tpo_world_kind_name(kind), text, (size_t)length) != 0))
            kind++;
        if (kind == TPO_WORLD_KINDS)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "kinds", "--kinds: no kind is named \"%.*s\"; --help names them",
                            length < 40 ? length : 40, text);
        *kinds |= 1u << kind;
        text += length + (text[length] == ',');
    }
    return TPO_OK;
}

/* Some 28 % of relations are hard ones, which are scored by themselves, too. */
static int items_of(const struct tpo_eval *e, enum tpo_world_kind kind)
{
    return kind == TPO_KIND_RELATION_BOX ? 4 * e->n : e->n;
}

/* A description names every object and so has no target to be new. */
static bool has_new_pairs(enum tpo_world_kind kind)
{
    return kind != TPO_KIND_DESCRIPTION;
}

/* Scored questions are asked twice, of their own picture and of another one. */
static int questions_of(const struct walk *w)
{
    int total = 0;
    for (int m = 0; m < w->media; m++)
        for (int k = 0; k < TPO_WORLD_KINDS; k++)
            if (asked(w, k, m)) {
                total += 2 * items_of(w->e, k);
                if (!w->alone) total += (has_new_pairs(k) ? items_of(w->e, k) : 0) + (w->e->n + 3) / 4;
            }
    return total;
}

static int walk_run(struct walk *w, struct tpo_error *err)
{
    struct tpo_eval *e = w->e;
    int rc = TPO_OK;
    for (int m = 0; m < w->media && rc == TPO_OK; m++)
        for (int k = 0; k < TPO_WORLD_KINDS && rc == TPO_OK; k++) {
            const int frames = m == 0 ? 1 : e->frames, n = items_of(e, k);
            if (!asked(w, k, m)) continue;
            rc = tpo_eval_row(w->asker, &e->scored[m][k], e->split, k, frames, TPO_WORLD_TRAINED_PHRASING, n, true, err);
            if (rc != TPO_OK || w->alone) continue;
            if (has_new_pairs(k))
                rc = tpo_eval_row(w->asker, &e->combinations[m][k], TPO_WORLD_COMBINATIONS, k, frames, TPO_WORLD_TRAINED_PHRASING,
                                  n, false, err);
            struct tpo_eval_row unseen;
            if (rc == TPO_OK)
                rc = tpo_eval_row(w->asker, &unseen, TPO_WORLD_HELD_OUT, k, frames, TPO_WORLD_UNSEEN_PHRASING, (e->n + 3) / 4,
                                  false, err);
            if (rc == TPO_OK) e->unseen[m][k] = unseen.seen;
        }
    return rc;
}

static const char *const files[] = {"scores.md", "scores.json"};

/* Before anything is asked: whether the files can be written. What is there stays as it is. */
static int try_files(const char *out, struct tpo_error *err)
{
    char path[4096];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", out, files[i]);
        const bool there = access(path, F_OK) == 0;
        FILE *f = fopen(path, "a");
        if (f == NULL) return tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "--out: %.300s: %s", path, strerror(errno));
        fclose(f);
        if (!there) unlink(path);
    }
    return TPO_OK;
}

static int write_all(const struct tpo_eval *e, const char *out)
{
    char path[4096];
    int rc = tpo_eval_write_markdown(e, "-");
    if (out[0] == '\0' || rc != 0) return rc;
    snprintf(path, sizeof(path), "%s/%s", out, files[0]);
    rc = tpo_eval_write_markdown(e, path);
    snprintf(path, sizeof(path), "%s/%s", out, files[1]);
    return rc != 0 ? rc : tpo_eval_write_json(e, path);
}

static int read_arguments(struct walk *w, int *argc, char **argv, struct tpo_error *err)
{
    int rc = tpo_settings_read(&table, argc, argv, err);
    if (rc == TPO_OK && *argc != 2)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "arguments", "one MODEL folder is needed (see --help)");
    w->kinds = (1u << TPO_WORLD_KINDS) - 1;
    if (rc == TPO_OK && set.kinds[0] != '\0') rc = kinds_of(&w->kinds, set.kinds, err);
    if (rc != TPO_OK) return rc;
    w->media = set.images ? 1 : 2;
    w->alone = strcmp(set.split, "all") != 0;
    w->e->split = strcmp(set.split, "validation") == 0 ? TPO_WORLD_VALIDATION : TPO_WORLD_HELD_OUT;
    w->e->n = (int)set.n;
    w->e->frames = (int)set.frames;
    w->total = questions_of(w);
    if (w->total > 0) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "kinds", "--kinds %s: with --images none of these is asked", set.kinds);
}

static int score(struct walk *w, const char *model, struct tpo_error *err)
{
    struct tpo_eval *e = w->e;
    struct tpo_stream *stream = NULL;
    int rc = set.out[0] != '\0' ? try_files(set.out, err) : TPO_OK;
    if (rc == TPO_OK) rc = tpo_stream_open(&stream, set.device, (int)set.threads, err);
    if (rc == TPO_OK) rc = tpo_asker_open(&w->asker, stream, model, err);
    if (rc == TPO_OK && e->frames == 0) e->frames = tpo_asker_frames(w->asker);
    /* Now, and not after the pass over the images. */
    if (rc == TPO_OK && w->media == 2) rc = tpo_asker_takes(w->asker, e->frames, err);
    if (rc == TPO_OK) {
        tpo_asker_watch(w->asker, on_answered, w);
        rc = walk_run(w, err);
        tpo_progress_end(&w->bar);
    }
    tpo_asker_close(w->asker);
    tpo_stream_close(stream);
    return rc;
}

int tpo_eval_main(int argc, char **argv)
{
    static struct tpo_eval e;
    struct walk w = {.e = &e, .bar = {.what = "asking", .unit = " questions"}};
    struct tpo_error err = {0};
    int rc = read_arguments(&w, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc != TPO_OK) {
        fprintf(stderr, "tpo eval: %s\n", err.message);
        return 2;
    }
    rc = score(&w, argv[1], &err);
    if (rc == TPO_OK && write_all(&e, set.out) == 0) return 0;
    if (rc != TPO_OK)
        fprintf(stderr, "tpo eval: %s: %s\n", tpo_status_name(err.code), err.message);
    else
        fprintf(stderr, "tpo eval: the scores could not be written to %s\n", set.out[0] != '\0' ? set.out : "stdout");
    return 1;
}
