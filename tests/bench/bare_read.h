/* bare_read.h -- memory that is read and added up, nothing else: what benches of weights are compared with.
 *
 *   struct bare_read r = {0};   bare_read_add(&r, data, bytes);   bare_read_run(&r, team);   free(r.items); */
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

/* Four pages side by side while the next four are asked for: faster than one stream of the same sums. */
#if defined(__x86_64__)
__attribute__((target_clones("avx2", "default")))
#endif
static void
bare_read_piece(void *arg, int part, int member)
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
    for (int k = 1; k < 8; k++) sums[0] += sums[k];
    p->sum = sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3];
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

static inline void bare_read_run(struct bare_read *r, struct tpo_team *team)
{
    tpo_team_run(team, bare_read_piece, r->items, r->n);
}

#endif
