/* params_init.h -- the first values of a tensor (enum tpo_init), drawn from (seed, name) alone. */
#ifndef TPO_NN_PARAMS_INIT_H
#define TPO_NN_PARAMS_INIT_H

#include "nn/params.h"

/* host: item->size floats, written. TPO_ENOMEM when an orthogonal matrix finds no room to work in. */
int tpo_param_init(float *host, const struct tpo_param *item, uint64_t seed);

/* The same for elements first to first + n - 1 alone, so that a tensor larger than memory can be written piece by piece. Not for an ORTHOGONAL
 * one, whose elements depend on each other: tpo_param_init_whole says so. */
bool tpo_param_init_whole(const struct tpo_param *item);
void tpo_param_init_piece(float *host, const struct tpo_param *item, uint64_t seed, int64_t first, int64_t n);

#endif
