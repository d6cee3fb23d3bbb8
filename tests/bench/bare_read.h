/* bare_read.h -- memory that is read and added up, nothing else: what benches of weights are compared with.
 *
 *   struct bare_read r = {0};   bare_read_add(&r, data, bytes);   bare_read_run(&r, team, quarters);   free(r.items); */
#ifndef TPO_TESTS_BARE_READ_H
#define TPO_TESTS_BARE_READ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "kernels/team.h"

#define BARE_PIECE (256 << 10) /* bytes of one part of the job */
#define BARE_PAGE  (4096 / sizeof(bare_wide))

typedef uint64_t bare_wide __attribute__((vector_size(32), aligned(32), may_alias));

struct bare_piece {
    const bare_wide *data;
    size_t n; /* wide words */
    uint64_t sum;
};

struct bare_read {
    struct bare_piece *items;
    int n;
    double bytes; /* of all */
};

#if defined(__x86_64__)
#define BARE_READ static __attribute__((target_clones("avx2", "default"))) void
#else
#define BARE_READ static void
#endif

static inline void bare_read_sum(struct bare_piece *p, const bare_wide *sums)
{
    bare_wide all = sums[0];
    for (int k = 1; k < 8; k++) all += sums[k];
    p->sum = all[0] + all[1] + all[2] + all[3];
}

/* Four pages side by side while the next four are asked for. */
BARE_READ bare_read_pages(void *arg, int part, int member)
{
    (void)member;
    struct bare_piece *p = &((struct bare_piece *)arg)[part];
    bare_wide sums[8] = {0};
    for (size_t block = 0; block < p->n; block += 4 * BARE_PAGE)
        for (size_t i = block; i < block + BARE_PAGE; i += 2)
#pragma GCC unroll 4
            for (size_t k = 0; k < 4; k++) {
                __builtin_prefetch(p->data + i + (k + 4) * BARE_PAGE);
                sums[2 * k] += p->data[i + k * BARE_PAGE];
                sums[2 * k + 1] += p->data[i + k * BARE_PAGE + 1];
            }
    bare_read_sum(p, sums);
}

/* The four quarters of a piece side by side, each from its beginning to its end. */
BARE_READ bare_read_quarters(void *arg, int part, int member)
{
    (void)member;
    struct bare_piece *p = &((struct bare_piece *)arg)[part];
    const size_t quarter = p->n / 4;
    bare_wide sums[8] = {0};
    for (size_t i = 0; i < quarter; i += 2)
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++) {
            __builtin_prefetch(p->data + i + k * quarter + 8);
            sums[2 * k] += p->data[i + k * quarter];
            sums[2 * k + 1] += p->data[i + k * quarter + 1];
        }
    bare_read_sum(p, sums);
}

/* False for bytes that lie crooked (not on 32, or no whole pieces), or without memory. */
static inline bool bare_read_add(struct bare_read *r, const void *data, size_t bytes)
{
    if ((uintptr_t)data % sizeof(bare_wide) != 0 || bytes % BARE_PIECE != 0) return false;
    struct bare_piece *more = realloc(r->items, ((size_t)r->n + bytes / BARE_PIECE + 1) * sizeof(*more));
    if (more == NULL) return false;
    r->items = more;
    for (size_t at = 0; at < bytes; at += BARE_PIECE, r->n++)
        r->items[r->n] = (struct bare_piece){(const bare_wide *)((const char *)data + at), BARE_PIECE / sizeof(bare_wide), 0};
    r->bytes += (double)bytes;
    return true;
}

/* Reads all, in one of two orders: which is faster depends on the machine. */
static inline void bare_read_run(struct bare_read *r, struct tpo_team *team, bool quarters)
{
    tpo_team_run(team, quarters ? bare_read_quarters : bare_read_pages, r->items, r->n);
}

#endif
