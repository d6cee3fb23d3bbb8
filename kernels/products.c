/* This file owns the products that oneDNN computes: their cache and the call. */
#include "kernels/products.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#define BUCKETS 256

struct hands { /* what one member lends to the library for a call */
    dnnl_stream_t stream;
    dnnl_memory_t x, w, y, bias;
    char *scratch;
    dnnl_memory_t scratch_memory;
};

struct tpo_product {
    struct tpo_product_shape shape;
    struct tpo_product *next;   /* of the bucket */
    dnnl_primitive_t primitive; /* NULL: refused, remembered so that it is asked once */
    int n_members;
    struct hands hands[];
};

struct tpo_products {
    dnnl_engine_t engine;
    int n_members;
    struct tpo_product *buckets[BUCKETS];
};

static void use_one_thread(void)
{
    static _Thread_local int told;
    if (told) return;
    told = 1;
    void (*set)(int) = NULL;
    *(void **)&set = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (set != NULL) set(1);
}

int tpo_products_open(struct tpo_products **out, int n_members, struct tpo_error *err)
{
    use_one_thread();
    struct tpo_products *p = calloc(1, sizeof(*p));
    if (p == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for products");
    p->n_members = n_members;
    if (dnnl_engine_create(&p->engine, dnnl_cpu, 0) != dnnl_success) {
        tpo_products_close(p);
        return tpo_fail(err, TPO_INTERNAL, "onednn", "oneDNN has no CPU engine");
    }
    *out = p;
    return TPO_OK;
}

static void free_product(struct tpo_product *p)
{
    for (int m = 0; m < p->n_members; m++) {
        struct hands *h = &p->hands[m];
        if (h->x != NULL) dnnl_memory_destroy(h->x);
        if (h->w != NULL) dnnl_memory_destroy(h->w);
        if (h->y != NULL) dnnl_memory_destroy(h->y);
        if (h->bias != NULL) dnnl_memory_destroy(h->bias);
        if (h->scratch_memory != NULL) dnnl_memory_destroy(h->scratch_memory);
        if (h->stream != NULL) dnnl_stream_destroy(h->stream);
        free(h->scratch);
    }
    if (p->primitive != NULL) dnnl_primitive_destroy(p->primitive);
    free(p);
}

void tpo_products_close(struct tpo_products *p)
{
    if (p == NULL) return;
    for (int b = 0; b < BUCKETS; b++) {
        for (struct tpo_product *q = p->buckets[b], *next; q != NULL; q = next) {
            next = q->next;
            free_product(q);
        }
    }
    if (p->engine != NULL) dnnl_engine_destroy(p->engine);
    free(p);
}

static int describe(dnnl_memory_desc_t *md, int rows, int cols, int ld, int transposed)
{
    dnnl_dims_t dims = {rows, cols}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    return dnnl_memory_desc_init_by_strides(md, 2, dims, dnnl_f32, strides) == dnnl_success;
}

static dnnl_primitive_desc_t plan(struct tpo_products *p, const struct tpo_product_shape *s)
{
    dnnl_memory_desc_t x, w, y, bias;
    dnnl_matmul_desc_t op;
    if (!describe(&x, s->rows, s->depth, s->ldx, s->x_t) || !describe(&w, s->depth, s->cols, s->ldw, 0) ||
        !describe(&y, s->rows, s->cols, s->ldy, 0) || !describe(&bias, 1, s->cols, s->cols, 0))
        return NULL;
    if (dnnl_matmul_desc_init(&op, &x, &w, s->bias ? &bias : NULL, &y) != dnnl_success) return NULL;

    dnnl_primitive_desc_t made = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    if (dnnl_primitive_attr_create(&attr) != dnnl_success) return NULL;
    if (dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) != dnnl_success) goto out;
    if (s->add) {
        if (dnnl_post_ops_create(&post) != dnnl_success || dnnl_post_ops_append_sum(post, 1.0f) != dnnl_success ||
            dnnl_primitive_attr_set_post_ops(attr, post) != dnnl_success)
            goto out;
    }
    if (dnnl_primitive_desc_create(&made, &op, attr, p->engine, NULL) != dnnl_success) made = NULL;
out:
    if (post != NULL) dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attr);
    return made;
}

static int make_memory(struct tpo_products *p, dnnl_memory_t *out, dnnl_primitive_desc_t pd, dnnl_query_t what, int index,
                       void *data)
{
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, what, index);
    return md != NULL && dnnl_memory_create(out, md, p->engine, data) == dnnl_success;
}

static int make_hands(struct tpo_products *p, struct hands *h, dnnl_primitive_desc_t pd, const struct tpo_product_shape *s)
{
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    size_t bytes = md != NULL ? dnnl_memory_desc_get_size(md) : 0;
    h->scratch = aligned_alloc(64, (bytes + 64 + 63) / 64 * 64);
    if (h->scratch == NULL) return 0;
    return dnnl_stream_create(&h->stream, p->engine, dnnl_stream_default_flags) == dnnl_success &&
           make_memory(p, &h->x, pd, dnnl_query_src_md, 0, DNNL_MEMORY_NONE) &&
           make_memory(p, &h->w, pd, dnnl_query_weights_md, 0, DNNL_MEMORY_NONE) &&
           make_memory(p, &h->y, pd, dnnl_query_dst_md, 0, DNNL_MEMORY_NONE) &&
           (!s->bias || make_memory(p, &h->bias, pd, dnnl_query_weights_md, 1, DNNL_MEMORY_NONE)) &&
           make_memory(p, &h->scratch_memory, pd, dnnl_query_scratchpad_md, 0, h->scratch);
}

static struct tpo_product *make_product(struct tpo_products *p, const struct tpo_product_shape *s)
{
    struct tpo_product *q = calloc(1, sizeof(*q) + (size_t)p->n_members * sizeof(q->hands[0]));
    if (q == NULL) return NULL;
    q->shape = *s;
    q->n_members = p->n_members;
    dnnl_primitive_desc_t pd = plan(p, s);
    if (pd == NULL) return q;
    int ok = 1;
    for (int m = 0; m < p->n_members && ok; m++) ok = make_hands(p, &q->hands[m], pd, s);
    if (!ok || dnnl_primitive_create(&q->primitive, pd) != dnnl_success) q->primitive = NULL;
    dnnl_primitive_desc_destroy(pd);
    return q;
}

static unsigned bucket_of(const struct tpo_product_shape *s)
{
    const unsigned char *bytes = (const unsigned char *)s;
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < sizeof(*s); i++) h = (h ^ bytes[i]) * 16777619u;
    return h % BUCKETS;
}

const struct tpo_product *tpo_product_get(struct tpo_products *p, const struct tpo_product_shape *shape)
{
    struct tpo_product **bucket = &p->buckets[bucket_of(shape)], *q = *bucket;
    while (q != NULL && memcmp(&q->shape, shape, sizeof(*shape)) != 0) q = q->next;
    if (q == NULL) {
        use_one_thread();
        q = make_product(p, shape);
        if (q == NULL) return NULL;
        q->next = *bucket;
        *bucket = q;
    }
    return q->primitive != NULL ? q : NULL;
}

void tpo_product_run(const struct tpo_product *p, int member, float *y, const float *x, const float *w, const float *bias)
{
    use_one_thread();
    const struct hands *h = &p->hands[member];
    dnnl_memory_set_data_handle(h->x, (void *)x);
    dnnl_memory_set_data_handle(h->w, (void *)w);
    dnnl_memory_set_data_handle(h->y, y);
    dnnl_exec_arg_t args[5] = {
        {DNNL_ARG_SRC, h->x}, {DNNL_ARG_WEIGHTS, h->w}, {DNNL_ARG_DST, h->y}, {DNNL_ARG_SCRATCHPAD, h->scratch_memory}};
    int n = 4;
    if (p->shape.bias) {
        dnnl_memory_set_data_handle(h->bias, (void *)bias);
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, h->bias};
    }
    TPO_ASSERT(dnnl_primitive_execute(p->primitive, h->stream, n, args) ==
               dnnl_success); /* its arguments are of the shape planned */
}
