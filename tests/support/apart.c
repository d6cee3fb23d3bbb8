/* This file owns the device apart: two mappings of one memory, and every operation with its pointers turned from one to the other. */
#include "tests/support/apart.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/ops.h"

#define REGION ((size_t)1 << 32) /* of addresses; pages are had when they are written */
#define ALIGN  4096

/* One region for the process; blocks are handed out in order and never used again, so that a stale pointer is found too. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *seen, *real; /* the callers' addresses, and where the bytes are */
static size_t used;

static const char *running; /* the operation's name, for the message */

static int region_open(void)
{
    if (seen != NULL) return 1;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *a = mmap(NULL, REGION, PROT_NONE, flags, -1, 0), *b = mmap(NULL, REGION, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (a == MAP_FAILED || b == MAP_FAILED) return 0;
    seen = a;
    real = b;
    return 1;
}

static int is_apart(const void *p)
{
    return (const char *)p >= seen && (const char *)p < seen + REGION;
}

static void *bytes_of(const void *p)
{
    if (p == NULL) return NULL;
    if (is_apart(p)) return real + ((const char *)p - seen);
    if (strcmp(running, "normalise") == 0) return (void *)p; /* its mean and std are the host's (resize.h) */
    fprintf(stderr, "tpo_%s was given %p, which is memory of the host\n", running, p);
    abort();
}

/* --- each type of argument as the CPU's twin takes it --------------------------------------------------------------------------------- */

static float *floats_of(float *p)
{
    return bytes_of(p);
}
static const float *const_floats_of(const float *p)
{
    return bytes_of(p);
}
static int32_t *ints_of(int32_t *p)
{
    return bytes_of(p);
}
static const int32_t *const_ints_of(const int32_t *p)
{
    return bytes_of(p);
}
static uint16_t *halves_of(uint16_t *p)
{
    return bytes_of(p);
}
static const uint16_t *const_halves_of(const uint16_t *p)
{
    return bytes_of(p);
}
static uint8_t *octets_of(uint8_t *p)
{
    return bytes_of(p);
}
static const uint8_t *const_octets_of(const uint8_t *p)
{
    return bytes_of(p);
}
static struct tpo_weight weight_of(struct tpo_weight w)
{
    w.data = bytes_of(w.data);
    return w;
}
static const struct tpo_attention_shape *shape_of(const struct tpo_attention_shape *p)
{
    static _Thread_local struct tpo_attention_shape shape;
    shape = *p;
    shape.key_len = bytes_of(p->key_len);
    shape.segments = bytes_of(p->segments);
    return &shape;
}
static const struct tpo_paged_shape *paged_of(const struct tpo_paged_shape *p)
{
    static _Thread_local struct tpo_paged_shape shape;
    shape = *p;
    shape.seq = bytes_of(p->seq);
    shape.position = bytes_of(p->position);
    shape.tables = bytes_of(p->tables);
    return &shape;
}
static struct tpo_stream *inner_of(struct tpo_stream *s)
{
    return s->queue;
}
static int same_int(int x)
{
    return x;
}
static int64_t same_long(int64_t x)
{
    return x;
}
static uint64_t same_key(uint64_t x)
{
    return x;
}
static float same_float(float x)
{
    return x;
}
static double same_double(double x)
{
    return x;
}
static double *host_double(double *x)
{
    return x; /* a sum's place is the host's (vector.h) */
}
static const struct tpo_adamw *same_adamw(const struct tpo_adamw *x)
{
    return x;
}
static const struct tpo_muon *same_muon(const struct tpo_muon *x)
{
    return x;
}

#define TURN(x)                                                                                                                    \
    _Generic((x), float *: floats_of, const float *: const_floats_of, int32_t *: ints_of, const int32_t *: const_ints_of,          \
        uint16_t *: halves_of, const uint16_t *: const_halves_of, uint8_t *: octets_of, const uint8_t *: const_octets_of,          \
        struct tpo_weight: weight_of, const struct tpo_attention_shape *: shape_of, const struct tpo_paged_shape *: paged_of,      \
        struct tpo_stream *: inner_of, int: same_int, int64_t: same_long, uint64_t: same_key, float: same_float,                   \
        double: same_double, double *: host_double, const struct tpo_adamw *: same_adamw, const struct tpo_muon *: same_muon)(x)

/* TURN on each of up to 14 arguments. */
#define T1(a)                                                       TURN(a)
#define T2(a, ...)                                                  TURN(a), T1(__VA_ARGS__)
#define T3(a, ...)                                                  TURN(a), T2(__VA_ARGS__)
#define T4(a, ...)                                                  TURN(a), T3(__VA_ARGS__)
#define T5(a, ...)                                                  TURN(a), T4(__VA_ARGS__)
#define T6(a, ...)                                                  TURN(a), T5(__VA_ARGS__)
#define T7(a, ...)                                                  TURN(a), T6(__VA_ARGS__)
#define T8(a, ...)                                                  TURN(a), T7(__VA_ARGS__)
#define T9(a, ...)                                                  TURN(a), T8(__VA_ARGS__)
#define T10(a, ...)                                                 TURN(a), T9(__VA_ARGS__)
#define T11(a, ...)                                                 TURN(a), T10(__VA_ARGS__)
#define T12(a, ...)                                                 TURN(a), T11(__VA_ARGS__)
#define T13(a, ...)                                                 TURN(a), T12(__VA_ARGS__)
#define T14(a, ...)                                                 TURN(a), T13(__VA_ARGS__)
#define PICK(a, b, c, d, e, f, g, h, i, j, k, l, m, n, chosen, ...) chosen
#define TURNED(...)                                                 PICK(__VA_ARGS__, T14, T13, T12, T11, T10, T9, T8, T7, T6, T5, T4, T3, T2, T1, none)(__VA_ARGS__)

#define X(name, parameters, arguments)                                                                                             \
    static int apart_##name parameters                                                                                             \
    {                                                                                                                              \
        running = #name;                                                                                                           \
        return tpo_##name##_cpu(TURNED arguments);                                                                                 \
    }
TPO_OPS(X)
#undef X

/* --- the device ------------------------------------------------------------------------------------------------------------------------- */

static int open_apart(struct tpo_stream *s, int n_threads, struct tpo_error *err)
{
    struct tpo_stream *inner = NULL;
    const int rc = tpo_stream_open(&inner, "cpu", n_threads, err);
    s->queue = inner;
    return rc;
}

static void close_apart(struct tpo_stream *s)
{
    tpo_stream_close(s->queue);
}

static void *alloc_apart(struct tpo_stream *s, size_t bytes)
{
    (void)s;
    void *block = NULL;
    pthread_mutex_lock(&lock);
    const size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (region_open() && room <= REGION - used) {
        block = seen + used;
        used += room;
    }
    pthread_mutex_unlock(&lock);
    return block;
}

static void free_apart(struct tpo_stream *s, void *block)
{
    (void)s, (void)block;
}

/* Either side may be of the device: queued copies go from device to device too. */
static int copy_apart(struct tpo_stream *s, void *dst, const void *src, size_t bytes)
{
    (void)s;
    memcpy(is_apart(dst) ? bytes_of(dst) : dst, is_apart(src) ? bytes_of(src) : src, bytes);
    return TPO_OK;
}

static int wait_apart(struct tpo_stream *s)
{
    (void)s;
    return TPO_OK;
}

static const struct tpo_device device_apart = {
    .name = "apart",
    .ops =
        {
#define X(name, parameters, arguments) .name = apart_##name,
            TPO_OPS(X)
#undef X
        },
    .open = open_apart,
    .close = close_apart,
    .alloc = alloc_apart,
    .free = free_apart,
    .copy_in = copy_apart,
    .copy_out = copy_apart,
    .wait = wait_apart,
};

int tpo_apart_open(struct tpo_stream **out, int n_threads, struct tpo_error *err)
{
    struct tpo_stream *s = calloc(1, sizeof(*s));
    if (s == NULL) return TPO_ENOMEM;
    s->device = &device_apart;
    const int rc = open_apart(s, n_threads, err);
    if (rc == TPO_OK)
        *out = s;
    else
        free(s);
    return rc;
}
