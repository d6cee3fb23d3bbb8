/* tables.h -- the fixed sine and cosine tables that no checkpoint holds (docs/model.md, Position tables) and the start of the
 * temporal head's clip encoder (InternVideo2). Angles in f64, stored f32. False when memory runs out. */
#ifndef TPO_NN_TABLES_H
#define TPO_NN_TABLES_H

#include <stdbool.h>

/* (n_frames * patches, width). One frame: row p, channel j is sin or cos (even, odd j) of p / 10000^(2 floor(j/2) / width). More
 * frames: that table for checkpoint_frames * patches rows, interpolated linearly along time, half-pixel centres. */
bool tpo_table_video(float *table, int n_frames, int patches, int width, int checkpoint_frames);

/* Row `row` (width) of the clip encoder's initial table: zeros for row 0 (the class token), then frames of grid x grid tokens; a
 * quarter of the columns tells the frame, three eighths each the token's row and column, as [sin | cos]. width must be a
 * multiple of 16. */
void tpo_table_clip_row(float *out, int row, int grid, int width);

#endif
