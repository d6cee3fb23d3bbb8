/* params_init.h -- the first values of a tensor (enum tpo_init), drawn from (seed, name) alone. */
#ifndef TPO_NN_PARAMS_INIT_H
#define TPO_NN_PARAMS_INIT_H

#include "nn/params.h"

/* host: item->size floats, written. TPO_ENOMEM when an orthogonal matrix finds no room to work in. */
int tpo_param_init(float *host, const struct tpo_param *item, uint64_t seed);

#endif
