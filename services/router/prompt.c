/* This file owns the text around a question and its ids. */
#include "services/router/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/text.h"

#define QUESTION_OPEN       " [INST] "
#define QUESTION_CLOSE_LAST " [/INST] "
#define QUESTION_CLOSE      " [/INST]"
#define BOX                 "{box}"

/* What one build needs besides the prompt. */
struct build {
    struct tpo_prompt *p;
    const struct tpo_tokenizer *t;
    const struct tpo_config *c; /* NULL for the kit's templates */
    bool bos, added;
    int ids_max; /* 0: no bound */
    struct tpo_error *err;
};

void tpo_prompt_free(struct tpo_prompt *p)
{
    free(p->ids);
    free(p->visual);
    free(p->labels);
    free(p->weights);
    free(p->slots);
    tpo_ids_free(&p->words);
    tpo_ids_free(&p->piece);
    memset(p, 0, sizeof(*p));
}

static int no_memory(struct build *b)
{
    return tpo_fail(b->err, TPO_ENOMEM, "memory", "no memory for a prompt");
}

static int reserve(struct build *b, int more)
{
    struct tpo_prompt *p = b->p;
    if (p->capacity - p->n >= more) return TPO_OK;
    size_t capacity = (size_t)(p->n + more + p->capacity);
    int32_t **lists[] = {&p->ids, &p->visual, &p->labels};
    for (int i = 0; i < 3; i++) {
        int32_t *grown = realloc(*lists[i], capacity * sizeof(*grown));
        if (grown == NULL) return no_memory(b);
        *lists[i] = grown;
    }
    float *weights = realloc(p->weights, capacity * sizeof(*weights));
    if (weights == NULL) return no_memory(b);
    p->weights = weights;
    p->capacity = (int)capacity;
    return TPO_OK;
}

static int push(struct build *b, int32_t id, int32_t visual, int32_t label, float weight)
{
    struct tpo_prompt *p = b->p;
    if (b->ids_max > 0 && p->n >= b->ids_max)
        return tpo_fail(b->err, TPO_INVALID_ARGUMENT, "prompt_too_long", "the prompt takes more than %d tokens", b->ids_max);
    int rc = reserve(b, 1);
    if (rc != TPO_OK) return rc;
    p->ids[p->n] = id;
    p->visual[p->n] = visual;
    p->labels[p->n] = label;
    p->weights[p->n++] = weight;
    return TPO_OK;
}

static int push_all(struct build *b, const struct tpo_ids *list, bool labelled, float weight)
{
    int rc = TPO_OK;
    for (int i = 0; i < list->n && rc == TPO_OK; i++)
        rc = push(b, list->ids[i], -1, labelled ? list->ids[i] : TPO_LABEL_NONE, labelled ? weight : 0);
    return rc;
}

/* BOS and the ids of one text segment. */
static int segment(struct build *b, const char *text)
{
    int rc = b->bos ? push(b, TPO_ID_BOS, -1, TPO_LABEL_NONE, 0) : TPO_OK;
    b->p->piece.n = 0;
    if (rc == TPO_OK) rc = tpo_tokenizer_encode(b->t, &b->p->piece, text, strlen(text), b->added, b->err);
    return rc == TPO_OK ? push_all(b, &b->p->piece, false, 0) : rc;
}

/* The segment of the last question: `text` with the first n_boxes marks turned into <track_box>. Its ids and ends stay in p->words. */
static int segment_with_boxes(struct build *b, const char *text, int n_boxes)
{
    struct tpo_prompt *p = b->p;
    const char *at = text;
    int rc = TPO_OK;
    p->words.n = 0;
    p->question = p->n;
    if (b->bos && tpo_ids_push(&p->words, TPO_ID_BOS, 0) != TPO_OK) return no_memory(b);
    for (int i = 0; i <= n_boxes && rc == TPO_OK; i++) {
        const char *mark = i < n_boxes ? strstr(at, BOX) : NULL;
        size_t length = mark != NULL ? (size_t)(mark - at) : strlen(at);
        int first = p->words.n;
        rc = tpo_tokenizer_encode(b->t, &p->words, at, length, b->added, b->err);
        for (int k = first; k < p->words.n; k++) p->words.ends[k] += (int32_t)(at - text);
        if (mark == NULL) break;
        at = mark + strlen(BOX);
        if (rc == TPO_OK && tpo_ids_push(&p->words, b->c->track_box_id, (int32_t)(at - text)) != TPO_OK) rc = no_memory(b);
        p->n_boxes++;
    }
    return rc == TPO_OK ? push_all(b, &p->words, false, 0) : rc;
}

static int count_marks(const char *text)
{
    int n = 0;
    for (text = strstr(text, BOX); text != NULL; text = strstr(text + strlen(BOX), BOX)) n++;
    return n;
}

static int last_question(struct build *b, const char *question, int n_boxes)
{
    struct tpo_text text = {0};
    int marks = n_boxes > 0 ? count_marks(question) : 0;
    if (marks > n_boxes)
        return tpo_fail(b->err, TPO_INVALID_ARGUMENT, "box_missing", "the question has %d {box} and %d boxes came along", marks,
                        n_boxes);
    if (n_boxes > TPO_BOXES_MAX)
        return tpo_fail(b->err, TPO_INVALID_ARGUMENT, "box_missing", "%d boxes, at most %d can be asked about", n_boxes,
                        TPO_BOXES_MAX);
    tpo_text_add(&text, QUESTION_OPEN, strlen(QUESTION_OPEN));
    tpo_text_add(&text, question, strlen(question));
    for (int i = marks; i < n_boxes; i++) tpo_text_add(&text, " " BOX, 1 + strlen(BOX));
    tpo_text_add(&text, QUESTION_CLOSE_LAST, strlen(QUESTION_CLOSE_LAST));
    b->p->question_bytes = (int)strlen(question);
    int rc = text.failed ? no_memory(b) : segment_with_boxes(b, text.data, n_boxes);
    tpo_text_free(&text);
    return rc;
}

static int earlier_question(struct build *b, const char *question)
{
    struct tpo_text text = {0};
    tpo_text_printf(&text, QUESTION_OPEN "%s" QUESTION_CLOSE, question);
    int rc = text.failed ? no_memory(b) : segment(b, text.data);
    tpo_text_free(&text);
    return rc;
}

/* An answer and its </s>. In training it is labelled and its slots are noted. */
static int answer(struct build *b, const char *text, bool train, float weight, float weight_end)
{
    struct tpo_prompt *p = b->p;
    int first = p->n;
    p->piece.n = 0;
    int rc = tpo_tokenizer_encode(b->t, &p->piece, text, strlen(text), train, b->err);
    if (rc == TPO_OK) rc = push_all(b, &p->piece, train, weight);
    if (rc == TPO_OK) rc = push(b, TPO_ID_EOS, -1, train ? TPO_ID_EOS : TPO_LABEL_NONE, train ? weight * weight_end : 0);
    for (int i = first; train && i < p->n && rc == TPO_OK; i++)
        for (int k = 0; k < b->c->n_tasks && rc == TPO_OK; k++) {
            if (p->ids[i] != b->c->tasks[k].slot_id) continue;
            if (p->n_slots == p->slot_capacity) {
                struct tpo_slot *grown = realloc(p->slots, (size_t)(p->slot_capacity + 8) * sizeof(*grown));
                if (grown == NULL) return no_memory(b);
                p->slots = grown;
                p->slot_capacity += 8;
            }
            p->slots[p->n_slots++] = (struct tpo_slot){i, k};
        }
    return rc;
}

static const char *tag_of(const char *media_kind)
{
    return strcmp(media_kind, "video") == 0 ? "Video" : "Image";
}

static int visual_block(struct build *b, const char *tag, int queries)
{
    char text[32];
    snprintf(text, sizeof(text), "[INST] <%s>", tag);
    int rc = segment(b, text);
    for (int i = 0; i < queries && rc == TPO_OK; i++) rc = push(b, TPO_ID_UNK, i, TPO_LABEL_NONE, 0);
    b->p->n_prefix = b->p->n;
    return rc;
}

/* Part 1: the visual block and the text `after` its end tag, which is cut at its end as the demo does. `rest` continues the segment. */
static int opening(struct build *b, const char *media_kind, int queries, const char *message, const char *rest)
{
    struct tpo_text text = {0};
    size_t length = strlen(message);
    while (length > 0 && strchr(" \t\r\n\v\f", message[length - 1]) != NULL) length--;
    int rc = media_kind != NULL ? visual_block(b, tag_of(media_kind), queries) : TPO_OK;
    if (media_kind != NULL)
        tpo_text_printf(&text, "</%s>%.*s[/INST]%s", tag_of(media_kind), (int)length, message, rest);
    else
        tpo_text_printf(&text, "[INST] %.*s[/INST]%s", (int)length, message, rest);
    if (rc == TPO_OK) rc = text.failed ? no_memory(b) : segment(b, text.data);
    tpo_text_free(&text);
    return rc;
}

int tpo_prompt_timestamps(char *out, size_t size, const double *frame_times_s, int n_frames)
{
    int used = snprintf(out, size, " The video contains %d frames sampled at ", n_frames);
    for (int i = 0; i < n_frames; i++)
        used += snprintf((size_t)used < size ? out + used : NULL, (size_t)used < size ? size - (size_t)used : 0, "%s%.1f",
                         i > 0 ? ", " : "", frame_times_s[i]);
    used += snprintf((size_t)used < size ? out + used : NULL, (size_t)used < size ? size - (size_t)used : 0, " seconds.");
    return used;
}

static struct build begin(struct tpo_prompt *p, const struct tpo_tokenizer *t, const struct tpo_config *c, struct tpo_error *err)
{
    p->n = p->n_prefix = p->question = p->answer = p->n_slots = p->n_boxes = p->question_bytes = 0;
    p->words.n = 0;
    return (struct build){p, t, c, c == NULL || c->bos_per_segment, false, 0, err};
}

/* Timestamps, then the system text after a space; an empty one where there is neither. */
static int open_conversation(struct build *b, const char *media_kind, int queries, const char *system, const double *times,
                             int n_frames)
{
    struct tpo_text message = {0};
    if (n_frames > 0) {
        int length = tpo_prompt_timestamps(NULL, 0, times, n_frames);
        char *text = malloc((size_t)length + 1);
        if (text == NULL) return no_memory(b);
        tpo_prompt_timestamps(text, (size_t)length + 1, times, n_frames);
        tpo_text_add(&message, text, (size_t)length);
        free(text);
    }
    if (system != NULL && system[0] != '\0')
        tpo_text_printf(&message, "%s%s", media_kind != NULL || n_frames > 0 ? " " : "", system);
    int rc = message.failed ? no_memory(b) : TPO_OK;
    bool any = message.size > 0;
    if (rc == TPO_OK && (media_kind != NULL || any)) rc = opening(b, media_kind, queries, any ? message.data : "", "");
    tpo_text_free(&message);
    return rc;
}

static int check_turns(const struct tpo_prompt_request *q, struct tpo_error *err)
{
    size_t bytes = 0;
    bool system = q->n_turns > 0 && strcmp(q->turns[0].role, "system") == 0;
    if (q->n_turns - system < 1) return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "there is no user turn");
    for (int i = 0; i < q->n_turns; i++) {
        const char *want = i == 0 && system ? "system" : (i - system) % 2 == 0 ? "user" : "assistant";
        if (strcmp(q->turns[i].role, want) != 0)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "turn %d is not the %s's: system, then user and assistant by turns",
                            i, want);
        size_t length = strlen(q->turns[i].text);
        if (!tpo_utf8_valid(q->turns[i].text, length))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "utf8", "turn %d is not UTF-8", i);
        bytes += length;
    }
    if ((q->n_turns - system) % 2 == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "the last turn must be the user's");
    if (bytes > TPO_PROMPT_TEXT_MAX)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "prompt_too_long", "%zu bytes of text, at most %d", bytes, TPO_PROMPT_TEXT_MAX);
    return TPO_OK;
}

int tpo_prompt_serve(struct tpo_prompt *p, const struct tpo_tokenizer *t, const struct tpo_config *c,
                     const struct tpo_prompt_request *q, struct tpo_error *err)
{
    struct build b = begin(p, t, c, err);
    int rc = check_turns(q, err);
    if (rc != TPO_OK) return rc;
    b.ids_max = q->ids_max;
    bool system = strcmp(q->turns[0].role, "system") == 0;
    const char *question = q->turns[q->n_turns - 1].text;
    bool times = q->media_kind != NULL && strcmp(q->media_kind, "video") == 0 && strstr(question, "timestamp") != NULL;
    rc = open_conversation(&b, q->media_kind, q->queries, system ? q->turns[0].text : NULL, q->frame_times_s,
                           times ? q->n_frames : 0);
    for (int i = system; i < q->n_turns - 1 && rc == TPO_OK; i++)
        rc = (i - system) % 2 == 0 ? earlier_question(&b, q->turns[i].text) : answer(&b, q->turns[i].text, false, 0, 0);
    if (rc == TPO_OK) rc = last_question(&b, question, q->n_boxes);
    p->answer = p->n;
    return rc;
}

static void cut(struct tpo_prompt *p, int32_t track_box)
{
    if (p->n <= TPO_PROMPT_DEMO_MAX) return;
    p->n = TPO_PROMPT_DEMO_MAX;
    while (p->n_slots > 0 && p->slots[p->n_slots - 1].position >= p->n) p->n_slots--;
    p->n_boxes = 0;
    for (int i = 0; i < p->n; i++) p->n_boxes += p->ids[i] == track_box;
    if (p->answer > p->n) p->answer = p->n;
}

int tpo_prompt_train(struct tpo_prompt *p, const struct tpo_tokenizer *t, const struct tpo_config *c,
                     const struct tpo_conversation *conversation, const char *media_kind, int queries, struct tpo_error *err)
{
    struct build b = begin(p, t, c, err);
    int last = conversation->n_turns - 1;
    if (last < 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "a conversation without turns");
    int rc = open_conversation(&b, media_kind, queries, conversation->system, NULL, 0);
    for (int i = 0; i <= last && rc == TPO_OK; i++) {
        const struct tpo_turn *turn = &conversation->turns[i];
        rc = i < last ? earlier_question(&b, turn->question) : last_question(&b, turn->question, conversation->n_user_boxes);
        p->answer = p->n;
        if (rc == TPO_OK) rc = answer(&b, turn->answer, true, conversation->weight, conversation->weight_end);
    }
    if (rc == TPO_OK) cut(p, c->track_box_id);
    return rc;
}

int tpo_prompt_word(const struct tpo_prompt *p, int byte_offset)
{
    if (byte_offset < 0 || byte_offset >= p->question_bytes) return -1;
    for (int i = 0; i < p->words.n && p->question + i < p->n; i++)
        if (p->words.ends[i] - (int)strlen(QUESTION_OPEN) > byte_offset) return p->question + i;
    return -1;
}

int tpo_prompt_answer_word(const struct tpo_prompt *p, int byte_offset)
{
    for (int i = 0; byte_offset >= 0 && i < p->piece.n && p->answer + i < p->n; i++)
        if (p->piece.ends[i] > byte_offset) return p->answer + i;
    return -1;
}

int tpo_prompt_template(struct tpo_prompt *p, const struct tpo_tokenizer *t, bool bos_per_segment, bool chat,
                        const char *media_kind, int queries, const char *message, const char *question, const char *answer_prefix,
                        struct tpo_error *err)
{
    struct build b = begin(p, t, NULL, err);
    struct tpo_text text = {0};
    b.bos = bos_per_segment;
    b.added = true;
    tpo_text_printf(&text, QUESTION_OPEN "%s%s", question, chat ? QUESTION_CLOSE : QUESTION_CLOSE_LAST);
    if (chat && answer_prefix != NULL && answer_prefix[0] != '\0') tpo_text_puts(&text, answer_prefix);
    int rc = text.failed ? no_memory(&b) : opening(&b, media_kind, queries, message, chat ? text.data : "");
    if (rc == TPO_OK && !chat) rc = segment(&b, text.data);
    if (!chat && p->n > TPO_PROMPT_DEMO_MAX) p->n = TPO_PROMPT_DEMO_MAX;
    p->answer = p->n;
    tpo_text_free(&text);
    return rc;
}
