/* shards.h -- a folder's tensors, written as they are made: no tensor is ever whole in memory.
 *
 * Hugging Face's layout: model.safetensors, or, where the data is more than `shard_bytes`, model-00001-of-0000N.safetensors and so on, filled one
 * after the other and never split within a tensor, with model.safetensors.index.json ({"metadata": {"total_size"}, "weight_map": {NAME: FILE}});
 * and manifest.json, {"tensors": {NAME: SHA-256 of its data}}, so that a service which starts on the folder need not read it to tell its digest.
 *
 * Elements are made by all cores, a piece at a time, while the piece before is hashed and written: memory is two pieces of TPO_SHARDS_PIECE
 * elements. */
#ifndef TPO_TRAINER_SHARDS_H
#define TPO_TRAINER_SHARDS_H

#include <stdint.h>

#include "common/safetensors.h"
#include "common/status.h"
#include "kernels/stream.h"

#define TPO_SHARDS_PIECE (1 << 20)     /* elements */
#define TPO_SHARDS_GRAIN (1 << 14)     /* of them in one call of `make`, at most */
#define TPO_SHARD_BYTES  5000000000ull /* of data, the published checkpoint's */

struct tpo_shards {
    const struct tpo_entry *tensors; /* name, dtype, n_dims, shape, size and size_bytes are read */
    int n;
    uint64_t shard_bytes;
    int (*begin)(void *owner, int i); /* before the first piece of tensor i, by one thread; the one before is whole then */
    /* Writes elements first to first + n - 1 of tensor i to `out`, in its dtype. Called by several threads at once, each with a CPU stream of its own. */
    int (*make)(void *owner, struct tpo_stream *s, void *out, int i, int64_t first, int64_t n);
    void *owner;
};

/* Writes all of it to the folder `dir`, with a bar on stderr where it takes long. RESOURCE_EXHAUSTED "disk_full" before the first byte where the
 * file system has not enough room, and later where it runs full; what was written so far is then the caller's to remove. */
int tpo_shards_write(const char *dir, const struct tpo_shards *x, struct tpo_error *err);

#endif
