/* This file owns how scores are written down: a table for people, JSON for programs. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "trainer/eval/eval.h"

/* "**.981**", or "-" where there is nothing. */
static const char *cell(char *out, size_t size, double x, bool bold)
{
    if (!isfinite(x))
        snprintf(out, size, "-");
    else
        snprintf(out, size, bold ? "**%.3f**" : "%.3f", x);
    return out;
}

static void row_print(FILE *f, const char *name, const double seen[2], const double blind[2], const double guess[2],
                      const double combos[2])
{
    char a[8][32];
    fprintf(f, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, cell(a[0], 32, seen[0], true),
            cell(a[1], 32, blind[0], false), cell(a[2], 32, guess[0], false), cell(a[3], 32, combos[0], false),
            cell(a[4], 32, seen[1], true), cell(a[5], 32, blind[1], false), cell(a[6], 32, guess[1], false),
            cell(a[7], 32, combos[1], false));
}

static double share(int part, int whole)
{
    return whole > 0 ? (double)part / whole : NAN;
}

static double routing_trained(const struct tpo_eval *e)
{
    int n = 0, right = 0;
    for (int m = 0; m < 2; m++)
        for (int k = 0; k < TPO_WORLD_KINDS; k++) {
            n += e->scored[m][k].seen.n;
            right += e->scored[m][k].seen.routed;
        }
    return share(right, n);
}

static void routing_unseen(const struct tpo_eval *e, int *n, int *right)
{
    *n = *right = 0;
    for (int m = 0; m < 2; m++)
        for (int k = 0; k < TPO_WORLD_KINDS; k++) {
            *n += e->unseen[m][k].n;
            *right += e->unseen[m][k].routed;
        }
}

static void hard_print(FILE *f, const struct tpo_eval *e)
{
    double seen[2], blind[2], guess[2], combos[2];
    for (int m = 0; m < 2; m++) {
        const struct tpo_eval_row *r = &e->scored[m][TPO_KIND_RELATION_BOX], *c = &e->combinations[m][TPO_KIND_RELATION_BOX];
        seen[m] = share(r->seen.hard_right, r->seen.hard);
        blind[m] = share(r->blind.hard_right, r->blind.hard);
        guess[m] = r->guess_hard.n > 0 ? (double)r->guess_hard.best : NAN;
        combos[m] = share(c->seen.hard_right, c->seen.hard);
    }
    row_print(f, "- of these, target not the outermost match", seen, blind, guess, combos);
}

static const char *split_name(const struct tpo_eval *e)
{
    return e->split == TPO_WORLD_VALIDATION ? "validation" : "held-out";
}

int tpo_eval_write_markdown(const struct tpo_eval *e, const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (f == NULL) return errno;
    fprintf(f,
            "Scores on %s scenes, at least %d of each kind; boxes: share with IoU >= 0.5, descriptions: F1 of (colour, shape, "
            "motion), else share "
            "right.\nBlind: the same model given another scene's pixels. Guess: the best answer that needs no (careful) look. New "
            "pairs: the "
            "object that is asked about has a\ncolour and a shape that no question of training asks about together; training's "
            "pictures and "
            "descriptions do hold such objects, so descriptions have no new pairs.\n\n",
            split_name(e), e->n);
    fprintf(f,
            "| kind | image | blind | guess | new pairs | clip of %d frames | blind | guess | new pairs "
            "|\n|---|---|---|---|---|---|---|---|---|\n",
            e->frames);
    for (int k = 0; k < TPO_WORLD_KINDS; k++) {
        double seen[2], blind[2], guess[2], combos[2];
        if (e->scored[0][k].seen.n + e->scored[1][k].seen.n == 0) continue;
        for (int m = 0; m < 2; m++) {
            const struct tpo_eval_row *r = &e->scored[m][k];
            seen[m] = tpo_score_value(&r->seen, k);
            blind[m] = tpo_score_value(&r->blind, k);
            guess[m] = r->seen.n > 0 ? (double)r->guess.best : NAN;
            combos[m] = tpo_score_value(&e->combinations[m][k].seen, k);
        }
        row_print(f, tpo_world_kind_name(k), seen, blind, guess, combos);
        if (k == TPO_KIND_RELATION_BOX) hard_print(f, e);
    }
    int n, right;
    routing_unseen(e, &n, &right);
    fprintf(f,
            "\nRouting (the share of questions on which the head is called where, and only where, a box is asked for): %.4f on "
            "trained phrasings",
            routing_trained(e));
    if (n > 0) fprintf(f, ", %.4f on phrasings never trained (%d)", share(right, n), n);
    fprintf(f, ".\n");
    const int failed = ferror(f);
    if (f != stdout && fclose(f) != 0) return EIO;
    return failed ? EIO : 0;
}

/* JSON has no NaN. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *score_json(const struct tpo_score *s, enum tpo_world_kind kind)
{
    json_t *j = json_pack("{s:i s:i s:i}", "n", s->n, "right", s->right, "routed", s->routed);
    if (s->n > 0) json_object_set_new(j, "score", number(tpo_score_value(s, kind)));
    if (tpo_world_kind_boxes(kind) && s->n > 0) json_object_set_new(j, "miou", number(s->iou / s->n));
    if (kind == TPO_KIND_RELATION_BOX)
        json_object_update_new(j, json_pack("{s:i s:i}", "hard", s->hard, "hard_right", s->hard_right));
    if (kind == TPO_KIND_DESCRIPTION)
        json_object_update_new(
            j, json_pack("{s:I s:I s:I}", "hits", (json_int_t)s->hits, "said", (json_int_t)s->said, "real", (json_int_t)s->real));
    return j;
}

static json_t *rows_json(const struct tpo_eval_row rows[2][TPO_WORLD_KINDS])
{
    json_t *all = json_object();
    for (int m = 0; m < 2; m++) {
        json_t *medium = json_object();
        for (int k = 0; k < TPO_WORLD_KINDS; k++) {
            const struct tpo_eval_row *r = &rows[m][k];
            if (r->seen.n == 0) continue;
            json_t *j = json_pack("{s:o}", "seen", score_json(&r->seen, k));
            if (r->blind.n > 0) json_object_set_new(j, "blind", score_json(&r->blind, k));
            if (isfinite(r->guess.best)) json_object_set_new(j, "guess", json_real((double)r->guess.best));
            json_object_set_new(medium, tpo_world_kind_name(k), j);
        }
        json_object_set_new(all, m == 0 ? "image" : "clip", medium);
    }
    return all;
}

int tpo_eval_write_json(const struct tpo_eval *e, const char *path)
{
    int n, right;
    routing_unseen(e, &n, &right);
    json_t *j = json_pack("{s:i s:i s:o s:o s:{s:o s:o s:i}}", "items_per_kind", e->n, "frames", e->frames,
                          e->split == TPO_WORLD_VALIDATION ? "validation" : "held_out", rows_json(e->scored), "new_pairs",
                          rows_json(e->combinations), "routing", "trained", number(routing_trained(e)), "unseen",
                          number(share(right, n)), "unseen_n", n);
    const int failed = j == NULL || json_dump_file(j, path, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) != 0;
    json_decref(j);
    return failed ? EIO : 0;
}
