/* case.h -- one golden case: its case.json and tensors, read without trust, and the comparison by the kit's rule.
 *
 * A module reads what it needs by name; the first thing that is missing, misshapen or out of tolerance is the case's failure,
 * and everything after it is quiet, so that a module reads straight through. An output, loss or gradient that the case holds and
 * the module never compared is a failure too. */
#ifndef TPO_TESTS_PARITY_CASE_H
#define TPO_TESTS_PARITY_CASE_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "kernels/stream.h"
#include "nn/params.h"

struct tpo_golden {
    const char *name;
    int dtype; /* enum tpo_dtype: TPO_F32, TPO_I32 or TPO_U8 */
    int n_dims;
    int64_t shape[8];
    int64_t size;
    void *data; /* aligned copy */
    bool must_match, compared;
    double rel, abs;
};

struct tpo_case {
    const char *name; /* "qformer/with_text": the path below DIR */
    const char *folder;
    const char *module;
    json_t *root, *config;
    struct tpo_golden *tensors;
    int n;
    struct tpo_stream *stream;
    bool failed, skipped;
    char message[512];
};

/* Reads case.json and tensors.safetensors of `folder`; a fault is the case's failure. close accepts the half-read. */
void tpo_case_open(struct tpo_case *c, struct tpo_stream *s, const char *name, const char *folder);
void tpo_case_close(struct tpo_case *c);
void tpo_case_fail(struct tpo_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* `known`: names ended by NULL; a config key outside it fails the case. */
void tpo_case_keys(struct tpo_case *c, const char *const *known);
bool tpo_case_has_key(const struct tpo_case *c, const char *key);
int tpo_case_int(struct tpo_case *c, const char *key);  /* 0..2^20, else a failure and 1 */
int tpo_case_size(struct tpo_case *c, const char *key); /* 1..2^16, else a failure and 1 */
int tpo_case_size_or(struct tpo_case *c, const char *key, int absent);
double tpo_case_number_or(struct tpo_case *c, const char *key, double absent);
const char *tpo_case_string_or(struct tpo_case *c, const char *key, const char *absent);

struct tpo_golden *tpo_case_find(const struct tpo_case *c, const char *name); /* NULL when absent */
/* Data of a tensor that must be there, with this dtype and `rows` x `cols` elements in all (0: any); NULL after a failure. */
const float *tpo_case_f32(struct tpo_case *c, const char *name, int64_t size);
const int32_t *tpo_case_i32(struct tpo_case *c, const char *name, int64_t size);
const uint8_t *tpo_case_u8(struct tpo_case *c, const char *name, int64_t size);
int tpo_case_dim(struct tpo_case *c, const char *name, int dim); /* of a tensor that must be there; 1 after a failure */

/* values (size) against the tensor, which may be absent; NULL values of a tensor that is there fail. `skip` (per row of the last
 * dimension, or NULL) marks rows that are not compared. */
void tpo_case_compare(struct tpo_case *c, const char *name, const float *values, int64_t size, const bool *skip);
void tpo_case_compare_i32(struct tpo_case *c, const char *name, const int32_t *values, int64_t size);
void tpo_case_compare_u8(struct tpo_case *c, const char *name, const uint8_t *values, int64_t size);

/* Every declared tensor that the case holds as weight/NAME gets its data, and a gradient of zeros where the case holds
 * grad/NAME. A weight that nobody declared fails. */
void tpo_case_bind(struct tpo_case *c, struct tpo_params *p);
void tpo_case_need_weights(struct tpo_case *c, const struct tpo_params *p); /* fails when the case lacks one of them */
void tpo_case_gradients(struct tpo_case *c, struct tpo_params *p);          /* compares them */
void tpo_case_unbind(struct tpo_params *p);

/* Modules: read, run, compare. */
void tpo_parity_vision_encoder(struct tpo_case *c);
void tpo_parity_positional_tables(struct tpo_case *c);
void tpo_parity_qformer(struct tpo_case *c);
void tpo_parity_llm(struct tpo_case *c);
void tpo_parity_multitask_step(struct tpo_case *c);
void tpo_parity_splice(struct tpo_case *c);
void tpo_parity_region_loss(struct tpo_case *c);
void tpo_parity_resize(struct tpo_case *c);
void tpo_parity_tokenizer(struct tpo_case *c);      /* vectors.json */
void tpo_parity_frame_sampling(struct tpo_case *c); /* vectors.json */

#endif
