/* attention_avx2.c -- attention_body.h for AVX2. */
#define ATTENTION_CODE tpo_attention_avx2
#include "kernels/attention_body.h"
