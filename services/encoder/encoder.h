/* encoder.h -- frames to visual tokens: the UMT ViT (vit.c) and the Q-Former (qformer.c): docs/model.md, Vision encoder
 * and Q-Former.
 *
 * It runs without a network: the service, the trainer and the tests call these same functions. One thread owns an encoder. */
#ifndef TPO_SERVICES_ENCODER_H
#define TPO_SERVICES_ENCODER_H

#include "nn/config.h"
#include "nn/model.h"

struct tpo_encoder;

/* The dense aid's heads: this many attributes (shape, colour, size, pattern, direction), each of at most so many classes. */
#define TPO_DENSE_ATTRIBUTES 5
#define TPO_DENSE_CLASSES    16

/* Declares every tensor the encoder owns, in the published names; dense != 0 adds the training-only heads ext.encoder.dense.*. */
void tpo_encoder_schema(struct tpo_params *p, const struct tpo_config *c, int dense);

/* From a folder (NULL: random weights of `seed`). Borrowed: the stream. */
int tpo_encoder_open(struct tpo_encoder **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder, int dense,
                     uint64_t seed, struct tpo_error *err);
void tpo_encoder_close(struct tpo_encoder *e); /* accepts NULL and the half-built */

/* INVALID_ARGUMENT "frame_count" for a clip of T frames that tpo_encoder_run would refuse. */
int tpo_encoder_takes(const struct tpo_config *c, int T, struct tpo_error *err);

/* Visual tokens of one clip. pixels (T, H, W, 3) u8 at img_size; visual (Q, C) f32, written. T is 1 (an image) or 1..num_frames
 * with ext_position, else 1 or num_frames: INVALID_ARGUMENT otherwise. */
int tpo_encoder_run(struct tpo_encoder *e, float *visual, const uint8_t *pixels, int T, struct tpo_error *err);

/* For training: reads sample pixels (samples of equal frame count, side by side in the micro-batch, run as one batch); output
 * "visual" (samples * Q, C); loss "dense" from targets "dense.attributes" (T*patches, 1..TPO_DENSE_ATTRIBUTES) I32, classes
 * below TPO_DENSE_CLASSES, -100 where no object covers the patch or the attribute means nothing (direction on an image), and
 * "dense.boxes" (T*patches, 4) F32: the sum over attributes of the mean cross entropy, plus 10 times the mean L1 of the box over
 * covered patches. */
struct tpo_model *tpo_encoder_model(struct tpo_encoder *e);

#endif
