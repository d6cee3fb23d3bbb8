/* attention_portable.c -- attention_body.h for whatever the compiler's floor is. */
#define ATTENTION_NAME(x) tpo_attention_##x##_portable
#include "kernels/attention_body.h"
