/* This file owns the report on a model folder. */
#include "nn/check.h"

#include <stdio.h>
#include <string.h>

#include "common/prefixes.h"
#include "common/safetensors.h"

struct report {
    const char *stage;
    int n_faults;
};

static int on_fault(void *owner, const char *text)
{
    struct report *r = owner;
    printf("%s: fault: %s\n", r->stage, text);
    r->n_faults++;
    return TPO_OK;
}

static void print_holdings(const char *stage, const struct tpo_safetensors *files)
{
    static const int dtypes[] = {TPO_F32, TPO_BF16, TPO_F16, TPO_U8, TPO_I32, TPO_I64};
    int n = 0, counts[sizeof(dtypes) / sizeof(dtypes[0])] = {0};
    unsigned long long bytes = 0;
    for (int i = 0; i < files->n; i++) {
        const char *owner = tpo_prefix_owner(files->items[i].name);
        if (owner == NULL || strcmp(owner, stage) != 0) continue;
        n++;
        bytes += files->items[i].size_bytes;
        for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++) counts[d] += files->items[i].dtype == dtypes[d];
    }
    printf("%s: %d tensors, %llu bytes", stage, n, bytes);
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++)
        if (counts[d] > 0) printf(", %s %d", tpo_dtype_name(dtypes[d]), counts[d]);
    printf("\n");
}

static int compare(const char *stage, const struct tpo_params *schema, const char *folder)
{
    struct report r = {.stage = stage};
    struct tpo_safetensors *files = NULL;
    struct tpo_error err;
    if (tpo_safetensors_survey(&files, folder, &err) != TPO_OK) {
        printf("%s: fault: %s\n", stage, err.message);
        return 2;
    }
    print_holdings(stage, files);
    for (int i = 0; i < files->n_faults; i++) on_fault(&r, files->faults[i]);
    tpo_params_match(schema, files, stage, on_fault, &r);
    tpo_safetensors_close(files);
    if (r.n_faults == 0)
        printf("%s: sound\n", stage);
    else
        printf("%s: %d fault%s\n", stage, r.n_faults, r.n_faults == 1 ? "" : "s");
    return r.n_faults == 0 ? 0 : 1;
}

int tpo_check_folder(const char *stage, void (*declare)(struct tpo_params *schema, const struct tpo_config *c), const char *folder)
{
    struct tpo_config config;
    struct tpo_params schema = {0};
    struct tpo_error err;
    if (tpo_config_load(&config, folder, &err) != TPO_OK) {
        printf("%s: fault: %s\n", stage, err.message);
        return 2;
    }
    declare(&schema, &config);
    int status = compare(stage, &schema, folder);
    tpo_params_free(&schema, NULL);
    return status;
}
