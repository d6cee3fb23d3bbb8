/* This file owns the arena: a list of chunks, newest first, each filled from its start. */
#include "common/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

struct tpo_arena_chunk {
    struct tpo_arena_chunk *older;
    size_t size, used; /* bytes after the header, which takes one ALIGNMENT */
};

void tpo_arena_init(struct tpo_arena *a, size_t chunk_bytes, size_t limit_bytes)
{
    memset(a, 0, sizeof(*a));
    a->chunk_bytes = chunk_bytes;
    a->limit_bytes = limit_bytes;
}

static struct tpo_arena_chunk *chunk_add(struct tpo_arena *a, size_t bytes)
{
    size_t size = bytes > a->chunk_bytes ? bytes : a->chunk_bytes;
    struct tpo_arena_chunk *c = aligned_alloc(ALIGNMENT, size + ALIGNMENT);
    if (c == NULL) return NULL;
    c->older = a->chunk;
    c->size = size;
    c->used = 0;
    a->chunk = c;
    /* Doubling keeps the number of chunks small however large the first request turns out. */
    a->chunk_bytes = size * 2;
    return c;
}

void *tpo_arena_alloc(struct tpo_arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 4) return NULL;
    bytes = bytes == 0 ? ALIGNMENT : (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (a->limit_bytes != 0 && bytes > a->limit_bytes - a->used_bytes) return NULL;
    struct tpo_arena_chunk *c = a->chunk;
    if (c == NULL || c->size - c->used < bytes) c = chunk_add(a, bytes);
    if (c == NULL) return NULL;
    void *block = (char *)c + ALIGNMENT + c->used;
    c->used += bytes;
    a->used_bytes += bytes;
    return block;
}

void *tpo_arena_calloc(struct tpo_arena *a, size_t bytes)
{
    void *block = tpo_arena_alloc(a, bytes);
    return block == NULL ? NULL : memset(block, 0, bytes);
}

char *tpo_arena_copy(struct tpo_arena *a, const void *data, size_t bytes)
{
    char *block = tpo_arena_alloc(a, bytes + 1);
    if (block == NULL) return NULL;
    if (bytes > 0) memcpy(block, data, bytes);
    block[bytes] = '\0';
    return block;
}

void tpo_arena_reset(struct tpo_arena *a)
{
    struct tpo_arena_chunk *newest = a->chunk;
    if (newest == NULL) return;
    for (struct tpo_arena_chunk *c = newest->older, *older; c != NULL; c = older) {
        older = c->older;
        free(c);
    }
    newest->older = NULL;
    newest->used = 0;
    a->used_bytes = 0;
}

void tpo_arena_free(struct tpo_arena *a)
{
    tpo_arena_reset(a);
    free(a->chunk);
    memset(a, 0, sizeof(*a));
}
