/* simd_portable.c -- simd_body.h for whatever the compiler's floor is. */
#define SIMD_TABLE tpo_simd_portable
#include "kernels/simd_body.h"
