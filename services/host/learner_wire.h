/* learner_wire.h -- the nouns of learner.h as messages of learner.proto, and back.
 *
 * pack functions build a message in an arena; it borrows texts and data from its source. unpack functions check everything that a stranger could
 * have written (counts, types, shapes against lengths, numbers that are not finite, offsets outside their sentence) before anything else sees it;
 * texts borrow from the message, tensors are copied to 64-byte aligned memory of the arena, since kernels and bits rest on that. Texts are UTF-8
 * without NUL already (payload.h). INVALID_ARGUMENT "learner" names the field. NULL from a pack function: no memory. */
#ifndef TPO_SERVICES_HOST_LEARNER_WIRE_H
#define TPO_SERVICES_HOST_LEARNER_WIRE_H

#include "common/arena.h"
#include "learner.pb-c.h"
#include "services/host/learner.h"

#define TPO_SAMPLES_MAX       1024
#define TPO_CONVERSATIONS_MAX 256

void tpo_key_pack(Tpo__V1__Key *out, const struct tpo_key *key, uint64_t lease);
int tpo_key_unpack(struct tpo_key *out, const Tpo__V1__Key *m, struct tpo_error *err); /* an absent key is refused */

Tpo__V1__Plan *tpo_plan_pack(struct tpo_arena *a, const struct tpo_plan *plan);
int tpo_plan_unpack(struct tpo_plan *out, struct tpo_arena *a, const Tpo__V1__Plan *m, struct tpo_error *err);

/* with_pixels false: for a service that reads no pictures, frames are only counted. */
Tpo__V1__Sample **tpo_samples_pack(struct tpo_arena *a, const struct tpo_sample *samples, int n, bool with_pixels);
int tpo_samples_unpack(const struct tpo_sample **out, struct tpo_arena *a, Tpo__V1__Sample *const *m, size_t n,
                       struct tpo_error *err);

Tpo__V1__NamedTensor **tpo_tensors_pack(struct tpo_arena *a, const struct tpo_named_tensor *x, int n);
/* At most TPO_PORTS_MAX. */
int tpo_tensors_unpack(struct tpo_named_tensor *out, struct tpo_arena *a, Tpo__V1__NamedTensor *const *m, size_t n,
                       struct tpo_error *err);

Tpo__V1__Row **tpo_rows_pack(struct tpo_arena *a, const struct tpo_row *rows, int n);
int tpo_rows_unpack(const struct tpo_row **out, struct tpo_arena *a, Tpo__V1__Row *const *m, size_t n, struct tpo_error *err);

/* `shape` (TPO_DIMS_MAX) is borrowed by the message. */
void tpo_chunk_pack(Tpo__V1__Chunk *out, const struct tpo_chunk *x, int64_t *shape);
/* Data is copied to the arena. A chunk without a name is left to the caller (it ends something). */
int tpo_chunk_unpack(struct tpo_chunk *out, struct tpo_arena *a, const Tpo__V1__Chunk *m, struct tpo_error *err);

#endif
