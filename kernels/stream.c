/* This file owns streams: which device a name means, and the library a CUDA device comes from. */
#include "kernels/stream.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/ops.h"

static pthread_once_t cuda_once = PTHREAD_ONCE_INIT;
static const struct tpo_device *cuda_device;
static char cuda_problem[200];

/* The library lies next to the program (test programs lie in the build's tests/), else where the loader looks. */
static void *open_cuda_library(void)
{
    char self[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    char *end = strrchr(self, '/');
    for (char *at = strstr(self, "/tests/"); at != NULL; at = strstr(at + 1, "/tests/")) end = at;
    if (end != NULL) *end = '\0';
    snprintf(path, sizeof(path), "%s/libtpo_cuda.so", self);
    if (access(path, R_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return dlopen("libtpo_cuda.so", RTLD_NOW | RTLD_LOCAL);
}

/* Asks for the driver first: a machine without one is the common case and should hear that, not a loader's complaint. */
static void find_cuda(void)
{
    if (access("/dev/nvidiactl", F_OK) != 0) {
        void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
        if (driver == NULL) {
            snprintf(cuda_problem, sizeof(cuda_problem),
                     "this machine has no NVIDIA driver (neither /dev/nvidiactl nor libcuda.so.1)");
            return;
        }
        dlclose(driver);
    }
    void *library = open_cuda_library();
    if (library == NULL) {
        const char *why = dlerror();
        snprintf(cuda_problem, sizeof(cuda_problem), "libtpo_cuda.so (built by `make cuda`) cannot be loaded: %.120s",
                 why != NULL ? why : "?");
        return;
    }
    const struct tpo_device *(*device)(int) = NULL;
    *(void **)&device = dlsym(library, "tpo_cuda_device");
    if (device != NULL) cuda_device = device(TPO_DEVICE_VERSION);
    if (cuda_device == NULL)
        snprintf(cuda_problem, sizeof(cuda_problem), "libtpo_cuda.so is of another version, or found no usable GPU");
}

static const struct tpo_device *find_device(const char *name, struct tpo_error *err)
{
    int any = strcmp(name, "auto") == 0;
    if (strcmp(name, "cpu") == 0) return &tpo_device_cpu;
    if (!any && strcmp(name, "cuda") != 0) {
        tpo_fail(err, TPO_UNIMPLEMENTED, "unknown_device", "device \"%.40s\": one of cpu, cuda, auto is meant", name);
        return NULL;
    }
    pthread_once(&cuda_once, find_cuda);
    if (cuda_device != NULL) return cuda_device;
    if (any) return &tpo_device_cpu;
    tpo_fail(err, TPO_UNIMPLEMENTED, "no_cuda", "%s", cuda_problem);
    return NULL;
}

int tpo_stream_open(struct tpo_stream **out, const char *device_name, int n_threads, struct tpo_error *err)
{
    int rc = TPO_UNIMPLEMENTED;
    struct tpo_stream *s = NULL;
    const struct tpo_device *device = find_device(device_name, err);
    if (device == NULL) goto fail;
    rc = TPO_ENOMEM;
    s = calloc(1, sizeof(*s));
    if (s == NULL) {
        tpo_fail(err, rc, "out_of_memory", "no memory for a stream");
        goto fail;
    }
    s->device = device;
    rc = device->open(s, n_threads, err);
    if (rc != TPO_OK) goto fail;
    *out = s;
    return TPO_OK;
fail:
    tpo_stream_close(s);
    return rc;
}

void tpo_stream_close(struct tpo_stream *s)
{
    if (s == NULL) return;
    s->device->close(s);
    free(s);
}

const char *tpo_stream_device_name(const struct tpo_stream *s)
{
    return s->device->name;
}

void tpo_stream_let_round(struct tpo_stream *s)
{
    s->rounds = s->device->pairs != NULL && s->device->pairs();
}

void *tpo_device_alloc(struct tpo_stream *s, size_t bytes)
{
    return s->device->alloc(s, bytes);
}

void tpo_device_free(struct tpo_stream *s, void *block)
{
    if (block != NULL) s->device->free(s, block);
}

int tpo_copy_in(struct tpo_stream *s, void *device_dst, const void *host_src, size_t bytes)
{
    return s->device->copy_in(s, device_dst, host_src, bytes);
}

int tpo_copy_out(struct tpo_stream *s, void *host_dst, const void *device_src, size_t bytes)
{
    return s->device->copy_out(s, host_dst, device_src, bytes);
}

int tpo_stream_wait(struct tpo_stream *s)
{
    return s->device->wait(s);
}
