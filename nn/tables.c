/* This file owns the fixed position tables. */
#include "nn/tables.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void sine_rows(float *table, int rows, int width)
{
    for (int p = 0; p < rows; p++) {
        for (int j = 0; j < width; j++) {
            const double angle = p / pow(10000.0, 2.0 * (j / 2) / width);
            table[(int64_t)p * width + j] = (float)(j % 2 == 0 ? sin(angle) : cos(angle));
        }
    }
}

bool tpo_table_video(float *table, int n_frames, int patches, int width, int checkpoint_frames)
{
    if (n_frames == 1) {
        sine_rows(table, patches, width);
        return true;
    }
    const int64_t frame = (int64_t)patches * width;
    float *base = malloc((size_t)checkpoint_frames * (size_t)frame * sizeof(*base));
    if (base == NULL) return false;
    sine_rows(base, checkpoint_frames * patches, width);
    for (int t = 0; t < n_frames; t++) {
        /* Half-pixel centres, clamped at the first frame; in f32, as the reference's interpolation does. */
        const float ratio = (float)checkpoint_frames / (float)n_frames;
        const float s = fmaxf(((float)t + 0.5F) * ratio - 0.5F, 0);
        const int i = (int)s < checkpoint_frames - 1 ? (int)s : checkpoint_frames - 1;
        const int next = i + 1 < checkpoint_frames ? i + 1 : i;
        const float w = s - (float)i;
        for (int64_t j = 0; j < frame; j++) table[t * frame + j] = (1 - w) * base[i * frame + j] + w * base[next * frame + j];
    }
    free(base);
    return true;
}

static void part_write(float *out, int position, int width)
{
    for (int i = 0; i < width / 2; i++) {
        const double angle = position * pow(10000.0, -(double)i / (width / 2.0));
        out[i] = (float)sin(angle);
        out[width / 2 + i] = (float)cos(angle);
    }
}

void tpo_table_clip_row(float *out, int row, int grid, int width)
{
    memset(out, 0, (size_t)width * sizeof(*out));
    if (row < 1) return;
    const int token = (row - 1) % (grid * grid), time = width / 4, place = width / 8 * 3;
    part_write(out, (row - 1) / (grid * grid), time);
    part_write(out + time, token % grid, place);
    part_write(out + time + place, token / grid, place);
}
