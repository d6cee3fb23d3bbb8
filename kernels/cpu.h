/* cpu.h -- what the CPU twins share: the state of a CPU stream and how arrays are cut into parts. Private to kernels/.
 *
 * Everything is cut by shape alone: a grain of elements, rows or columns is one part, whoever runs it. */
#ifndef TPO_KERNELS_CPU_H
#define TPO_KERNELS_CPU_H

#include "kernels/ops.h"
#include "kernels/team.h"

#define TPO_GRAIN   16384 /* elements that are worth waking a thread for */
#define TPO_COLUMNS 64    /* columns of one part where a sum runs down the rows */

struct tpo_cpu {
    char *scratch;
    size_t scratch_stride; /* bytes of one member */
    float *turned;
    size_t turned_bytes;
};

/* One block of at least `bytes` for each member, member m's at base + m * (*stride); valid until the next call. NULL when out of memory. */
char *tpo_cpu_scratch(struct tpo_stream *s, size_t bytes, size_t *stride);

/* One block for all of the team, apart from scratch; valid until the next call. NULL when out of memory. */
float *tpo_cpu_turned(struct tpo_stream *s, size_t bytes);

static inline struct tpo_cpu *tpo_cpu_of(struct tpo_stream *s)
{
    return s->queue;
}

/* Which of a kernel's builds this machine runs: _avx512.c needs all of x86-64-v4, _avx512bf16.c more, _avx2.c all of v3. */
#if defined(__x86_64__)
static inline int tpo_cpu_has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static inline int tpo_cpu_has_avx512bf16(void)
{
    return tpo_cpu_has_avx512() && __builtin_cpu_supports("avx512bf16");
}

static inline int tpo_cpu_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#endif

static inline int64_t tpo_min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int tpo_parts(int64_t n, int64_t grain)
{
    return (int)((n + grain - 1) / grain);
}

/* Rows of one part so that it holds about `elements` of work. Depends on the width only. */
static inline int tpo_row_grain(int64_t C, int64_t elements)
{
    int64_t rows = elements / (C > 0 ? C : 1);
    return rows < 1 ? 1 : (int)rows;
}

#endif
