/* world.h -- Shellgame: drawn scenes and clips whose truth is known, and sentences about them, for training and for held-out
 * scores.
 *
 * A picture is a pure function of (split, seed, index), whatever the thread, the order and the batch. Splits never share a scene; a
 * seed outside its split's range is INVALID_ARGUMENT. A `struct tpo_world` is constant once open: any number of threads may draw
 * from it.
 *
 * What a sentence may rest on:
 *   target      at least 65 % of it visible on the first frame; for a direction, half of it on every frame
 *   box         the tight box of the visible pixels on the first frame, as corners x0 y0 x1 y1 over width and height, the far edges exclusive
 *   attribute   exactly one object of the scene matches the words
 *   relation    of the objects that match the head (the anchor apart, two at least) exactly the target lies in the anchor's cone of that side,
 *               dx < 0 and |dy| < .8 |dx| for "left of"; all others lie outside the cone of 1.25. Four of five targets that are the outermost
 *               match are dropped; a target that isn't outermost is `hard`. dx and dy are between centres of boxes.
 *   next to     the target is the match nearest to the anchor, all others at least 1.5 times as far
 *
 * In the training and held-out splits an object of one of tpo_world_is_reserved's pairs of colour and shape is never a target, nor an anchor, nor
 * named by a counting phrase; in TPO_WORLD_COMBINATIONS every target is one. In training it isn't a candidate of a relation either (facts.h says
 * why); in the splits that are scored it may be. Phrasings marked `unseen` in trainer/data/templates.yaml are used by items alone. */
#ifndef TPO_TRAINER_WORLD_H
#define TPO_TRAINER_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/status.h"
#include "nn/sample.h"

#define TPO_WORLD_OBJECTS_MIN 4
#define TPO_WORLD_OBJECTS_MAX 8
#define TPO_WORLD_FRAMES_MAX  8
/* The queries look at a grid: slot q is the cell at column q % 8, row q / 8, so with 32 of them a cell of a 96-pixel picture is 12 wide and 24
 * high, with 64 it is a patch of 12. */
#define TPO_WORLD_SLOT_COLUMNS 8

enum tpo_world_split {
    TPO_WORLD_TRAIN,        /* seeds 0 .. 2^31-1 */
    TPO_WORLD_VALIDATION,   /* seeds 2^31 .. 2^32-1: for choices made while training */
    TPO_WORLD_HELD_OUT,     /* seeds 2^32 .. 2^33-1: for scores */
    TPO_WORLD_COMBINATIONS, /* seeds 2^33 .. 2^34-1: for scores on targets of pairs that are no target elsewhere */
    TPO_WORLD_SPLITS,
};
uint64_t tpo_world_first_seed(enum tpo_world_split split);

/* The attributes of an object, in the order of the columns of "dense.attributes" and "slot.words". */
enum tpo_world_attribute {
    TPO_WORLD_SHAPE,
    TPO_WORLD_COLOUR,
    TPO_WORLD_SIZE,
    TPO_WORLD_PATTERN,
    TPO_WORLD_DIRECTION,
    TPO_WORLD_ATTRIBUTES
};
int tpo_world_values(enum tpo_world_attribute a);                  /* 6, 8, 2, 3, 5 */
const char *tpo_world_word(enum tpo_world_attribute a, int value); /* "star"; one piece of the small tokenizer each */
bool tpo_world_is_reserved(int colour, int shape);

/*  kind                name                  image  clip: weights of a mix. Relations have more than their
 *                                                           share: scenes that offer none pass their turn on */
#define TPO_WORLD_KIND_MAP(X)                                                                                                      \
    X(ATTRIBUTE_BOX, "attribute box", .18f, .18f) /* "Where is the small red star?" */                                             \
    X(RELATION_BOX, "relation box", .25f, .15f)   /* "Find the star left of the large cup." */                                     \
    X(NEXT_BOX, "next-to box", .10f, .06f)                                                                                         \
    X(ATTRIBUTE, "attribute", .10f, .07f)                   /* "What colour is the striped star?" */                               \
    X(ATTRIBUTE_RELATION, "attribute relation", .11f, .00f) /* "What colour is the star left of the large cup?" */                 \
    X(COUNT, "how many", .14f, .08f)                                                                                               \
    X(EXIST, "is there", .06f, .04f)                                                                                               \
    X(HALF, "which half", .03f, .03f)                                                                                              \
    X(CHOICE, "multiple choice", .13f, .14f) /* "... (A) red (B) blue", answered "(B)" */                                          \
    X(DESCRIPTION, "description", .05f, .05f)                                                                                      \
    X(DIRECTION, "direction", .00f, .26f) /* clips only */
enum tpo_world_kind {
#define X(id, name, image, clip) TPO_KIND_##id,
    TPO_WORLD_KIND_MAP(X)
#undef X
        TPO_WORLD_KINDS,
};
const char *tpo_world_kind_name(enum tpo_world_kind kind);
static inline bool tpo_world_kind_boxes(enum tpo_world_kind kind)
{
    return kind <= TPO_KIND_NEXT_BOX;
}

struct tpo_world;

/* The picture is `side` pixels square, 48..448; objects scale with it. Phrasings come with the program. */
struct tpo_world_options {
    enum tpo_world_split split;
    uint64_t seed;
    int side; /* 0: 96 */
};
int tpo_world_open(struct tpo_world **out, const struct tpo_world_options *o, struct tpo_error *err);
void tpo_world_close(struct tpo_world *w);

/* --- training ----------------------------------------------------------------------------------------------------------------- */

enum tpo_world_aids { TPO_WORLD_AIDS_NONE, TPO_WORLD_AIDS_QUESTIONS /* not on sentences that ask for a box */, TPO_WORLD_AIDS_ALL };
enum tpo_world_aid {
    TPO_WORLD_AID_TARGET = 1, /* v, or the answer, looks at the target */
    TPO_WORLD_AID_NOUN = 2,   /* a noun looks at all that match its words */
    TPO_WORLD_AID_COUNT = 4,  /* a count, or a "yes", looks at what it is about */
    TPO_WORLD_AID_CHOICE = 8, /* a choice looks at the right option, an option at its letter */
    TPO_WORLD_AID_TOLD = 16,  /* each word of a description looks at the object that it is about */
};
enum tpo_world_keep { TPO_WORLD_KEEP_ALL, TPO_WORLD_KEEP_TEXT /* no boxes */, TPO_WORLD_KEEP_BOXES /* nothing else */ };

struct tpo_world_draw {
    int n_frames;               /* 1: images; 2..8: clips */
    int min_objects;            /* 4 (5 in the encoder's stage) .. 8 */
    int n_conversations;        /* per sample: 6 on images, 8 on clips; 0: pixels and targets alone */
    float mix[TPO_WORLD_KINDS]; /* weights of kinds; need not add up to 1, but one that can be asked must have one where there are
                                   conversations. A kind that a scene can't ask gives its place to another draw */
    float outermost;            /* share of relations kept whose target is simply the outermost match, .2 as in items */
    enum tpo_world_aids aids;   /* attention targets */
    unsigned without;           /* of these, bits of enum tpo_world_aid that are left out: to see what each contributes */
    bool dense;  /* "dense.attributes" (T*patches, 4 or, on clips, 5) I32, -100 where no object covers; "dense.boxes" (T*patches, 4)
                   F32 */
    int n_slots; /* the model's query tokens, a multiple of 8 whose cells are whole pixels where aids or slots are wanted, 32 */
    bool slots;  /* "slot.words" (n_slots, 4 or, on clips, 5) I32 vocabulary ids, -100 where none; "slot.boxes" (n_slots, 4) F32;
                    "slot.centres" (n_slots, 2) F32: how many centres of small and of large objects lie in the cell */
    int patch;   /* of dense targets, 12 */
    float weight_description;                      /* of a description's words, .5 */
    float weight_end;                              /* of the </s>, .2 */
    int (*word_id)(void *owner, const char *word); /* for slot.words: the id of the piece " word", -1 if it isn't one piece */
    void *owner;
};
/* The usual draw: images or clips, their mix, all aids, no word_id (needed as soon as `slots` is set). */
void tpo_world_draw_default(struct tpo_world_draw *d, int n_frames);
void tpo_world_mix_keep(float mix[TPO_WORLD_KINDS], enum tpo_world_keep keep);
bool tpo_world_mix_asks(const float mix[TPO_WORLD_KINDS],
                        int n_frames); /* a kind that images, or clips, can be asked has a weight */

/* Whether samples can be drawn so: INVALID_ARGUMENT "bad_draw", or "bad_slots" where aids or slots are wanted of query tokens that make no grid. */
int tpo_world_draw_check(const struct tpo_world *w, const struct tpo_world_draw *d, struct tpo_error *err);

/* One sample, in the arena. The errors of tpo_world_draw_check; TPO_ENOMEM when the arena is full. */
int tpo_world_sample(const struct tpo_world *w, struct tpo_arena *arena, const struct tpo_world_draw *d, uint64_t index,
                     struct tpo_sample *out, struct tpo_error *err);

/* Samples first .. first+n-1, drawn by `threads` threads (0: one per core), each with an arena of its own; all of it lives until
 * the next fill or tpo_world_batch_free. A zeroed struct is an empty batch. */
struct tpo_world_batch {
    struct tpo_sample *samples;
    int n;
    struct tpo_arena *arenas;
    int n_arenas;
};
int tpo_world_batch_fill(struct tpo_world_batch *b, const struct tpo_world *w, const struct tpo_world_draw *d, uint64_t first,
                         int n, int threads, struct tpo_error *err);
/* n samples, not yet filled, and at least `arenas` empty arenas: for those who fill a batch otherwise. TPO_ENOMEM without a sentence. */
int tpo_world_batch_resize(struct tpo_world_batch *b, int n, int arenas);
void tpo_world_batch_free(struct tpo_world_batch *b);

/* --- held-out items
 * ------------------------------------------------------------------------------------------------------------------ */

enum tpo_world_phrasing { TPO_WORLD_ANY_PHRASING, TPO_WORLD_TRAINED_PHRASING, TPO_WORLD_UNSEEN_PHRASING };

struct tpo_world_tuple {
    int8_t colour, shape, direction; /* direction -1 on images */
};

struct tpo_world_object {
    int attributes[TPO_WORLD_ATTRIBUTES];
    float box[4]; /* on the first frame */
};

/* One question about one picture or clip, with all that scoring needs. In the arena. */
struct tpo_world_item {
    uint64_t index;
    enum tpo_world_kind kind;
    int n_frames, height, width;
    const uint8_t *pixels; /* (T, H, W, 3) */
    const char *question;
    const char
        *answer; /* the words a training sample would give: "<box_begin><boxes>", "red", "(B)", "3", "a red star and a blue cup." */
    bool hard;   /* a relation whose target isn't the outermost match */
    bool unseen; /* its phrasing was never trained */
    int asked;   /* enum tpo_world_attribute that a question asks for, -1 else; the majority answer is taken per value of it */
    float box[4]; /* kinds that ask for a box */
    int n_tuples;
    struct tpo_world_tuple tuples[TPO_WORLD_OBJECTS_MAX]; /* description: one per object */
    int n_options;                                        /* multiple choice: 2..4 */
    int n_objects;
    struct tpo_world_object objects[TPO_WORLD_OBJECTS_MAX];
    int target;      /* index into objects, -1 where there is none */
    uint8_t matches; /* bit o: object o matches the head of the phrase (without its relation) */
    int outermost;   /* relations: index of the outermost match, else -1 */
};

/* Item `index` of a kind: the first scene from there on, in an order of its own, that can be asked it. TPO_ENOMEM when the arena is
 * full, INVALID_ARGUMENT for a direction on an image. Blind scores come from asking about the pixels of another index. */
int tpo_world_item(const struct tpo_world *w, struct tpo_arena *arena, enum tpo_world_kind kind, int n_frames,
                   enum tpo_world_phrasing phrasing, uint64_t index, struct tpo_world_item *out, struct tpo_error *err);

/* Right or wrong for every kind but boxes and descriptions: case, outer white space and a last full stop don't count. A letter stands alone or
 * before one of ) . : , and the option may follow: "(B)", "b", "(B) blue", "B: blue". Stricter than MVBench's published rule, which compares the
 * first word and lets a part of it do: there "a red ball" is (A), and so is an empty answer. */
bool tpo_world_answer_right(const struct tpo_world_item *item, const char *text);

struct tpo_world_f1 {
    int right, said, real; /* precision right / said, recall right / real, as multisets */
    bool exact;
};
/* Parses the tuples out of a description (what isn't a tuple is passed over) and compares. */
struct tpo_world_f1 tpo_world_description_score(const struct tpo_world_item *item, const char *text);

float tpo_world_iou(const float a[4], const float b[4]);

/* What no look at the picture, or only a careless one, scores on the same items. Shares of items; NaN where it makes no sense. */
struct tpo_world_guess {
    int n;
    float random_object;   /* boxes: any object, Acc@0.5 */
    float random_match;    /* relations, next to: any object that matches the head */
    float outermost_match; /* relations */
    float constant_box;    /* the best single box for these very items, Acc@0.5 */
    float majority;        /* text: the commonest answer of these items, per asked attribute; of a half, per axis */
    float best;            /* the largest of these */
};
struct tpo_world_guesser;
struct tpo_world_guesser *tpo_world_guesser_open(void);
int tpo_world_guesser_add(struct tpo_world_guesser *g, const struct tpo_world_item *item); /* copies what it needs */
struct tpo_world_guess tpo_world_guesser_result(const struct tpo_world_guesser *g, enum tpo_world_kind kind, bool hard_only);
void tpo_world_guesser_close(struct tpo_world_guesser *g);

/* --- tpo world ---------------------------------------------------------------------------------------------------------------- */

/* Writes media, annotation files, a corpus for the tokenizer, or sentences to read; --help says all. Its exit status. */
int tpo_world_main(int argc, char **argv);

#endif
