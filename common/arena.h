/* arena.h -- memory that is emptied all at once: a request's, a tape's, a step's.
 *
 * Blocks are 64-byte aligned, so any of them may be handed to a kernel. An arena grows by chunks and keeps the largest when it
 * is reset, so that a steady workload stops asking the system. One thread owns an arena. */
#ifndef TPO_COMMON_ARENA_H
#define TPO_COMMON_ARENA_H

#include <stddef.h>

struct tpo_arena {
    struct tpo_arena_chunk *chunk; /* newest first */
    size_t chunk_bytes;            /* what the next chunk holds at least */
    size_t limit_bytes;            /* 0: none; beyond it tpo_arena_alloc answers NULL */
    size_t used_bytes;
};

/* Takes no memory yet. */
void tpo_arena_init(struct tpo_arena *a, size_t chunk_bytes, size_t limit_bytes);
void *tpo_arena_alloc(struct tpo_arena *a, size_t bytes);  /* not cleared; NULL when out of memory or over the limit */
void *tpo_arena_calloc(struct tpo_arena *a, size_t bytes); /* cleared */
char *tpo_arena_copy(struct tpo_arena *a, const void *data, size_t bytes); /* with a NUL after it */
void tpo_arena_reset(struct tpo_arena *a);
void tpo_arena_free(struct tpo_arena *a);

#endif
