/* safetensors.h -- tensors in files: a reader that maps a model folder without reading its data, and a writer.
 *
 * Format (huggingface/safetensors): 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets [begin, end)
 * relative to the header's end}, optionally "__metadata__", then the data, row-major, without holes. A folder holds model.safetensors
 * alone, or model.safetensors.index.json ({"weight_map": {name: file}}) and its shards; a tensor is resolved by itself, since a layer may
 * straddle two files. A header may come from a stranger: every number in it is checked against the file before it is used. */
#ifndef TPO_COMMON_SAFETENSORS_H
#define TPO_COMMON_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/status.h"

#define TPO_ENTRY_DIMS_MAX 8

struct tpo_entry {
    const char *name;
    const char *file; /* base name of the file it lies in */
    int dtype;        /* enum tpo_dtype */
    int n_dims;
    int64_t shape[TPO_ENTRY_DIMS_MAX];
    int64_t size; /* elements */
    size_t size_bytes;
    const void *data; /* in the mapping; aligned to nothing but what the file gives */
};

struct tpo_safetensors {
    struct tpo_entry *items; /* by name */
    int n;
    char **faults; /* of survey: sentences that name the tensor */
    int n_faults;
    struct tpo_safetensors_memory *memory;
};

/* `path` is a folder or one .safetensors file. open answers with the first fault: NOT_FOUND for a missing file, FAILED_PRECONDITION "weights"
 * for everything else. survey keeps what is sound and lists every fault it can find; it fails only for lack of memory. */
int tpo_safetensors_open(struct tpo_safetensors **out, const char *path, struct tpo_error *err);
int tpo_safetensors_survey(struct tpo_safetensors **out, const char *path, struct tpo_error *err);
/* As open, but of a folder with an index only the shards in which it puts a tensor of `stage`, or one that no service owns (prefixes.h): the
 * others needn't be there. */
int tpo_safetensors_open_stage(struct tpo_safetensors **out, const char *path, const char *stage, struct tpo_error *err);
void tpo_safetensors_close(struct tpo_safetensors *s); /* accepts NULL; data pointers die */
const struct tpo_entry *tpo_safetensors_find(const struct tpo_safetensors *s, const char *name);

/* The fuzzer's door: one file's bytes, already in memory and borrowed; offsets are checked as in a file. */
int tpo_safetensors_open_bytes(struct tpo_safetensors **out, const void *bytes, size_t n, struct tpo_error *err);

/* Writes PATH.part and renames it at close, so that a reader never sees half a file. Data comes in the order of `entries`, in pieces of any size;
 * data starts at a multiple of 64 bytes. Of an entry name, dtype, n_dims and shape are used. */
struct tpo_safetensors_writer;
int tpo_safetensors_create(struct tpo_safetensors_writer **out, const char *path, const struct tpo_entry *entries, int n,
                           struct tpo_error *err);
int tpo_safetensors_put(struct tpo_safetensors_writer *w, const void *data, size_t bytes, struct tpo_error *err);
int tpo_safetensors_finish(struct tpo_safetensors_writer *w, struct tpo_error *err); /* w is gone, whatever the answer */
void tpo_safetensors_abandon(struct tpo_safetensors_writer *w);                      /* removes the part; accepts NULL */
/* All three at once, from entries[i].data. */
int tpo_safetensors_write(const char *path, const struct tpo_entry *entries, int n, struct tpo_error *err);

#endif
