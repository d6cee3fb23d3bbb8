/* This file owns the checks of a request. */
#include "gateway/request_check.h"

#include <math.h>
#include <string.h>

#include "common/limits.h"
#include "common/sha256.h"
#include "common/text.h"

#define TURNS_MAX 256

static int bad(struct tpo_error *err, const char *reason, const char *message)
{
    return tpo_fail(err, TPO_INVALID_ARGUMENT, reason, "%s", message);
}

static int check_turns(const Tpo__V1__PerceiveRequest *q, size_t text_max, struct tpo_error *err)
{
    if (q->n_turns == 0) return bad(err, "turns", "turns: none are given; the last one is the user's question");
    if (q->n_turns > TURNS_MAX) return bad(err, "turns", "turns: over 256");
    for (size_t i = 0; i < q->n_turns; i++) {
        const Tpo__V1__Turn *t = q->turns[i];
        if (strcmp(t->role, "system") != 0 && strcmp(t->role, "user") != 0 && strcmp(t->role, "assistant") != 0)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "turns[%zu].role: system, user or assistant expected", i);
        if (strlen(t->text) > text_max)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "text_too_long", "turns[%zu].text: %zu bytes, at most %zu", i,
                            strlen(t->text), text_max);
    }
    const Tpo__V1__Turn *last = q->turns[q->n_turns - 1];
    if (strcmp(last->role, "user") != 0) return bad(err, "turns", "turns: the last one must be the user's");
    if (last->text[strspn(last->text, " \t\r\n")] == '\0') return bad(err, "turns", "turns: the last one is empty");
    return TPO_OK;
}

static int check_media(const Tpo__V1__PerceiveRequest *q, struct tpo_error *err)
{
    if (q->n_media > 1) return tpo_fail(err, TPO_UNIMPLEMENTED, "multi_media", "media: one video or image per request");
    if (q->n_media == 0) return TPO_OK;
    const Tpo__V1__MediaSource *m = q->media[0];
    if ((m->id[0] != '\0') == (m->data.len > 0)) return bad(err, "media", "media[0]: either id or data");
    if (m->id[0] != '\0' && !tpo_sha256_is_hex(m->id))
        return bad(err, "media_id", "media[0].id: 64 lower-case hex digits expected");
    return TPO_OK;
}

static size_t count_marks(const char *text)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, "{box}")) != NULL; at += 5) n++;
    return n;
}

static int check_boxes(const Tpo__V1__PerceiveRequest *q, struct tpo_error *err)
{
    if (q->n_boxes == 0) return TPO_OK;
    if (q->n_boxes > TPO_BOXES_MAX) return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes: over %d", TPO_BOXES_MAX);
    if (q->n_media == 0) return bad(err, "box_without_media", "boxes: there is no picture they could lie in");
    if (count_marks(q->turns[q->n_turns - 1]->text) > q->n_boxes) return bad(err, "box_missing", "turns: more {box} than boxes");
    for (size_t i = 0; i < q->n_boxes; i++) {
        const Tpo__V1__Rect *r = q->boxes[i]->rect;
        if (r == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes[%zu].rect: missing", i);
        if (!isfinite(r->x0) || !isfinite(r->y0) || !isfinite(r->x1) || !isfinite(r->y1))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes[%zu]: not finite", i);
        if (r->x0 > r->x1 || r->y0 > r->y1)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes[%zu]: inverted, x0 <= x1 and y0 <= y1 expected", i);
        if (r->x0 < 0 || r->y0 < 0 || (q->boxes[i]->normalised && (r->x1 > 1 || r->y1 > 1)))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes[%zu]: outside the picture", i);
    }
    return TPO_OK;
}

static int check_numbers(const Tpo__V1__PerceiveRequest *q, const struct tpo_gateway_settings *s, struct tpo_error *err)
{
    if (q->request_id[0] != '\0' && !tpo_id_valid(q->request_id, TPO_REQUEST_ID_MAX))
        return bad(err, "request_id", "requestId: at most 64 of [A-Za-z0-9._-]");
    if (q->task[0] != '\0' && !tpo_id_valid(q->task, 31)) return bad(err, "task", "task: auto, none or a task's name");
    if (q->max_new_tokens > s->tokens_max)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "max_new_tokens", "maxNewTokens: at most %u", s->tokens_max);
    if (!(q->temperature >= 0 && q->temperature <= 100)) return bad(err, "temperature", "temperature: 0 .. 100");
    if (!(q->top_p >= 0 && q->top_p <= 1)) return bad(err, "top_p", "topP: 0 .. 1");
    if (q->timeout_ms > (uint32_t)s->timeout_max_ms)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "timeout", "timeoutMs: at most %d", s->timeout_max_ms);
    return TPO_OK;
}

int tpo_request_check(const Tpo__V1__PerceiveRequest *q, const struct tpo_gateway_settings *s, struct tpo_error *err)
{
    int rc = check_turns(q, s->text_max_bytes, err);
    if (rc == TPO_OK) rc = check_media(q, err);
    if (rc == TPO_OK) rc = check_boxes(q, err);
    if (rc == TPO_OK) rc = check_numbers(q, s, err);
    return rc;
}

int tpo_request_boxes(const Tpo__V1__PerceiveRequest *q, const Tpo__V1__MediaInfo *media, Tpo__V1__Rect *rects,
                      struct tpo_error *err)
{
    for (size_t i = 0; i < q->n_boxes; i++) {
        const Tpo__V1__Rect *r = q->boxes[i]->rect;
        float w = q->boxes[i]->normalised ? 1 : (float)media->width, h = q->boxes[i]->normalised ? 1 : (float)media->height;
        if (r->x1 > w || r->y1 > h)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_invalid", "boxes[%zu]: outside the picture of %u x %u", i, media->width,
                            media->height);
        tpo__v1__rect__init(&rects[i]);
        rects[i].x0 = r->x0 / w;
        rects[i].y0 = r->y0 / h;
        rects[i].x1 = r->x1 / w;
        rects[i].y1 = r->y1 / h;
    }
    return TPO_OK;
}

const char *tpo_request_media_kind(const Tpo__V1__MediaInfo *media)
{
    if (media == NULL) return "";
    return media->duration_s > 0 || media->n_frames > 1 ? "video" : "image";
}
