/* attention_avx512bf16.c -- attention_body.h for AVX512 with products of bf16 pairs. */
#define ATTENTION_CODE tpo_attention_avx512bf16
#include "kernels/attention_body.h"
