/* params.h -- the named tensors of one service: schema, memory, loading.
 *
 * A model declares its schema once (services/X: tpo_X_schema); from that one list come the check of a model folder, random weights, the
 * loader and the export. Names and shapes are the published checkpoint's (docs/model.md, Names); linear weights are [out, in].
 *
 * A parameter's f32 data is the mapped file itself where that is F32, else a converted copy. Frozen and trainable parameters look alike
 * to a model; `grad` is NULL while frozen, and otherwise the sums of the lane being run
 * (docs/mesh.md, The same bits): backward only ever adds to it. */
#ifndef TPO_NN_PARAMS_H
#define TPO_NN_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/status.h"
#include "kernels/matmul.h"

#define TPO_NAME_MAX 128
#define TPO_DIMS_MAX 5

/* How a fresh tensor starts (tpo model random, and training from nothing). */
enum tpo_init {
    TPO_INIT_ZERO,
    TPO_INIT_ONE,
    TPO_INIT_NORMAL,     /* N(0, scale) */
    TPO_INIT_FAN_IN,     /* N(0, scale / sqrt(elements / shape[0])) */
    TPO_INIT_ORTHOGONAL, /* scale times an orthogonal matrix */
    TPO_INIT_SINCOS_2D, /* 2-D sine-cosine table, times scale. Rows (all dimensions but the last) are the cells, row by row, of the squarest grid
                            that has at least as many columns as rows: 64 is 8 x 8, 32 is 8 columns x 4 rows */
    TPO_INIT_NORMAL_LATER, /* N(0, scale), the first row zero: a table of frames */
    TPO_INIT_BOX,          /* (4): .5 - scale, .5 - scale, .5 + scale, .5 + scale */
};

struct tpo_param {
    char name[TPO_NAME_MAX];
    int n_dims;
    int64_t shape[TPO_DIMS_MAX];
    int64_t size; /* elements */
    bool ignored; /* checked, never read: position_ids and parts this build does not use */
    enum tpo_init init;
    float scale;
    const struct tpo_param
        *like;            /* NULL, or draw ORTHOGONAL from this tensor's name instead of the own one, so that both start equal; */
    bool like_transposed; /* and transposed */
    bool product;         /* only ever the weight of a product or a table of rows, so that it may stay as it is in the file */
    float *data;          /* f32 of the stream's device; NULL until loaded, for an ignored one, and while `half` counts */
    const uint16_t *
        half; /* with keep_half: a product's weight or table that is BF16 in its file, mapped or copied to the device; counts where data is NULL */
    float *grad;   /* NULL while frozen */
    uint64_t pass; /* the tape's pass that used it last */
};

struct tpo_params {
    struct tpo_param **items; /* pointers stay valid as the list grows, so models keep them */
    int n;
    struct tpo_params_memory *memory; /* mappings and copies */
    bool
        keep_half; /* before load: BF16 weights of products and tables of rows stay as they are, on the CPU where they are mapped (--dtype bf16) */
};

/* Adds a tensor to the schema and returns it; NULL when out of memory (a later load then fails with TPO_ENOMEM). shape ends with 0. */
struct tpo_param *tpo_params_declare(struct tpo_params *p, enum tpo_init init, float scale, const int64_t *shape,
                                     const char *name_format, ...) __attribute__((format(printf, 5, 6)));
#define TPO_SHAPE(...) ((const int64_t[]){__VA_ARGS__, 0})
bool tpo_param_is_integer(const struct tpo_param *p); /* I64 in a file: position_ids; all others are F32, BF16 or F16 */
/* One of the training-only heads (ext.encoder.dense.*, ext.router.slot.*), which no folder to serve from need hold. */
bool tpo_param_is_aid(const struct tpo_param *p);
struct tpo_param *tpo_params_find(const struct tpo_params *p, const char *name);

struct tpo_param *tpo_param_of_product(struct tpo_param *p);                    /* marks it; accepts and returns NULL */
int tpo_params_n_half(const struct tpo_params *p);                              /* tensors that stay as they are in the file */
bool tpo_param_held(const struct tpo_param *p);                                 /* there are values, as f32 or as BF16 */
int tpo_param_read(const struct tpo_param *p, struct tpo_stream *s, float *to); /* its values as f32 of the device */
/* The n values from the at-th on as f32 in the host's memory. */
int tpo_param_piece(const struct tpo_param *p, struct tpo_stream *s, int64_t at, int64_t n, float *host);
struct tpo_weight tpo_param_weight(const struct tpo_param *p);

/* Maps `folder` (model.safetensors or the shards of its index) and fills data of every declared tensor. `stage` is the owner in the prefix table
 * (common/prefixes.h). FAILED_PRECONDITION naming the tensor when one is missing, extra, misshapen or mistyped; a missing aid is drawn fresh. */
int tpo_params_load(struct tpo_params *p, struct tpo_stream *s, const char *folder, const char *stage, struct tpo_error *err);

/* Compares the schema with files (common/safetensors.h): every missing, misshapen or mistyped tensor, and every extra one (under a prefix of
 * `stage` but not in the schema, or under no prefix), goes to on_fault as a sentence that starts with its name. Stops when that is not TPO_OK. */
struct tpo_safetensors;
int tpo_params_match(const struct tpo_params *p, const struct tpo_safetensors *files, const char *stage,
                     int (*on_fault)(void *owner, const char *text), void *owner);
/* An on_fault whose owner is a struct tpo_error: the first fault is the error, FAILED_PRECONDITION "weights". */
int tpo_params_fail_at_first(void *err, const char *text);

/* Fresh memory, every tensor by its init; the values of a tensor depend on (seed, name) alone. */
int tpo_params_random(struct tpo_params *p, struct tpo_stream *s, uint64_t seed, struct tpo_error *err);

/* SHA-256 in hex over (name, dtype, shape, SHA-256 of data) of what this service owns, in name order (docs/mesh.md,
 * Digests); out holds 72 bytes. Where the folder's manifest.json holds {"tensors": {NAME: SHA-256}} for all of them, no data is
 * read; else it is, or, with headers_only, the data is left out and the digest begins with "header:". */
int tpo_params_digest(char out[72], const char *folder, const char *stage, bool headers_only, struct tpo_error *err);

void tpo_params_free(struct tpo_params *p, struct tpo_stream *s);

#endif
