/* put.h -- the server's side of Media.Put (proto/media.proto) into a store.
 *
 * A service lists {"/tpo.v1.Media/Put", &tpo__v1__media_chunk__descriptor, .stream_in = true} among its own methods and hands every event of such
 * a call here, with its store. On the completion-queue thread: a chunk is written and that is all; the end is logged with the request's id. A
 * caller should name the id: to the C core a stream that breaks off may look like one that has ended, and only the hash tells half a file from a
 * whole one. */
#ifndef TPO_COMMON_MEDIA_PUT_H
#define TPO_COMMON_MEDIA_PUT_H

#include "common/media/store.h"
#include "common/rpc/server.h"

/* message NULL: the stream has ended. Frees the message. Finishes the call when it is over. */
void tpo_put_message(tpo_store_t *store, struct tpo_call *call, ProtobufCMessage *message);
void tpo_put_cancel(struct tpo_call *call);

#endif
