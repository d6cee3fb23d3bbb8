/* files.h -- what `tpo world` writes. */
#ifndef TPO_TRAINER_WORLD_FILES_H
#define TPO_TRAINER_WORLD_FILES_H

#include "trainer/world/view.h"

/* Sentences for spm_train. */
int tpo_world_corpus(const char *path, struct tpo_error *err);

/* Every pixel becomes zoom x zoom of its like: easier on the eye, and spared by a video's coarser colours; a resize back gives the drawn pixels. */
uint8_t *tpo_world_zoom(const uint8_t *pixels, int n_frames, int side, int zoom); /* malloc'd; NULL without memory */

int tpo_world_png(const char *path, const uint8_t *pixels, int side, struct tpo_error *err);
/* H.264 by the `ffmpeg` program, one stored frame for each of pixels (T, S, S, 3). */
int tpo_world_mp4(const char *path, const uint8_t *pixels, int n_frames, int side, int frames_per_s, struct tpo_error *err);

struct tpo_world_export {
    enum tpo_world_split split;
    uint64_t seed;
    int n_images, n_clips, n_frames, side, zoom, sentences /* of each picture, at most */;
    const char *out;
    bool progress;
};
/* OUT/images/NAME.png, OUT/videos/NAME.mp4, OUT/instances.json, OUT/refs.json (RefCOCO), OUT/image_it.json, OUT/video_it.json (VideoChat2-IT)
 * and OUT/mvbench/TASK.json. docs/world.md tells the fields. */
int tpo_world_export(const struct tpo_world_export *e, struct tpo_error *err);

#endif
