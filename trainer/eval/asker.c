/* This file owns the model under evaluation: one encoder, one router with its sequences, one region head. */
#include "trainer/eval/asker.h"

#include <stdlib.h>
#include <string.h>

#include "nn/config.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/router.h"

#define IN_FLIGHT     32
#define ANSWER_TOKENS 96
#define KV_BYTES      ((size_t)256 << 20)

struct tpo_asker {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_encoder *encoder;
    struct tpo_router *router;
    struct tpo_region *region;
    void (*answered)(void *owner); /* NULL: nobody watches */
    void *owner;
    struct tpo_error failed; /* the first of a run */
};

int tpo_asker_open(struct tpo_asker **out, struct tpo_stream *stream, const char *folder, struct tpo_error *err)
{
    struct tpo_asker *a = calloc(1, sizeof(*a));
    if (a == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the model");
    const struct tpo_router_options options = {
        .folder = folder, .merge_lora = true, .kv_bytes = KV_BYTES, .max_sequences = IN_FLIGHT, .prefill_tokens = 1024};
    int rc = tpo_config_load(&a->config, folder, err);
    a->stream = stream;
    if (rc == TPO_OK) rc = tpo_encoder_open(&a->encoder, a->stream, &a->config, folder, 0, 0, err);
    if (rc == TPO_OK) rc = tpo_router_open(&a->router, a->stream, &a->config, &options, err);
    if (rc == TPO_OK) rc = tpo_region_open(&a->region, a->stream, &a->config, folder, 0, err);
    if (rc != TPO_OK)
        tpo_asker_close(a);
    else
        *out = a;
    return rc;
}

void tpo_asker_close(struct tpo_asker *a)
{
    if (a == NULL) return;
    tpo_region_close(a->region);
    tpo_router_close(a->router);
    tpo_encoder_close(a->encoder);
    free(a);
}

void tpo_asker_watch(struct tpo_asker *a, void (*answered)(void *owner), void *owner)
{
    a->answered = answered;
    a->owner = owner;
}

int tpo_asker_side(const struct tpo_asker *a)
{
    return a->config.vision_encoder.img_size;
}

int tpo_asker_frames(const struct tpo_asker *a)
{
    const int most = a->config.vision_encoder.num_frames;
    return most < TPO_WORLD_FRAMES_MAX ? most : TPO_WORLD_FRAMES_MAX;
}

int tpo_asker_takes(const struct tpo_asker *a, int frames, struct tpo_error *err)
{
    return tpo_encoder_takes(&a->config, frames, err);
}

static void fail_run(struct tpo_asker *a, const struct tpo_error *err)
{
    if (a->failed.code == TPO_OK) a->failed = *err;
}

struct asked {
    struct tpo_asker *asker;
    struct tpo_asker_answer *answer;
    int *in_flight;
};

static int on_text(void *owner, const char *text, size_t length)
{
    struct tpo_asker_answer *to = ((struct asked *)owner)->answer;
    const size_t room = sizeof(to->text) - 1 - (size_t)to->length;
    if (length > room) length = room;
    memcpy(to->text + to->length, text, length);
    to->length += (int)length;
    return 0;
}

static int on_task(void *owner, const char *task, int index, int text_offset, const float *e, int D)
{
    struct asked *q = owner;
    struct tpo_error err = {0};
    (void)index, (void)text_offset, (void)D;
    if (strcmp(task, "region") != 0 || q->answer->called) return 0;
    q->answer->called = tpo_region_run(q->asker->region, q->answer->box, e, 1, &err) == TPO_OK;
    if (!q->answer->called) fail_run(q->asker, &err);
    return !q->answer->called;
}

static void on_done(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                    const struct tpo_error *err)
{
    struct asked *q = owner;
    (void)finish_reason, (void)prompt_tokens, (void)completion_tokens;
    if (status != TPO_OK) fail_run(q->asker, err);
    (*q->in_flight)--;
    if (q->asker->answered != NULL) q->asker->answered(q->asker->owner);
}

static int submit(struct tpo_asker *a, const struct tpo_world_item *item, const float *visual, struct asked *q,
                  struct tpo_error *err)
{
    static const double times[TPO_WORLD_FRAMES_MAX];
    const struct tpo_chat_turn turn = {"user", item->question};
    const struct tpo_router_request request = {.n_turns = 1,
                                               .turns = &turn,
                                               .task = "auto",
                                               .media_kind = item->n_frames == 1 ? "image" : "video",
                                               .visual = visual,
                                               .n_frames = item->n_frames,
                                               .frame_times_s = times,
                                               .max_new_tokens = ANSWER_TOKENS};
    const struct tpo_router_events on = {q, on_text, on_task, on_done, NULL};
    uint64_t handle;
    *q->answer = (struct tpo_asker_answer){0};
    return tpo_router_submit(a->router, &request, &on, &handle, err);
}

/* Question i about picture (i + shift) % n; IN_FLIGHT at a time. */
static int answer_all(struct tpo_asker *a, const struct tpo_world_item *items, int n, const float *visuals, int shift,
                      struct tpo_asker_answer *out, struct tpo_error *err)
{
    const size_t size = (size_t)tpo_config_queries(&a->config) * (size_t)a->config.bridge.hidden_size;
    struct asked *asked = calloc((size_t)n, sizeof(*asked));
    int in_flight = 0, rc = asked != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for questions");
    for (int i = 0; i < n && rc == TPO_OK && a->failed.code == TPO_OK;) {
        asked[i] = (struct asked){a, &out[i], &in_flight};
        rc = in_flight < IN_FLIGHT ? submit(a, &items[i], visuals + (size_t)((i + shift) % n) * size, &asked[i], err)
                                   : TPO_UNAVAILABLE;
        if (rc == TPO_OK) {
            in_flight++;
            i++;
        } else if (rc == TPO_UNAVAILABLE && in_flight > 0) {
            tpo_router_step(a->router);
            rc = TPO_OK;
        }
    }
    while (in_flight > 0) tpo_router_step(a->router);
    free(asked);
    if (rc != TPO_OK || a->failed.code == TPO_OK) return rc;
    if (err != NULL) *err = a->failed;
    return a->failed.code;
}

int tpo_asker_run(struct tpo_asker *a, const struct tpo_world_item *items, int n, struct tpo_asker_answer *seen,
                  struct tpo_asker_answer *blind, struct tpo_error *err)
{
    const size_t size = (size_t)tpo_config_queries(&a->config) * (size_t)a->config.bridge.hidden_size;
    a->failed = (struct tpo_error){0};
    if (n < 2 && blind != NULL)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "items", "a blind answer needs the picture of another item");
    float *visuals = malloc(sizeof(float) * size * (size_t)n);
    int rc = visuals != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %d pictures", n);
    for (int i = 0; i < n && rc == TPO_OK; i++)
        rc = tpo_encoder_run(a->encoder, visuals + (size_t)i * size, items[i].pixels, items[i].n_frames, err);
    if (rc == TPO_OK) rc = answer_all(a, items, n, visuals, 0, seen, err);
    if (rc == TPO_OK && blind != NULL) rc = answer_all(a, items, n, visuals, 1, blind, err);
    free(visuals);
    return rc;
}
