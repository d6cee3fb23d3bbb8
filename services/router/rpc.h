/* rpc.h -- the router on the wire: tpo.v1.Router for the host. */
#ifndef TPO_SERVICES_ROUTER_RPC_H
#define TPO_SERVICES_ROUTER_RPC_H

#include "services/host/host.h"

/* The service whose main is tpo_host_main; its state is kept in the file, one per process. */
const struct tpo_host_service *tpo_router_service(void);

#endif
