/* attention_avx512.c -- attention_body.h for AVX512. */
#define ATTENTION_CODE tpo_attention_avx512
#include "kernels/attention_body.h"
