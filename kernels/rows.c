/* This file owns rows out of a table of either dtype. */
#include "kernels/rows.h"

#include "kernels/vector.h"

int tpo_rows_take(struct tpo_stream *s, float *y, struct tpo_weight table, const int32_t *index, const int32_t *places, int M,
                  int C, int n_rows)
{
    if (table.dtype == TPO_F32) return tpo_rows_gather(s, y, table.data, index, M, C, n_rows);
    if (M < 1 || C < 1 || n_rows < 1) return TPO_EINVAL;
    for (int m = 0; m < M; m++)
        if (places[m] >= n_rows) return TPO_EINVAL;
    int rc = TPO_OK;
    for (int m = 0; m < M && rc == TPO_OK; m++)
        if (places[m] >= 0) rc = tpo_bf16_to_f32(s, y + (int64_t)m * C, (const uint16_t *)table.data + (int64_t)places[m] * C, C);
    return rc;
}
