/* admission.h -- what the router checks and reads of a request before it takes it in. Private to the router. */
#ifndef TPO_SERVICES_ROUTER_ADMISSION_H
#define TPO_SERVICES_ROUTER_ADMISSION_H

#include "services/router/prompt.h"
#include "services/router/router.h"

/* INVALID_ARGUMENT "media_kind", "sampling", "max_new_tokens" or "box_range" for what no model could answer, "turns" (more than 256), "frames"
 * (more than the model's, or a time that no film has). */
int tpo_admission_check(const struct tpo_router_request *q, const struct tpo_config *c, struct tpo_error *err);
/* The prompt of the request's turns, boxes, frames and visual tokens; prompt.h's errors. Freed with tpo_prompt_free. */
int tpo_admission_prompt(struct tpo_prompt *out, const struct tpo_router_request *q, const struct tpo_tokenizer *tokenizer,
                         const struct tpo_config *c, struct tpo_error *err);
/* The rows of a short question about a picture, its visual rows among them. */
int tpo_admission_least(int *rows, const struct tpo_tokenizer *tokenizer, const struct tpo_config *c, struct tpo_error *err);

#endif
