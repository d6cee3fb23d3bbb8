/* This file owns the digest of a service's tensors: what tells one set of weights from another (docs/mesh.md, Digests). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "common/prefixes.h"
#include "common/safetensors.h"
#include "common/sha256.h"
#include "nn/params.h"

/* {"tensors": {NAME: SHA-256 in hex}} of FOLDER/manifest.json; NULL when there is none. The caller's. */
static json_t *read_manifest(const char *folder)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/manifest.json", folder);
    FILE *f = tpo_open_file(path);
    json_t *manifest = f != NULL ? json_loadf(f, JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (f != NULL) fclose(f);
    json_t *tensors = json_object_get(manifest, "tensors");
    if (!json_is_object(tensors)) tensors = NULL;
    json_incref(tensors);
    json_decref(manifest);
    return tensors;
}

static bool owned(const struct tpo_entry *e, const char *stage)
{
    const char *owner = tpo_prefix_owner(e->name);
    return owner != NULL && strcmp(owner, stage) == 0;
}

/* Whether the manifest knows every tensor of this stage; one that doesn't is of no use. */
static bool covers(const json_t *hashes, const struct tpo_safetensors *files, const char *stage)
{
    for (int i = 0; i < files->n; i++) {
        const char *hash = json_string_value(json_object_get(hashes, files->items[i].name));
        if (owned(&files->items[i], stage) && (hash == NULL || !tpo_sha256_is_hex(hash))) return false;
    }
    return hashes != NULL;
}

/* name, NUL, dtype, its dimensions, NUL, then 64 hex digits of the data's hash where that is asked for. */
static void add(tpo_sha256_t *h, const struct tpo_entry *e, const json_t *hashes, bool data)
{
    char text[TPO_SHA256_HEX];
    uint8_t digest[TPO_SHA256_BYTES];
    tpo_sha256_add(h, e->name, strlen(e->name) + 1);
    tpo_sha256_add(h, tpo_dtype_name(e->dtype), strlen(tpo_dtype_name(e->dtype)));
    for (int i = 0; i < e->n_dims; i++) {
        int n = snprintf(text, sizeof(text), " %lld", (long long)e->shape[i]);
        tpo_sha256_add(h, text, (size_t)n);
    }
    tpo_sha256_add(h, "", 1);
    if (!data) return;
    const char *known = json_string_value(json_object_get(hashes, e->name));
    if (known == NULL) {
        tpo_sha256(digest, e->data, e->size_bytes);
        known = tpo_sha256_hex(text, digest);
    }
    tpo_sha256_add(h, known, 64);
}

int tpo_params_digest(char out[72], const char *folder, const char *stage, bool headers_only, struct tpo_error *err)
{
    struct tpo_safetensors *files = NULL;
    uint8_t digest[TPO_SHA256_BYTES];
    char text[TPO_SHA256_HEX];
    int rc = tpo_safetensors_open_stage(&files, folder, stage, err);
    if (rc != TPO_OK) return rc;
    tpo_sha256_t *h = tpo_sha256_open();
    json_t *hashes = read_manifest(folder);
    bool told = covers(hashes, files, stage);
    for (int i = 0; i < files->n; i++)
        if (owned(&files->items[i], stage)) add(h, &files->items[i], told ? hashes : NULL, told || !headers_only);
    tpo_sha256_end(h, digest);
    snprintf(out, 72, "%s%s", told || !headers_only ? "" : "header:", tpo_sha256_hex(text, digest));
    json_decref(hashes);
    tpo_sha256_close(h);
    tpo_safetensors_close(files);
    return TPO_OK;
}
