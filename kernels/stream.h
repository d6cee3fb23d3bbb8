/* stream.h -- where kernels run: a device is a table of operations, a stream is a queue of work on one.
 *
 * A caller never knows which device it has. Every operation takes a stream first and finds its twin in stream->device->ops (kernels/ops.h);
 * the names that end in _cpu and _cuda are seen by that table and by tests only. A CPU stream owns a team of threads and has finished
 * when an operation returns; a CUDA stream queues in order.
 *
 * The same bits: a result never depends on the number of threads in the team, and a row of a product, a norm or an attention never depends
 * on the other rows of the call (fixed tiles, fixed order of sums; see matmul.h, and for a GPU's products docs/gpu.md). No atomics, no -ffast-math. */
#ifndef TPO_KERNELS_STREAM_H
#define TPO_KERNELS_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

struct tpo_device; /* kernels/ops.h */
struct tpo_team;   /* kernels/team.h: the threads of a CPU stream */

struct tpo_stream {
    const struct tpo_device *device;
    struct tpo_team *team; /* CPU only */
    void *queue;           /* the device's own */
    bool rounds;           /* products and attention round to bf16: tpo_stream_let_round */
};

/* device_name: "cpu", "cuda" or "auto" (cuda where there is one). n_threads 0 means every core; 1 starts none.
 * TPO_UNIMPLEMENTED for a device this build or machine lacks. */
int tpo_stream_open(struct tpo_stream **out, const char *device_name, int n_threads, struct tpo_error *err);
void tpo_stream_close(struct tpo_stream *s); /* accepts NULL */
const char *tpo_stream_device_name(const struct tpo_stream *s);

/* Lets products and attention round what they multiply to bf16 (matmul.h, attention.h), to serve a model held so. s->rounds then tells whether this
 * device does: a CPU that multiplies pairs of bf16 (AVX512_BF16), no other. */
void tpo_stream_let_round(struct tpo_stream *s);

/* Memory of the stream's device, 64-byte aligned, not cleared; NULL when there is none. */
void *tpo_device_alloc(struct tpo_stream *s, size_t bytes);
void tpo_device_free(struct tpo_stream *s, void *block); /* accepts NULL */
int tpo_copy_in(struct tpo_stream *s, void *device_dst, const void *host_src, size_t bytes);
int tpo_copy_out(struct tpo_stream *s, void *host_dst, const void *device_src, size_t bytes);
int tpo_stream_wait(struct tpo_stream *s); /* all queued work is done; TPO_INTERNAL when the device failed */

#endif
