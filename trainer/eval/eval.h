/* eval.h -- `tpo eval MODEL`: the scores of a model folder on scenes never trained on, each beside what no look at the picture would score.
 *
 * Held-out scenes are for scores alone. What is chosen by a score (a stage's length, a rate, one model of two) is chosen by validation scenes. */
#ifndef TPO_TRAINER_EVAL_EVAL_H
#define TPO_TRAINER_EVAL_EVAL_H

#include "trainer/eval/asker.h"

struct tpo_score {
    int n, right;          /* boxes: IoU >= 0.5; text: tpo_world_answer_right; descriptions: exact */
    int hard, hard_right;  /* relations whose target is not the outermost match */
    double iou;            /* sum */
    long said, real, hits; /* descriptions' tuples */
    int routed;            /* a head was called where, and only where, a box was asked for */
};
/* Share right; of descriptions the F1. NaN where n is 0. */
double tpo_score_value(const struct tpo_score *s, enum tpo_world_kind kind);

/* One kind on images or clips of one split. */
struct tpo_eval_row {
    struct tpo_score seen, blind;
    struct tpo_world_guess guess, guess_hard;
};

struct tpo_eval {
    enum tpo_world_split split; /* TPO_WORLD_HELD_OUT, or TPO_WORLD_VALIDATION with the rows of `scored` alone */
    struct tpo_eval_row scored[2][TPO_WORLD_KINDS]; /* [0] images, [1] clips */
    struct tpo_eval_row combinations[2]
                                    [TPO_WORLD_KINDS]; /* of TPO_WORLD_COMBINATIONS; none of descriptions, which have no target */
    struct tpo_score unseen[2][TPO_WORLD_KINDS];       /* phrasings never trained */
    int n, frames;                                     /* items per kind, frames of a clip */
};

/* Fills one row: n items of the split, in order of index from 0. n >= 2 where `blind` is wanted. */
int tpo_eval_row(struct tpo_asker *a, struct tpo_eval_row *out, enum tpo_world_split split, enum tpo_world_kind kind, int n_frames,
                 enum tpo_world_phrasing phrasing, int n, bool blind, struct tpo_error *err);

/* The table in Markdown, and all numbers as JSON, where the rows are "held_out" or "validation"; 0 or an errno of the file. */
int tpo_eval_write_markdown(const struct tpo_eval *e, const char *path); /* "-": stdout */
int tpo_eval_write_json(const struct tpo_eval *e, const char *path);

/* The subcommand; its exit status. */
int tpo_eval_main(int argc, char **argv);

#endif
