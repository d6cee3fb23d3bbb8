/* batch.h -- the language model's forward pass over rows of several sequences, keys and values in the pool: what serving runs.
 *
 * A row is (sequence, position, where its input comes from). Rows of one pass may belong to one sequence and follow each other: keys are written
 * before anyone attends. A pass takes either kernel for all its rows, and a row's bits depend on the kernel and on what came before it in its own
 * sequence, never on the rest of the pass (docs/mesh.md, Router): so prompts always take tpo_matmul, whatever the chunks,
 * and answers tpo_matvec. */
#ifndef TPO_SERVICES_ROUTER_BATCH_H
#define TPO_SERVICES_ROUTER_BATCH_H

#include "services/router/decoder.h"
#include "services/router/kv.h"

/* Where a row comes from. */
struct tpo_batch_row {
    int seq, position;
    struct tpo_weight table; /* of the device, (table_rows, D) */
    int table_rows, index;
};

struct tpo_batch;

/* rows_max: most rows of a prompt pass. merge: W + scale B A once, here; else LoRA stays apart. Borrowed: stream, decoder, pool. */
int tpo_batch_open(struct tpo_batch **out, struct tpo_stream *s, const struct tpo_decoder *d, struct tpo_kv *kv, int rows_max,
                   bool merge, struct tpo_error *err);
void tpo_batch_close(struct tpo_batch *b); /* accepts NULL */

/* Runs n rows; prompt: tpo_matmul and n <= rows_max, else tpo_matvec and n <= TPO_MATVEC_ROWS. *hidden: (n, D) after the final norm, of the
 * device, good until the next call. */
int tpo_batch_run(struct tpo_batch *b, const struct tpo_batch_row *rows, int n, bool prompt, const float **hidden);
/* The logits of n (at most TPO_MATVEC_ROWS) of that result's rows, copied to host memory (n, V); one pass over lm_head; may be
 * called again for others. */
int tpo_batch_logits(struct tpo_batch *b, const int32_t *rows, int n, float *logits);

/* The rows of one medium and of user boxes, (queries + n_boxes, D), in memory of the device that the caller frees. */
int tpo_batch_special(struct tpo_batch *b, float **out, const float *visual, int queries, const float (*boxes)[4], int n_boxes);

#endif
