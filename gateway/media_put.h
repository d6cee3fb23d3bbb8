/* media_put.h -- sends the bytes of one stored file to a service that lacks them: Media.Put, in chunks of 1 MiB.
 *
 * A chunk is read from disk when the one before has left, so a large file takes two chunks of memory. Loop's thread. */
#ifndef TPO_GATEWAY_MEDIA_PUT_H
#define TPO_GATEWAY_MEDIA_PUT_H

#include "common/rpc/client.h"
#include "gateway/gateway.h"

struct tpo_media_put;

/* `hop` gives the peer that asked, the time left and the metadata. on_done comes once, later, unless cancelled; err->code is TPO_OK, or NOT_FOUND
 * "media_unknown" where the store has no such file, or what the service said. NULL when out of memory. */
struct tpo_media_put *tpo_media_put_open(struct tpo_gateway *g, struct tpo_peers *peers, const struct tpo_rpc_start *hop,
                                         const char *id, void (*on_done)(void *owner, const struct tpo_error *err), void *owner);
void tpo_media_put_cancel(struct tpo_media_put *p); /* no callback comes any more */

#endif
