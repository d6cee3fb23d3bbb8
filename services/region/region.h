/* region.h -- the region head: a task embedding to a box (docs/model.md, Region head: linear D -> H, ReLU, linear -> 4). */
#ifndef TPO_SERVICES_REGION_H
#define TPO_SERVICES_REGION_H

#include "nn/config.h"
#include "nn/model.h"

struct tpo_region;

void tpo_region_schema(struct tpo_params *p, const struct tpo_config *c);
int tpo_region_open(struct tpo_region **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder, uint64_t seed,
                    struct tpo_error *err);
void tpo_region_close(struct tpo_region *r);

/* e (n, D) f32 -> boxes (n, 4) f32 normalised corners, clamped to 0..1 and ordered (the raw output has no such guarantee). */
int tpo_region_run(struct tpo_region *r, float *boxes, const float *e, int n, struct tpo_error *err);

/* For training: input "e.region" (n, D) and "boxes" (n, 4); output "boxes"; loss "region" = 2 mean|p-g| + 1/5 mean(1-GIoU). */
struct tpo_model *tpo_region_model(struct tpo_region *r);

#endif
