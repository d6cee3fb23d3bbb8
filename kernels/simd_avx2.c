/* simd_avx2.c -- simd_body.h for AVX2. */
#define SIMD_TABLE tpo_simd_avx2
#include "kernels/simd_body.h"
