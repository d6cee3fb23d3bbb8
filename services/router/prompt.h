/* prompt.h -- the one place where a conversation becomes ids, for serving and for training (docs/model.md, Prompt).
 *
 *   with media   [INST] <Video>VISUAL</Video>system[/INST]        the same text around images is <Image>
 *   without      [INST] system[/INST]                             only when there is system text
 *   earlier turn  [INST] question [/INST]answer</s>
 *   last turn     [INST] question [/INST]                         with a space at both ends, then the answer follows
 * BOS (where the config says so) opens every segment: each of the strings above that is not an answer, and the text after the visual block. Every
 * segment is encoded by itself. What a user typed, answers in a history included, holds no added tokens: those that look so are text.
 * {box} in the last question becomes <track_box>, boxes left over follow it, each after a space; with no boxes it is text. */
#ifndef TPO_SERVICES_ROUTER_PROMPT_H
#define TPO_SERVICES_ROUTER_PROMPT_H

#include "nn/config.h"
#include "nn/sample.h"
#include "nn/tokenizer.h"

#define TPO_PROMPT_DEMO_MAX 1024        /* the demo form keeps this many ids and drops the rest */
#define TPO_PROMPT_TEXT_MAX (256 << 10) /* bytes of one prompt */
#define TPO_LABEL_NONE      (-100)

struct tpo_slot {
    int position; /* row of v_i */
    int task;     /* index into config.tasks */
};

struct tpo_prompt {
    int n;
    int32_t *ids;    /* 0 on visual rows */
    int32_t *visual; /* which visual row this is, or -1: id 0 alone does not tell */
    int32_t
        *labels; /* training: the row's own id where it is learned, else TPO_LABEL_NONE. A model predicts labels[i + 1] at row i */
    float *weights;         /* training: of labels, 0 where none */
    int n_prefix;           /* rows up to and with the last visual one: equal for all conversations about one medium; 0 without */
    int question;           /* first row of the last turn's segment */
    int answer;             /* training: first row of the last turn's answer; serving: n */
    struct tpo_slot *slots; /* training: slot tokens of the answers, in order */
    int n_slots;
    int n_boxes;          /* <track_box> rows, each takes the next user box */
    struct tpo_ids words; /* the last question's segment; ends count from its first byte */
    int question_bytes;
    struct tpo_ids piece; /* work space; after tpo_prompt_train the last answer without its </s>, ends count from its first byte */
    int capacity, slot_capacity;
};

void tpo_prompt_free(struct tpo_prompt *p); /* accepts the zeroed; a prompt is reused by building into it again */

struct tpo_prompt_turn {
    const char *role, *text; /* "system" (first only), "user", "assistant"; the last one is the user's */
};

/* For serving. queries 0: no media, kind NULL. frame_times_s (n_frames): told to the model when the last question says "timestamp" and the medium
 * is a video. INVALID_ARGUMENT: "turns", "utf8", "box_missing" (more {box} than boxes), "prompt_too_long" (more than `ids_max` ids). */
struct tpo_prompt_request {
    int n_turns;
    const struct tpo_prompt_turn *turns;
    int n_boxes;
    const char *media_kind; /* "image", "video" or NULL */
    int queries;
    int n_frames;
    const double *frame_times_s;
    int ids_max;
};
int tpo_prompt_serve(struct tpo_prompt *p, const struct tpo_tokenizer *t, const struct tpo_config *c,
                     const struct tpo_prompt_request *q, struct tpo_error *err);

/* For training: every turn with its answer, added tokens looked for in answers, </s> after each; cut at TPO_PROMPT_DEMO_MAX. Every answer and its
 * </s> are labelled, weight conversation->weight, times weight_end on </s>. The same errors. */
int tpo_prompt_train(struct tpo_prompt *p, const struct tpo_tokenizer *t, const struct tpo_config *c,
                     const struct tpo_conversation *conversation, const char *media_kind, int queries, struct tpo_error *err);

/* The row whose token covers this byte of the last question; -1 when there is none (past its end, or cut off). */
int tpo_prompt_word(const struct tpo_prompt *p, int byte_offset);
/* After tpo_prompt_train: the same of the last answer. */
int tpo_prompt_answer_word(const struct tpo_prompt *p, int byte_offset);

/* The kit's vectors: templates, so added tokens count in `question` and `message`. `chat` joins both parts into one string and leaves the
 * last space out; `answer_prefix` is the chat form's. The demo form is cut at TPO_PROMPT_DEMO_MAX. */
int tpo_prompt_template(struct tpo_prompt *p, const struct tpo_tokenizer *t, bool bos_per_segment, bool chat,
                        const char *media_kind, int queries, const char *message, const char *question, const char *answer_prefix,
                        struct tpo_error *err);

/* The timestamp sentence (docs/model.md, Prompt), with its leading space; returns its length (snprintf's rule). */
int tpo_prompt_timestamps(char *out, size_t size, const double *frame_times_s, int n_frames);

#endif
