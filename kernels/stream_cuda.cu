/* This file owns the CUDA device: its table, its memory and the state of its streams. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda.h"

#define X(name, parameters, arguments) extern "C" int tpo_##name##_cuda parameters;
TPO_OPS(X)
#undef X

void *tpo_cuda_scratch(struct tpo_stream *s, size_t bytes)
{
    struct tpo_cuda *c = tpo_cuda_of(s);
    if (bytes > c->scratch_bytes) {
        const size_t next = bytes + bytes / 2;
        cudaFree(c->scratch); /* waits for who still reads it */
        if (cudaMalloc(&c->scratch, next) != cudaSuccess) {
            cudaGetLastError();
            c->scratch = NULL;
        }
        c->scratch_bytes = c->scratch != NULL ? next : 0;
    }
    return c->scratch;
}

int tpo_cuda_finish(struct tpo_stream *s)
{
    struct tpo_cuda *c = tpo_cuda_of(s);
    const int rc = tpo_cuda_code(cudaStreamSynchronize(c->stream));
    if (rc != TPO_OK || *c->fault == 0) return rc;
    *c->fault = 0;
    return TPO_EINVAL;
}

static void close_cuda(struct tpo_stream *s)
{
    struct tpo_cuda *c = tpo_cuda_of(s);
    if (c == NULL) return;
    if (c->stream != NULL) cudaStreamSynchronize(c->stream);
    if (c->blas != NULL) cublasDestroy(c->blas);
    cudaFree(c->scratch);
    cudaFreeHost(c->fault);
    cudaFreeHost(c->host_sum);
    if (c->stream != NULL) cudaStreamDestroy(c->stream);
    free(c);
    s->queue = NULL;
}

static int open_cuda(struct tpo_stream *s, int n_threads, struct tpo_error *err)
{
    (void)n_threads; /* the host's part of the work is queueing */
    struct tpo_cuda *c = (struct tpo_cuda *)calloc(1, sizeof(*c));
    if (c == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a stream");
    s->queue = c;
    cudaError_t e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaHostAlloc((void **)&c->fault, sizeof(*c->fault), cudaHostAllocMapped);
    if (e == cudaSuccess) e = cudaHostAlloc((void **)&c->host_sum, sizeof(*c->host_sum), cudaHostAllocDefault);
    if (e != cudaSuccess)
        return tpo_fail(err, tpo_cuda_code(e), "cuda", "a CUDA stream cannot be opened: %s", cudaGetErrorString(e));
    *c->fault = 0;
    /* f32 products in f32 (no TF32), bf16 ones summed in f32 throughout, no split sums joined by atomics. */
    const int math = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    int code = tpo_cublas_code(cublasCreate(&c->blas));
    if (code == TPO_OK) code = tpo_cublas_code(cublasSetStream(c->blas, c->stream));
    if (code == TPO_OK) code = tpo_cublas_code(cublasSetMathMode(c->blas, (cublasMath_t)math));
    if (code == TPO_OK) code = tpo_cublas_code(cublasSetAtomicsMode(c->blas, CUBLAS_ATOMICS_NOT_ALLOWED));
    return code == TPO_OK ? TPO_OK : tpo_fail(err, code, "cublas", "cuBLAS cannot be opened on this GPU");
}

static void *alloc_cuda(struct tpo_stream *s, size_t bytes)
{
    void *block = NULL;
    (void)s;
    if (cudaMalloc(&block, bytes > 0 ? bytes : 1) == cudaSuccess) return block;
    cudaGetLastError(); /* a full device is an answer, not a failure to remember */
    return NULL;
}

static void free_cuda(struct tpo_stream *s, void *block)
{
    (void)s;
    cudaFree(block); /* waits for the work that uses it */
}

/* From pageable memory: the driver has taken the bytes when it returns. Device to device works as well (cudaMemcpyDefault) and is queued. */
static int copy_in_cuda(struct tpo_stream *s, void *device_dst, const void *host_src, size_t bytes)
{
    return bytes == 0 ? TPO_OK : tpo_cuda_code(cudaMemcpyAsync(device_dst, host_src, bytes, cudaMemcpyDefault, tpo_cuda_stream(s)));
}

static int copy_out_cuda(struct tpo_stream *s, void *host_dst, const void *device_src, size_t bytes)
{
    if (bytes == 0) return TPO_OK;
    const int rc = tpo_cuda_code(cudaMemcpyAsync(host_dst, device_src, bytes, cudaMemcpyDefault, tpo_cuda_stream(s)));
    return rc == TPO_OK ? tpo_cuda_finish(s) : rc;
}

static const struct tpo_device device_cuda = {
    "cuda",
    {
#define X(name, parameters, arguments) tpo_##name##_cuda,
        TPO_OPS(X)
#undef X
    },
    open_cuda,
    close_cuda,
    alloc_cuda,
    free_cuda,
    copy_in_cuda,
    copy_out_cuda,
    tpo_cuda_finish,
    NULL,
};

extern "C" __attribute__((visibility("default"))) const struct tpo_device *tpo_cuda_device(int version)
{
    int n = 0;
    if (version != TPO_DEVICE_VERSION || cudaGetDeviceCount(&n) != cudaSuccess || n < 1) return NULL;
    return &device_cuda;
}
