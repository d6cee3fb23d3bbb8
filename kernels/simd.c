/* This file owns the choice of inner loops. */
#include "kernels/simd.h"

#include "kernels/cpu.h"

const struct tpo_simd *tpo_simd(void)
{
#if defined(__x86_64__)
    if (tpo_cpu_has_avx512bf16()) return &tpo_simd_avx512bf16;
    if (tpo_cpu_has_avx512()) return &tpo_simd_avx512;
    if (tpo_cpu_has_avx2()) return &tpo_simd_avx2;
#endif
    return &tpo_simd_portable;
}
