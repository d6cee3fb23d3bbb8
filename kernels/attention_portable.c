/* attention_portable.c -- attention_body.h for whatever the compiler's floor is. */
#define ATTENTION_CODE tpo_attention_portable
#include "kernels/attention_body.h"
