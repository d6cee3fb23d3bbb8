/* media_send.h -- a medium of the trainer's, put into a service that lacks it (proto/media.proto). */
#ifndef TPO_TRAINER_STEPS_MEDIA_SEND_H
#define TPO_TRAINER_STEPS_MEDIA_SEND_H

#include <stdatomic.h>
#include <stdbool.h>

#include "common/rpc/client.h"

/* Streams the file at `path` to the one peer, by its id, and waits; while *stop (NULL: never) is true the call ends with CANCELLED. NOT_FOUND
 * "media_missing" where the file cannot be read; the service's errors, INVALID_ARGUMENT "media_hash" for a file that has changed among them. */
int tpo_media_send(struct tpo_loop *loop, struct tpo_peers *peers, const char *id, const char *path, int timeout_ms,
                   const _Atomic bool *stop, struct tpo_error *err);

#endif
