/* This file owns the table of element types. */
#include "common/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [TPO_F32] = {"F32", 4}, [TPO_BF16] = {"BF16", 2}, [TPO_F16] = {"F16", 2},
    [TPO_U8] = {"U8", 1},   [TPO_I32] = {"I32", 4},   [TPO_I64] = {"I64", 8},
};
#define N_DTYPES (int)(sizeof(dtypes) / sizeof(dtypes[0]))

size_t tpo_dtype_size(int dtype)
{
    return dtype > 0 && dtype < N_DTYPES ? dtypes[dtype].size : 0;
}

const char *tpo_dtype_name(int dtype)
{
    return dtype > 0 && dtype < N_DTYPES ? dtypes[dtype].name : "?";
}

int tpo_dtype_parse(const char *name)
{
    for (int i = 1; i < N_DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) return i;
    return 0;
}
