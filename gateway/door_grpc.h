/* door_grpc.h -- the gRPC door: tpo.v1.Gateway (Perceive, PerceiveStream), tpo.v1.Media (Put) and grpc.health.v1.
 *
 * The server's completion-queue thread only hands things over: what comes is put into a list and the loop is woken; the loop's thread
 * opens requests and answers through the calls' outboxes. Health says SERVING while the gateway is ready. */
#ifndef TPO_GATEWAY_DOOR_GRPC_H
#define TPO_GATEWAY_DOOR_GRPC_H

#include "gateway/gateway.h"

struct tpo_grpc_door;

int tpo_grpc_door_open(struct tpo_grpc_door **out, struct tpo_gateway *g, const char *listen, struct tpo_error *err);
int tpo_grpc_door_port(const struct tpo_grpc_door *d);
/* No new calls; on_drained comes on the loop when none is left, those under way have drain_ms. */
void tpo_grpc_door_drain(struct tpo_grpc_door *d, int drain_ms, void (*on_drained)(void *owner), void *owner);
/* After on_drained. Frees when the loop has run the close callbacks. */
void tpo_grpc_door_close(struct tpo_grpc_door *d);

#endif
