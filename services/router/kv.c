/* This file owns the bookkeeping of key/value blocks. */
#include "services/router/kv.h"

#include <stdlib.h>
#include <string.h>

size_t tpo_kv_position_bytes(const struct tpo_config *c)
{
    return (size_t)c->llm.num_hidden_layers * 2 * (size_t)c->llm.num_key_value_heads * (size_t)c->llm.head_dim * sizeof(float);
}

size_t tpo_kv_bytes_default(const struct tpo_config *c)
{
    const size_t bytes = TPO_KV_POSITIONS * tpo_kv_position_bytes(c), least = (size_t)64 << 20;
    return bytes > least ? bytes : least;
}

int tpo_kv_open(struct tpo_kv *kv, struct tpo_stream *s, const struct tpo_config *c, size_t bytes, int max_sequences,
                struct tpo_error *err)
{
    memset(kv, 0, sizeof(*kv));
    size_t block = (size_t)TPO_KV_TOKENS * (size_t)c->llm.num_key_value_heads * (size_t)c->llm.head_dim * sizeof(float);
    size_t n = bytes / (TPO_KV_TOKENS * tpo_kv_position_bytes(c));
    kv->stream = s;
    kv->n_layers = c->llm.num_hidden_layers;
    kv->n_blocks = n < 1 ? 1 : n > 1 << 20 ? 1 << 20 : (int)n;
    kv->max_blocks = kv->n_blocks;
    kv->max_sequences = max_sequences;
    kv->k = calloc((size_t)kv->n_layers, sizeof(*kv->k));
    kv->v = calloc((size_t)kv->n_layers, sizeof(*kv->v));
    kv->free_list = calloc((size_t)kv->n_blocks, sizeof(*kv->free_list));
    kv->blocks = calloc((size_t)max_sequences * (size_t)kv->max_blocks, sizeof(*kv->blocks));
    kv->tables = tpo_device_alloc(s, (size_t)max_sequences * (size_t)kv->max_blocks * sizeof(*kv->tables));
    kv->held = calloc((size_t)max_sequences, sizeof(*kv->held));
    bool whole =
        kv->k != NULL && kv->v != NULL && kv->free_list != NULL && kv->blocks != NULL && kv->tables != NULL && kv->held != NULL;
    for (int l = 0; l < kv->n_layers && whole; l++) {
        kv->k[l] = tpo_device_alloc(s, block * (size_t)kv->n_blocks);
        kv->v[l] = tpo_device_alloc(s, block * (size_t)kv->n_blocks);
        whole = kv->k[l] != NULL && kv->v[l] != NULL;
    }
    if (!whole) {
        tpo_kv_close(kv);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %zu bytes of keys and values", bytes);
    }
    /* Block 0 goes out first. */
    for (int i = 0; i < kv->n_blocks; i++) kv->free_list[i] = kv->n_blocks - 1 - i;
    kv->n_free = kv->n_blocks;
    return TPO_OK;
}

void tpo_kv_close(struct tpo_kv *kv)
{
    for (int l = 0; l < kv->n_layers; l++) {
        if (kv->k != NULL) tpo_device_free(kv->stream, kv->k[l]);
        if (kv->v != NULL) tpo_device_free(kv->stream, kv->v[l]);
    }
    free(kv->k);
    free(kv->v);
    free(kv->free_list);
    free(kv->blocks);
    if (kv->stream != NULL) tpo_device_free(kv->stream, kv->tables);
    free(kv->held);
    memset(kv, 0, sizeof(*kv));
}

int tpo_kv_blocks(int tokens)
{
    return (int)(((int64_t)tokens + TPO_KV_TOKENS - 1) / TPO_KV_TOKENS);
}

bool tpo_kv_free(const struct tpo_kv *kv, int tokens)
{
    return tpo_kv_blocks(tokens) <= kv->n_free;
}

int tpo_kv_take(struct tpo_kv *kv, int slot, int tokens, struct tpo_error *err)
{
    int need = tpo_kv_blocks(tokens);
    if (need > kv->n_blocks)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "kv_full",
                        "%d tokens of prompt and answer, the router's pool (--kv-bytes) holds %d", tokens,
                        kv->n_blocks * TPO_KV_TOKENS);
    if (need > kv->n_free)
        return tpo_fail(err, TPO_UNAVAILABLE, "kv_busy", "%d blocks of keys and values asked for, %d are free", need, kv->n_free);
    const size_t first = (size_t)slot * (size_t)kv->max_blocks;
    for (int i = 0; i < need; i++) kv->blocks[first + (size_t)i] = kv->free_list[--kv->n_free];
    kv->held[slot] = need;
    int rc = tpo_copy_in(kv->stream, kv->tables + first, kv->blocks + first, (size_t)need * sizeof(*kv->tables));
    if (rc == TPO_OK) return TPO_OK;
    tpo_kv_give(kv, slot);
    return tpo_fail(err, rc, "device", "the table of a sequence's blocks cannot be written: %s", tpo_status_sentence(rc));
}

void tpo_kv_give(struct tpo_kv *kv, int slot)
{
    for (int i = kv->held[slot] - 1; i >= 0; i--)
        kv->free_list[kv->n_free++] = kv->blocks[(size_t)slot * (size_t)kv->max_blocks + (size_t)i];
    kv->held[slot] = 0;
}
