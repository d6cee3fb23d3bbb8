/* This file owns what the router checks and reads of a request before it takes it in. */
#include "services/router/admission.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/media/media.h"

#define PROMPT_IDS_MAX 4096
#define TURNS_MAX      256

/* Each turn takes a few ids and each time a few bytes of the prompt, however short its message is. */
static int check_counts(const struct tpo_router_request *q, const struct tpo_config *c, struct tpo_error *err)
{
    if (q->n_turns > TURNS_MAX) return tpo_fail(err, TPO_INVALID_ARGUMENT, "turns", "%d turns, at most %d", q->n_turns, TURNS_MAX);
    if (q->n_frames > c->vision_encoder.num_frames)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "frames", "%d frames, the model takes %d at most", q->n_frames,
                        c->vision_encoder.num_frames);
    for (int i = 0; i < q->n_frames; i++)
        if (!(q->frame_times_s[i] >= 0 && q->frame_times_s[i] <= TPO_MEDIA_SECONDS_MAX))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "frames", "the time of frame %d is not from 0 to %.0f s", i,
                            TPO_MEDIA_SECONDS_MAX);
    return TPO_OK;
}

int tpo_admission_check(const struct tpo_router_request *q, const struct tpo_config *c, struct tpo_error *err)
{
    const char *kind = q->media_kind;
    if (q->visual != NULL && (kind == NULL || (strcmp(kind, "image") != 0 && strcmp(kind, "video") != 0)))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_kind", "visual tokens of a medium that is neither image nor video");
    if (!(q->temperature >= 0) || isinf(q->temperature) || !(q->top_p >= 0 && q->top_p <= 1))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "sampling", "temperature must be 0 or more, top_p from 0 to 1");
    if (q->max_new_tokens < 0 || q->max_new_tokens > 1 << 20)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "max_new_tokens", "from 1 to 1048576 tokens");
    for (int i = 0; i < q->n_boxes; i++)
        for (int k = 0; k < 4; k++)
            if (!isfinite(q->boxes[i][k]))
                return tpo_fail(err, TPO_INVALID_ARGUMENT, "box_range", "box %d holds a number that is none", i);
    return check_counts(q, c, err);
}

int tpo_admission_prompt(struct tpo_prompt *out, const struct tpo_router_request *q, const struct tpo_tokenizer *tokenizer,
                         const struct tpo_config *c, struct tpo_error *err)
{
    struct tpo_prompt_turn *turns = calloc((size_t)q->n_turns + 1, sizeof(*turns));
    if (turns == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %d turns", q->n_turns);
    for (int i = 0; i < q->n_turns; i++) turns[i] = (struct tpo_prompt_turn){q->turns[i].role, q->turns[i].text};
    const struct tpo_prompt_request p = {.n_turns = q->n_turns,
                                         .turns = turns,
                                         .n_boxes = q->n_boxes,
                                         .media_kind = q->visual != NULL ? q->media_kind : NULL,
                                         .queries = q->visual != NULL ? tpo_config_queries(c) : 0,
                                         .n_frames = q->n_frames,
                                         .frame_times_s = q->frame_times_s,
                                         .ids_max = PROMPT_IDS_MAX};
    int rc = tpo_prompt_serve(out, tokenizer, c, &p, err);
    free(turns);
    return rc;
}

int tpo_admission_least(int *rows, const struct tpo_tokenizer *tokenizer, const struct tpo_config *c, struct tpo_error *err)
{
    static const struct tpo_chat_turn turn = {"user", "What is in the picture?"};
    static const float some = 0; /* never read: only the number of rows counts */
    const struct tpo_router_request q = {.n_turns = 1, .turns = &turn, .media_kind = "image", .visual = &some};
    struct tpo_prompt prompt = {0};
    int rc = tpo_admission_prompt(&prompt, &q, tokenizer, c, err);
    *rows = prompt.n;
    tpo_prompt_free(&prompt);
    return rc;
}
