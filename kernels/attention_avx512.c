/* attention_avx512.c -- attention_body.h for AVX512. */
#define ATTENTION_NAME(x) tpo_attention_##x##_avx512
#include "kernels/attention_body.h"
