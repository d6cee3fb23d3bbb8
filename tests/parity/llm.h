/* llm.h -- what the language model's cases share with others. */
#ifndef TPO_TESTS_PARITY_LLM_H
#define TPO_TESTS_PARITY_LLM_H

#include "tests/parity/model.h"

/* Which visual row each flagged row takes, -1 elsewhere; malloc'd. Fails when the flags do not number `rows`. */
int32_t *tpo_parity_visual_index(struct tpo_case *c, const char *name, int n, int rows);
/* Cases that feed a prompt and then token by token: greedy decoding, the side step of a task vector. */
void tpo_parity_decode(struct tpo_parity_model *m, struct tpo_case *c);

#endif
