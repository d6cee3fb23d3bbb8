/* This file owns the table of published tensor prefixes. */
#include "common/prefixes.h"

#include <stddef.h>
#include <string.h>

static const struct {
    const char *prefix, *owner;
} prefixes[] = {
    {"vision_encoder.", "encoder"},
    {"vision_layernorm.", "encoder"},
    {"qformer.", "encoder"},
    {"query_tokens", "encoder"},
    {"extra_query_tokens", "encoder"},
    {"ext.encoder.", "encoder"},
    {"lm.", "router"},
    {"project_up.", "router"},
    {"loc_encoder.", "router"},
    {"box_token", "router"},
    {"temporal_token", "router"},
    {"track_token", "router"},
    {"ext.router.", "router"},
    {"loc_decoder.", "region"},
    {"ext.region.", "region"},
    {"cg_model.", "temporal"},
    {"cg_criterion.", "temporal"},
    {"ext.temporal.", "temporal"},
    {"sam.", "mask"},
    {"track_embed.", "mask"},
    {"track_embed_decode2.", "mask"},
    {"ext.mask.", "mask"},
    {"action_embed.", "dead"},
    {"temporal_embed.", "dead"},
    {"project_down.", "dead"},
    {"merge_proj.", "dead"},
};
#define N_PREFIXES (int)(sizeof(prefixes) / sizeof(prefixes[0]))

static int covers(const char *prefix, const char *name)
{
    size_t n = strlen(prefix);
    return prefix[n - 1] == '.' ? strncmp(prefix, name, n) == 0 && name[n] != '\0' : strcmp(prefix, name) == 0;
}

const char *tpo_prefix_owner(const char *tensor_name)
{
    for (int i = 0; i < N_PREFIXES; i++)
        if (covers(prefixes[i].prefix, tensor_name)) return prefixes[i].owner;
    return NULL;
}
