/* attention_avx2.c -- attention_body.h for AVX2. */
#define ATTENTION_NAME(x) tpo_attention_##x##_avx2
#include "kernels/attention_body.h"
