/* scene.h -- one scene: objects with attributes, places and motion, its pixels, and which object each pixel shows.
 *
 * O objects, T frames, S pixels a side. Later objects lie on top of earlier ones. */
#ifndef TPO_TRAINER_WORLD_SCENE_H
#define TPO_TRAINER_WORLD_SCENE_H

#include "trainer/world/rng.h"
#include "trainer/world/world.h"

#define TPO_SCENE_GROUND 255 /* label of a pixel that shows no object */

struct tpo_scene_object {
    int attributes[TPO_WORLD_ATTRIBUTES];
    float radius;                                           /* pixels; half the extent, nearly */
    float x[TPO_WORLD_FRAMES_MAX], y[TPO_WORLD_FRAMES_MAX]; /* centre, pixels */
    float tint[3];                                          /* this object's own shade of its colour, 0..255 */
    int whole[TPO_WORLD_FRAMES_MAX];                        /* pixels it would show alone */
    int visible[TPO_WORLD_FRAMES_MAX];                      /* pixels it shows */
    int edges[TPO_WORLD_FRAMES_MAX][4]; /* tight box of these: x0 y0 x1 y1 in pixels, far edges exclusive; zeros when none */
};

struct tpo_scene {
    int side, n_frames, n_objects;
    struct tpo_scene_object objects[TPO_WORLD_OBJECTS_MAX];
    uint8_t *pixels; /* (T, S, S, 3) */
    uint8_t *labels; /* (T, S, S): index of the object on top, or TPO_SCENE_GROUND */
};

/* Memory for pixels and labels; may be made into a scene any number of times. */
int tpo_scene_alloc(struct tpo_scene *scene, struct tpo_arena *arena, int side, int n_frames);

/* min_objects .. 8 objects; each shows at least half of itself on the first frame. `reserved` puts objects of reserved pairs among
 * them. */
void tpo_scene_make(struct tpo_scene *scene, uint64_t key, int min_objects, bool reserved);

/* Draws objects into pixels and labels and fills whole, visible and edges. The ground and the noise come from the key. */
void tpo_scene_draw(struct tpo_scene *scene, uint64_t key);

/* Whether the point (x, y), in units of the radius and relative to the centre (y down), is inside the shape: its distance to the
 * outline, negative inside, in the same units. */
float tpo_shape_distance(int shape, float x, float y);

void tpo_scene_box(const struct tpo_scene *scene, int object, int frame, float box[4]); /* normalised */

#endif
