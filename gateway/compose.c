/* This file owns the answer while it is put together. */
#include "gateway/compose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

/* A string member on the heap; the empty one is protobuf-c's own, which its free knows. */
static char *keep(struct tpo_answer *a, const char *text)
{
    if (text == NULL || text[0] == '\0') return (char *)protobuf_c_empty_string;
    char *copy = strdup(text);
    if (copy == NULL) a->failed = true;
    return copy != NULL ? copy : (char *)protobuf_c_empty_string;
}

static void *make(struct tpo_answer *a, const ProtobufCMessageDescriptor *type)
{
    ProtobufCMessage *m = calloc(1, type->sizeof_message);
    if (m == NULL)
        a->failed = true;
    else
        type->message_init(m);
    return m;
}

/* Puts an element into a list of pointers, at its end or before the place `at`. Frees it when there is no memory. */
static bool insert(struct tpo_answer *a, void *list, size_t *n, size_t at, void *message)
{
    void **items = message == NULL ? NULL : realloc(*(void **)list, (*n + 1) * sizeof(void *));
    if (items == NULL) {
        a->failed = true;
        if (message != NULL) protobuf_c_message_free_unpacked(message, NULL);
        return false;
    }
    memmove(items + at + 1, items + at, (*n - at) * sizeof(void *));
    items[at] = message;
    *(void **)list = items;
    ++*n;
    return true;
}

int tpo_answer_init(struct tpo_answer *a, const char *request_id)
{
    *a = (struct tpo_answer){.response = TPO__V1__PERCEIVE_RESPONSE__INIT};
    a->response.request_id = keep(a, request_id);
    return a->failed ? TPO_ENOMEM : TPO_OK;
}

static void free_part(void *response, void *part)
{
    if (part != response) free(part);
}

void tpo_answer_free(struct tpo_answer *a)
{
    /* The response lies in our struct: all that it points to goes, itself not. No memory is asked for, as there may be none. */
    ProtobufCAllocator parts = {.free = free_part, .allocator_data = &a->response};
    tpo_text_free(&a->text);
    a->response.text = (char *)protobuf_c_empty_string;
    protobuf_c_message_free_unpacked(&a->response.base, &parts);
    *a = (struct tpo_answer){.response = TPO__V1__PERCEIVE_RESPONSE__INIT};
}

void tpo_answer_media(struct tpo_answer *a, const Tpo__V1__MediaInfo *media)
{
    Tpo__V1__MediaInfo *m = make(a, &tpo__v1__media_info__descriptor);
    if (m == NULL) return;
    m->id = keep(a, media->id);
    m->width = media->width;
    m->height = media->height;
    m->duration_s = media->duration_s;
    for (size_t i = 0; i < media->n_frames; i++) {
        Tpo__V1__Frame *f = make(a, &tpo__v1__frame__descriptor);
        if (f != NULL) {
            f->index = media->frames[i]->index;
            f->time_s = media->frames[i]->time_s;
        }
        insert(a, &m->frames, &m->n_frames, m->n_frames, f);
    }
    a->response.media = m;
}

void tpo_answer_text(struct tpo_answer *a, const char *text)
{
    tpo_text_puts(&a->text, text);
    a->failed |= a->text.failed;
}

Tpo__V1__Call *tpo_answer_call(struct tpo_answer *a, const char *task, uint32_t text_offset)
{
    Tpo__V1__Call *c = make(a, &tpo__v1__call__descriptor);
    if (c == NULL) return NULL;
    c->task = keep(a, task);
    c->text_offset = text_offset;
    return insert(a, &a->response.calls, &a->response.n_calls, a->response.n_calls, c) ? c : NULL;
}

static float clamp(float v)
{
    return !(v > 0) ? 0 : v > 1 ? 1 : v;
}

Tpo__V1__Box *tpo_answer_box(struct tpo_answer *a, uint32_t call, const Tpo__V1__Rect *from)
{
    Tpo__V1__Box *b = make(a, &tpo__v1__box__descriptor);
    if (b == NULL) return NULL;
    b->normalised = make(a, &tpo__v1__rect__descriptor);
    b->pixels = make(a, &tpo__v1__rect__descriptor);
    if (b->normalised == NULL || b->pixels == NULL) {
        protobuf_c_message_free_unpacked(&b->base, NULL);
        return NULL;
    }
    Tpo__V1__Rect *n = b->normalised, *p = b->pixels;
    n->x0 = clamp(fminf(from->x0, from->x1));
    n->y0 = clamp(fminf(from->y0, from->y1));
    n->x1 = clamp(fmaxf(from->x0, from->x1));
    n->y1 = clamp(fmaxf(from->y0, from->y1));
    const Tpo__V1__MediaInfo *m = a->response.media;
    float w = m != NULL ? (float)m->width : 0, h = m != NULL ? (float)m->height : 0;
    p->x0 = n->x0 * w;
    p->y0 = n->y0 * h;
    p->x1 = n->x1 * w;
    p->y1 = n->y1 * h;
    b->call = call;
    size_t at = a->response.n_boxes;
    while (at > 0 && a->response.boxes[at - 1]->call > call) at--;
    return insert(a, &a->response.boxes, &a->response.n_boxes, at, b) ? b : NULL;
}

#define TAKE(noun, type, list)                                                                                                     \
    type *tpo_answer_take_##noun(struct tpo_answer *a, uint32_t call, type **part)                                                 \
    {                                                                                                                              \
        type *m = *part;                                                                                                           \
        size_t at = a->response.n_##list;                                                                                          \
        *part = NULL;                                                                                                              \
        m->call = call;                                                                                                            \
        while (at > 0 && a->response.list[at - 1]->call > call) at--;                                                              \
        return insert(a, &a->response.list, &a->response.n_##list, at, m) ? m : NULL;                                              \
    }
TAKE(moment, Tpo__V1__Moment, moments)
TAKE(saliency, Tpo__V1__Saliency, saliency)
TAKE(track, Tpo__V1__Track, tracks)

Tpo__V1__Error *tpo_error_message(const struct tpo_error *err, const char *request_id)
{
    struct tpo_answer scratch = {0};
    Tpo__V1__Error *e = make(&scratch, &tpo__v1__error__descriptor);
    if (e == NULL) return NULL;
    const char *message = err->message[0] != '\0' ? err->message : tpo_status_sentence(err->code);
    e->code = keep(&scratch, tpo_status_name(err->code));
    e->reason = keep(&scratch, err->reason);
    e->message = keep(&scratch, tpo_utf8_valid(message, strlen(message)) ? message : tpo_status_sentence(err->code));
    e->stage = keep(&scratch, err->stage[0] != '\0' ? err->stage : "gateway");
    e->request_id = keep(&scratch, request_id);
    return e;
}

void tpo_answer_stage(struct tpo_answer *a, const struct tpo_stage_result *s)
{
    Tpo__V1__Stage *g = make(a, &tpo__v1__stage__descriptor);
    if (g != NULL) {
        g->name = keep(a, s->name);
        g->instance = keep(a, s->instance);
        g->cache = keep(a, s->cache);
        g->digest = keep(a, s->digest);
        g->queue_ms = isfinite(s->queue_ms) ? s->queue_ms : 0;
        g->run_ms = isfinite(s->run_ms) ? s->run_ms : 0;
        g->version = s->version;
        g->hop_ms = isfinite(s->hop_ms) && s->hop_ms > 0 ? s->hop_ms : 0;
        if (s->err != NULL) g->error = tpo_error_message(s->err, a->response.request_id);
    }
    insert(a, &a->response.stages, &a->response.n_stages, a->response.n_stages, g);
}

void tpo_answer_usage(struct tpo_answer *a, uint32_t prompt_tokens, uint32_t completion_tokens, double total_ms)
{
    if (a->response.usage == NULL) a->response.usage = make(a, &tpo__v1__usage__descriptor);
    if (a->response.usage == NULL) return;
    a->response.usage->prompt_tokens = prompt_tokens;
    a->response.usage->completion_tokens = completion_tokens;
    a->response.usage->total_ms = total_ms;
}

void tpo_answer_finish_reason(struct tpo_answer *a, const char *reason)
{
    a->response.finish_reason = keep(a, reason);
}

void tpo_answer_error(struct tpo_answer *a, const struct tpo_error *err)
{
    a->response.error = tpo_error_message(err, a->response.request_id);
}

const Tpo__V1__PerceiveResponse *tpo_answer_response(struct tpo_answer *a)
{
    a->response.text = a->text.data != NULL ? a->text.data : (char *)protobuf_c_empty_string;
    return &a->response;
}
