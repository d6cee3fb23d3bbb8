/* This file owns `tpo eval`: its arguments, the order of the rows, the progress it shows. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/progress.h"
#include "trainer/eval/eval.h"

static const char usage[] =
    "tpo eval -- scores of a model folder on held-out scenes, through the code that serves\n"
    "\n"
    "  tpo eval MODEL\n"
    "      --n N           questions per kind (default 500; relations get four times as many, so that over N are hard)\n"
    "      --threads N     default 2\n"
    "      --device NAME   cpu, cuda or auto: where to compute (auto)\n"
    "      --out DIR       also writes DIR/scores.md and DIR/scores.json\n"
    "      --images        images only\n"
    "      --frames N      of a clip, 2..8 (default: as many as the model takes)\n"
    "      --kinds A,B     of these kinds only, by their names in the table: \"relation box,how many\"\n"
    "      --held-out      without the second split and the unseen phrasings\n"
    "\n"
    "exit status: 0 scored, 1 something failed, 2 wrong usage\n";

struct walk {
    struct tpo_asker *asker;
    struct tpo_eval *e;
    unsigned kinds; /* bit k: kind k is asked */
    int media;
    bool held_out_only;
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

/* "relation box,how many" as bits; 0 when a name is none of a kind. */
static unsigned kinds_of(const char *text)
{
    unsigned set = 0;
    while (*text != '\0') {
        const size_t length = strcspn(text, ",");
        int kind = 0;
        while (kind < TPO_WORLD_KINDS &&
               (strlen(tpo_world_kind_name(kind)) != length || memcmp(tpo_world_kind_name(kind), text, length) != 0))
            kind++;
        if (kind == TPO_WORLD_KINDS) return 0;
        set |= 1u << kind;
        text += length + (text[length] == ',');
    }
    return set;
}

/* Some 28 % of relations are hard ones, which are scored by themselves, too. */
static int items_of(const struct tpo_eval *e, enum tpo_world_kind kind)
{
    return kind == TPO_KIND_RELATION_BOX ? 4 * e->n : e->n;
}

/* Held-out questions are asked twice, of their own picture and of another one. */
static int questions_of(const struct walk *w)
{
    int total = 0;
    for (int m = 0; m < w->media; m++)
        for (int k = 0; k < TPO_WORLD_KINDS; k++)
            if (asked(w, k, m)) total += 2 * items_of(w->e, k) + (w->held_out_only ? 0 : items_of(w->e, k) + (w->e->n + 3) / 4);
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
            rc =
                tpo_eval_row(w->asker, &e->held_out[m][k], TPO_WORLD_HELD_OUT, k, frames, TPO_WORLD_TRAINED_PHRASING, n, true, err);
            if (rc != TPO_OK || w->held_out_only) continue;
            rc = tpo_eval_row(w->asker, &e->combinations[m][k], TPO_WORLD_COMBINATIONS, k, frames, TPO_WORLD_TRAINED_PHRASING, n,
                              false, err);
            struct tpo_eval_row unseen;
            if (rc == TPO_OK)
                rc = tpo_eval_row(w->asker, &unseen, TPO_WORLD_HELD_OUT, k, frames, TPO_WORLD_UNSEEN_PHRASING, (e->n + 3) / 4,
                                  false, err);
            if (rc == TPO_OK) e->unseen[m][k] = unseen.seen;
        }
    return rc;
}

static int write_all(const struct tpo_eval *e, const char *out)
{
    char path[4096];
    int rc = tpo_eval_write_markdown(e, "-");
    if (out == NULL || rc != 0) return rc;
    snprintf(path, sizeof(path), "%s/scores.md", out);
    rc = tpo_eval_write_markdown(e, path);
    snprintf(path, sizeof(path), "%s/scores.json", out);
    return rc != 0 ? rc : tpo_eval_write_json(e, path);
}

/* -1 for what is no whole number within the bounds. */
static int whole(const char *text, long low, long high)
{
    char *end = NULL;
    const long n = strtol(text, &end, 10);
    return *text == '\0' || *end != '\0' || n < low || n > high ? -1 : (int)n;
}

int tpo_eval_main(int argc, char **argv)
{
    static const struct option options[] = {{"n", required_argument, NULL, 'n'},      {"threads", required_argument, NULL, 't'},
                                            {"device", required_argument, NULL, 'D'}, {"out", required_argument, NULL, 'o'},
                                            {"images", no_argument, NULL, 'i'},       {"frames", required_argument, NULL, 'f'},
                                            {"kinds", required_argument, NULL, 'k'},  {"held-out", no_argument, NULL, 'd'},
                                            {"help", no_argument, NULL, 'h'},         {0}};
    static struct tpo_eval e;
    const char *out = NULL;
    struct walk w = {.e = &e, .kinds = (1u << TPO_WORLD_KINDS) - 1, .media = 2, .bar = {.what = "asking", .unit = " questions"}};
    int threads = 2;
    const char *device = "auto";
    struct tpo_stream *stream = NULL;
    e.n = 500;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'n') e.n = whole(optarg, 2, 100000);
        if (c == 't') threads = whole(optarg, 1, 256);
        if (c == 'D') device = optarg;
        if (c == 'o') out = optarg;
        if (c == 'i') w.media = 1;
        if (c == 'd') w.held_out_only = true;
        if (c == 'f') e.frames = whole(optarg, 2, 100000);
        if (c == 'k') w.kinds = kinds_of(optarg);
        if (c == 'h' || c == '?') {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (argc - optind != 1 || e.n < 0 || e.frames < 0 || w.kinds == 0 || threads < 0) {
        fputs(usage, stderr);
        return 2;
    }
    struct tpo_error err = {0};
    w.total = questions_of(&w);
    int rc = tpo_stream_open(&stream, device, threads, &err);
    if (rc == TPO_OK) rc = tpo_asker_open(&w.asker, stream, argv[optind], &err);
    if (rc == TPO_OK && e.frames == 0) e.frames = tpo_asker_frames(w.asker);
    if (rc == TPO_OK && w.media == 2 && e.frames > tpo_asker_frames(w.asker))
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "frames", "%s takes clips of %d frames at most", argv[optind],
                      tpo_asker_frames(w.asker));
    if (rc == TPO_OK) {
        tpo_asker_watch(w.asker, on_answered, &w);
        rc = walk_run(&w, &err);
        tpo_progress_end(&w.bar);
    }
    tpo_asker_close(w.asker);
    tpo_stream_close(stream);
    if (rc == TPO_OK && write_all(&e, out) == 0) return 0;
    if (rc != TPO_OK)
        fprintf(stderr, "tpo eval: %s: %s\n", tpo_status_name(err.code), err.message);
    else
        fprintf(stderr, "tpo eval: the scores could not be written to %s\n", out != NULL ? out : "stdout");
    return 1;
}
