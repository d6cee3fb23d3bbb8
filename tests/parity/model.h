/* model.h -- a whole model of a case's dimensions, its weights those of the case; modules use the parts they test. */
#ifndef TPO_TESTS_PARITY_MODEL_H
#define TPO_TESTS_PARITY_MODEL_H

#include "nn/tape.h"
#include "services/encoder/qformer.h"
#include "services/encoder/vit.h"
#include "services/router/decoder.h"
#include "tests/parity/case.h"

struct tpo_parity_model {
    struct tpo_config config; /* filled by the module before open */
    struct tpo_params params;
    struct tpo_vit vit;
    struct tpo_qformer qformer;
    struct tpo_decoder decoder;
    struct tpo_tape *tape; /* records where the case holds a gradient */
};

/* The published model's config, with one layer of everything, so that only what the module sets matters. */
void tpo_parity_config(struct tpo_config *c);
/* added_token_ids of the case, as the published three tasks; nothing happens without the key. */
void tpo_parity_tasks(struct tpo_case *c, struct tpo_config *config);
/* False after a failure; close in any case. */
bool tpo_parity_open(struct tpo_parity_model *m, struct tpo_case *c);
void tpo_parity_close(struct tpo_parity_model *m);
/* An operation failed: says so, once. */
void tpo_parity_check(struct tpo_parity_model *m, struct tpo_case *c);

/* Compares x (may be NULL: "could not be computed") with the tensor `name`, if the case holds it. */
void tpo_parity_compare(struct tpo_parity_model *m, struct tpo_case *c, const char *name, const struct tpo_tensor *x,
                        const bool *skip);
/* An input of the case as a tensor that takes a gradient where the case holds grad/NAME. */
struct tpo_tensor *tpo_parity_input(struct tpo_parity_model *m, struct tpo_case *c, const char *name, int rows, int cols);
/* Seeds x with input/functional, compares loss/functional, walks back and compares every gradient of parameters. */
void tpo_parity_functional(struct tpo_parity_model *m, struct tpo_case *c, struct tpo_tensor *x);
/* grad/NAME of an input that tpo_parity_input made. */
void tpo_parity_input_gradient(struct tpo_case *c, const char *name, const struct tpo_tensor *x);

#endif
