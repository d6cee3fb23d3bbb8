/* cuda.h -- what the CUDA twins share: the state of a CUDA stream, scratch, how a grid is cut and how a failure is told. Private to the .cu files.
 *
 * Work is queued in order on one cudaStream_t; only what writes to host memory waits. Nothing is summed with atomics, so equal calls on equal
 * GPUs give equal bits. What a kernel alone can see to be wrong (an index past its table) sets the stream's fault word, touches nothing else, and
 * comes back as TPO_EINVAL from the next call that waits. */
#ifndef TPO_KERNELS_CUDA_H
#define TPO_KERNELS_CUDA_H

#include <cublas_v2.h>
#include <cuda_runtime.h>

#define _Noreturn [[noreturn]] /* the headers are C11 */
extern "C" {
#include "kernels/ops.h"
}
#undef _Noreturn

struct tpo_cuda {
    cudaStream_t stream;
    cublasHandle_t blas;
    void *scratch;
    size_t scratch_bytes;
    int *fault;       /* pinned, seen by the device too */
    double *host_sum; /* pinned */
};

#define TPO_WARP    32
#define TPO_THREADS 256

static inline struct tpo_cuda *tpo_cuda_of(struct tpo_stream *s)
{
    return (struct tpo_cuda *)s->queue;
}

static inline cudaStream_t tpo_cuda_stream(struct tpo_stream *s)
{
    return tpo_cuda_of(s)->stream;
}

/* One block of the device for a call's own use, valid until the next call that takes one. NULL when out of memory. */
void *tpo_cuda_scratch(struct tpo_stream *s, size_t bytes);

/* All queued work is done; TPO_EINVAL when a kernel set the fault word since, TPO_INTERNAL when the device failed. */
int tpo_cuda_finish(struct tpo_stream *s);

/* A failure is told here and not once more by the next launch. */
static inline int tpo_cuda_code(cudaError_t e)
{
    if (e != cudaSuccess) cudaGetLastError();
    return e == cudaSuccess ? TPO_OK : e == cudaErrorMemoryAllocation ? TPO_ENOMEM : TPO_INTERNAL;
}

static inline int tpo_cublas_code(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? TPO_OK : status == CUBLAS_STATUS_ALLOC_FAILED ? TPO_ENOMEM : TPO_INTERNAL;
}

/* Whether the launch before it was taken. */
static inline int tpo_cuda_launched(void)
{
    return tpo_cuda_code(cudaGetLastError());
}

/* Blocks for n items, `each` to a block, no more than a grid-stride loop needs. */
static inline unsigned tpo_cuda_blocks(int64_t n, int64_t each)
{
    int64_t blocks = (n + each - 1) / each;
    return (unsigned)(blocks > 65535 ? 65535 : blocks);
}

/* A kernel's loop over n items, whatever the grid. */
#define TPO_EACH(i, n)                                                                                                             \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i##_stride = (int64_t)gridDim.x * blockDim.x; i < (n);        \
         i += i##_stride)

/* Threads for a block that owns one row of C: enough to read it quickly, few enough that short rows leave none idle. */
static inline unsigned tpo_cuda_row_threads(int C)
{
    return C <= 64 ? 32 : C <= 512 ? 128 : 256;
}

#ifdef __CUDACC__
__device__ static inline float tpo_warp_sum(float x)
{
    for (int d = TPO_WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ static inline float tpo_warp_max(float x)
{
    for (int d = TPO_WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* Over a block of whole warps; everyone gets the answer. `empty` is what joining changes nothing. */
template <typename Join> __device__ static inline float tpo_block_join(float x, float empty, Join join)
{
    __shared__ float parts[TPO_WARP];
    const int lane = threadIdx.x % TPO_WARP, warp = threadIdx.x / TPO_WARP, warps = blockDim.x / TPO_WARP;
    x = join(x);
    __syncthreads(); /* parts may still be read from the call before */
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return join(lane < warps ? parts[lane] : empty);
}

__device__ static inline float tpo_block_sum(float x)
{
    return tpo_block_join(x, 0.0f, [](float v) { return tpo_warp_sum(v); });
}

__device__ static inline float tpo_block_max(float x)
{
    return tpo_block_join(x, -INFINITY, [](float v) { return tpo_warp_max(v); });
}

__device__ static inline float tpo_bf16_value(uint16_t h)
{
    return __uint_as_float((unsigned)h << 16);
}
#endif

#endif
