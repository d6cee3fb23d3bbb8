/* rpc.h -- the region head on the wire: tpo.v1.Head for the host. */
#ifndef TPO_SERVICES_REGION_RPC_H
#define TPO_SERVICES_REGION_RPC_H

#include "services/host/host.h"

/* The service whose main is tpo_host_main; `self` is kept in the file, one per process. */
const struct tpo_host_service *tpo_region_service(void);

#endif
