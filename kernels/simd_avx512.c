/* simd_avx512.c -- simd_body.h for AVX512. */
#define SIMD_TABLE tpo_simd_avx512
#include "kernels/simd_body.h"
