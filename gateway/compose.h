/* compose.h -- the answer as it grows: text, calls, what the heads found, how the stages went.
 *
 * A struct tpo_answer owns one PerceiveResponse, every part of it on the heap. The functions that return a part return it borrowed,
 * for an event; NULL when out of memory, which `failed` remembers. */
#ifndef TPO_GATEWAY_COMPOSE_H
#define TPO_GATEWAY_COMPOSE_H

#include <stdbool.h>

#include "common/status.h"
#include "common/text.h"
#include "encoder.pb-c.h"
#include "gateway.pb-c.h"
#include "head.pb-c.h"
#include "router.pb-c.h"

struct tpo_answer {
    Tpo__V1__PerceiveResponse response;
    struct tpo_text text;
    bool failed;
};

int tpo_answer_init(struct tpo_answer *a, const char *request_id);
void tpo_answer_free(struct tpo_answer *a);

void tpo_answer_media(struct tpo_answer *a, const Tpo__V1__MediaInfo *media);
void tpo_answer_text(struct tpo_answer *a, const char *text);
Tpo__V1__Call *tpo_answer_call(struct tpo_answer *a, const char *task, uint32_t text_offset);
/* The box is clamped to 0..1 and put in order; its pixels are those of the displayed picture. Boxes are kept in order of calls. */
Tpo__V1__Box *tpo_answer_box(struct tpo_answer *a, uint32_t call, const Tpo__V1__Rect *normalised);
/* These take the message out of *part (set to NULL). */
Tpo__V1__Moment *tpo_answer_take_moment(struct tpo_answer *a, uint32_t call, Tpo__V1__Moment **part);
Tpo__V1__Saliency *tpo_answer_take_saliency(struct tpo_answer *a, uint32_t call, Tpo__V1__Saliency **part);
Tpo__V1__Track *tpo_answer_take_track(struct tpo_answer *a, uint32_t call, Tpo__V1__Track **part);

struct tpo_stage_result {
    const char *name, *instance, *cache, *digest;
    double queue_ms, run_ms;
    uint64_t version;
    const struct tpo_error *err; /* NULL: none */
    double hop_ms;
};
void tpo_answer_stage(struct tpo_answer *a, const struct tpo_stage_result *s);
void tpo_answer_usage(struct tpo_answer *a, uint32_t prompt_tokens, uint32_t completion_tokens, double total_ms);
void tpo_answer_finish_reason(struct tpo_answer *a, const char *reason);
void tpo_answer_error(struct tpo_answer *a, const struct tpo_error *err);

/* The whole, borrowed. */
const Tpo__V1__PerceiveResponse *tpo_answer_response(struct tpo_answer *a);

/* A heap copy of the error as a message. */
Tpo__V1__Error *tpo_error_message(const struct tpo_error *err, const char *request_id);

#endif
