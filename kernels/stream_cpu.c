/* This file owns the CPU device: its table, its memory and the state of its streams. */
#include <stdlib.h>
#include <string.h>

#include "common/cores.h"
#include "kernels/cpu.h"
#include "kernels/simd.h"

#define ALIGN 64

static void *alloc_aligned(size_t bytes)
{
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (rounded < bytes) return NULL;
    return aligned_alloc(ALIGN, rounded > 0 ? rounded : ALIGN);
}

char *tpo_cpu_scratch(struct tpo_stream *s, size_t bytes, size_t *stride)
{
    struct tpo_cpu *cpu = tpo_cpu_of(s);
    if (bytes > cpu->scratch_stride) {
        size_t next = (bytes + 4095) / 4096 * 4096 + ALIGN; /* members do not start at the same cache set */
        free(cpu->scratch);
        cpu->scratch = alloc_aligned(next * (size_t)tpo_team_size(s->team));
        cpu->scratch_stride = cpu->scratch != NULL ? next : 0;
    }
    *stride = cpu->scratch_stride;
    return cpu->scratch;
}

float *tpo_cpu_turned(struct tpo_stream *s, size_t bytes)
{
    struct tpo_cpu *cpu = tpo_cpu_of(s);
    if (bytes > cpu->turned_bytes) {
        free(cpu->turned);
        cpu->turned = alloc_aligned(bytes);
        cpu->turned_bytes = cpu->turned != NULL ? bytes : 0;
    }
    return cpu->turned;
}

static void close_cpu(struct tpo_stream *s)
{
    tpo_team_close(s->team);
    struct tpo_cpu *cpu = tpo_cpu_of(s);
    if (cpu == NULL) return;
    free(cpu->scratch);
    free(cpu->turned);
    free(cpu);
}

static int open_cpu(struct tpo_stream *s, int n_threads, struct tpo_error *err)
{
    if (n_threads == 0) {
        const int cores = tpo_cores();
        n_threads = cores > TPO_TEAM_MAX ? TPO_TEAM_MAX : cores;
    }
    int rc = tpo_team_open(&s->team, n_threads, err);
    if (rc != TPO_OK) return rc;
    struct tpo_cpu *cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a stream");
    s->queue = cpu;
    return TPO_OK;
}

static void *alloc_cpu(struct tpo_stream *s, size_t bytes)
{
    (void)s;
    return alloc_aligned(bytes);
}

static void free_cpu(struct tpo_stream *s, void *block)
{
    (void)s;
    free(block);
}

static int copy_cpu(struct tpo_stream *s, void *dst, const void *src, size_t bytes)
{
    (void)s;
    if (bytes > 0) memcpy(dst, src, bytes);
    return TPO_OK;
}

static int wait_cpu(struct tpo_stream *s)
{
    (void)s;
    return TPO_OK;
}

static int pairs_cpu(void)
{
    return tpo_simd()->pairs();
}

const struct tpo_device tpo_device_cpu = {
    .name = "cpu",
    .ops =
        {
#define X(name, parameters, arguments) .name = tpo_##name##_cpu,
            TPO_OPS(X)
#undef X
        },
    .open = open_cpu,
    .close = close_cpu,
    .alloc = alloc_cpu,
    .free = free_cpu,
    .copy_in = copy_cpu,
    .copy_out = copy_cpu,
    .wait = wait_cpu,
    .pairs = pairs_cpu,
};
