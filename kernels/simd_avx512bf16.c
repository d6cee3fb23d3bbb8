/* simd_avx512bf16.c -- simd_body.h for AVX512 with products of bf16 pairs. */
#define SIMD_TABLE tpo_simd_avx512bf16
#include "kernels/simd_body.h"
