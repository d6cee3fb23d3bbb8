/* details.h -- a struct tpo_error as google.rpc.Status in grpc-status-details-bin, and back: ErrorInfo carries reason and stage, RetryInfo the delay.
 * Private to common/rpc, and for the gateway's tests. */
#ifndef TPO_COMMON_RPC_DETAILS_H
#define TPO_COMMON_RPC_DETAILS_H

#include <grpc/slice.h>

#include "common/status.h"

#define TPO_DETAILS_KEY "grpc-status-details-bin"

grpc_slice tpo_details_pack(const struct tpo_error *err); /* the caller unrefs; empty when out of memory */
/* Fills reason, stage, retry_ms of *err as far as the bytes tell them. Damaged bytes are passed over, and so are strings that are no UTF-8, words
 * that do not fit, and delays that are negative or of a day. */
void tpo_details_unpack(struct tpo_error *err, const void *bytes, size_t n);

#endif
