/* kv.h -- the pool of key/value blocks: who holds which, and where they lie (docs/mesh.md, Router).
 *
 * A block holds TPO_KV_TOKENS positions of every layer. A sequence takes all blocks it can ever need when it is admitted, so an admitted one
 * never fails for memory; it gives them back when it ends. One thread owns a pool. */
#ifndef TPO_SERVICES_ROUTER_KV_H
#define TPO_SERVICES_ROUTER_KV_H

#include "kernels/stream.h"
#include "nn/config.h"

#define TPO_KV_TOKENS    32
#define TPO_KV_POSITIONS 8192 /* of the default pool: two prompts of the longest kind, or two dozen questions about a picture */

struct tpo_kv {
    struct tpo_stream *stream;
    int n_layers, n_blocks, n_free, max_blocks, max_sequences;
    float **k, **v;     /* per layer, (n_blocks, TPO_KV_TOKENS, G, D) */
    int32_t *free_list; /* the first n_free are free */
    int32_t *blocks;    /* (max_sequences, max_blocks): which ones each sequence holds */
    int *held;          /* (max_sequences) how many */
    int32_t *tables;    /* the same as blocks, of the device, for the kernels */
};

/* Of keys and values of one position, all layers. */
size_t tpo_kv_position_bytes(const struct tpo_config *c);
/* A pool for whoever names no size: TPO_KV_POSITIONS positions, 64 MiB at least. */
size_t tpo_kv_bytes_default(const struct tpo_config *c);

/* As many blocks as fit into `bytes`, at least one. TPO_ENOMEM. */
int tpo_kv_open(struct tpo_kv *kv, struct tpo_stream *s, const struct tpo_config *c, size_t bytes, int max_sequences,
                struct tpo_error *err);
void tpo_kv_close(struct tpo_kv *kv);

int tpo_kv_blocks(int tokens);                         /* that many positions take */
bool tpo_kv_free(const struct tpo_kv *kv, int tokens); /* whether as many are free */
/* Gives sequence `slot` room for `tokens` positions: INVALID_ARGUMENT "kv_full" when the whole pool is too small (asking again won't help),
 * UNAVAILABLE "kv_busy" when others hold too much of it now. */
int tpo_kv_take(struct tpo_kv *kv, int slot, int tokens, struct tpo_error *err);
void tpo_kv_give(struct tpo_kv *kv, int slot); /* returns them */

#endif
