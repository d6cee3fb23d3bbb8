/* This file owns the public functions: each hands its call to the twin of the stream's device. */
#include "kernels/ops.h"

#define X(name, parameters, arguments)                                                                                             \
    int tpo_##name parameters                                                                                                      \
    {                                                                                                                              \
        return s->device->ops.name arguments;                                                                                      \
    }
TPO_OPS(X)
#undef X
