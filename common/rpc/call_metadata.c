/* This file owns what a call's metadata says. */
#include <grpc/slice.h>
#include <string.h>

#include "common/rpc/server_private.h"
#include "common/text.h"

static const char *find_text(struct tpo_call *c, const char *key)
{
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, key) != 0 || c->n_texts == (int)(sizeof(c->texts) / sizeof(c->texts[0]))) continue;
        char *out = c->texts[c->n_texts++];
        size_t n = GRPC_SLICE_LENGTH(m->value) < sizeof(c->texts[0]) ? GRPC_SLICE_LENGTH(m->value) : sizeof(c->texts[0]) - 1;
        memcpy(out, GRPC_SLICE_START_PTR(m->value), n);
        out[n] = '\0';
        return out;
    }
    return NULL;
}

/* Any other caller's id would go into logs: only what cannot forge a line is taken. */
void tpo_call_read_request_id(struct tpo_call *c)
{
    const char *id = find_text(c, "tpo-request-id");
    strcpy(c->request_id, tpo_id_valid(id, TPO_REQUEST_ID_MAX) ? id : "-");
    c->n_texts = 0;
}

const char *tpo_call_metadata(const struct tpo_call *c, const char *key)
{
    return find_text((struct tpo_call *)c, key);
}

const char *tpo_call_request_id(const struct tpo_call *c)
{
    return c->request_id;
}
