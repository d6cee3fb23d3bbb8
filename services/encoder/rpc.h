/* rpc.h -- the encoder on the wire: tpo.v1.Encoder and tpo.v1.Media for the host. */
#ifndef TPO_SERVICES_ENCODER_RPC_H
#define TPO_SERVICES_ENCODER_RPC_H

#include "services/host/host.h"

/* The service whose main is tpo_host_main; `self` is kept in the file, one per process. */
const struct tpo_host_service *tpo_encoder_service(void);

#endif
