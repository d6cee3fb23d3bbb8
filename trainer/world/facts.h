/* facts.h -- what can be said truly of a scene's first frame, as sets of objects (bit o: object o). */
#ifndef TPO_TRAINER_WORLD_FACTS_H
#define TPO_TRAINER_WORLD_FACTS_H

#include "trainer/world/scene.h"

enum tpo_side { TPO_SIDE_LEFT, TPO_SIDE_RIGHT, TPO_SIDE_ABOVE, TPO_SIDE_BELOW, TPO_SIDES };

/* Attributes that words may name; a set of them is a number 0..15 (bit a: attribute a is named). Direction is never part of a
 * phrase. */
#define TPO_NAMED      4
#define TPO_NAMED_SETS (1 << TPO_NAMED)

/* Of the relations whose target is simply the outermost match so many stay: elsewhere the anchor would never be needed. */
#define TPO_OUTERMOST_KEPT .2f

struct tpo_facts {
    const struct tpo_scene *scene;
    int n;
    uint8_t all, targets, moving /* good for a direction */, anchors;
    bool reserved; /* targets are objects of reserved pairs, instead of all others */
    /* What only training narrows, after tpo_facts_find: objects that no set of candidates of a relation may hold, and the share of relations that
     * are kept although their target is simply the outermost match. */
    uint8_t shunned;
    float outermost_kept;
    float box[TPO_WORLD_OBJECTS_MAX][4], centre[TPO_WORLD_OBJECTS_MAX][2];
    int middle[TPO_WORLD_OBJECTS_MAX][2]; /* twice the centre of the box in pixels: whole, so that no rounding decides */
    uint8_t same[TPO_WORLD_OBJECTS_MAX][TPO_NAMED_SETS];     /* objects that share these attributes with o, o among them */
    uint8_t cone[TPO_WORLD_OBJECTS_MAX][TPO_SIDES];          /* objects in the cone of .8 on that side of o */
    uint8_t wide[TPO_WORLD_OBJECTS_MAX][TPO_SIDES];          /* ... of 1.25 */
    uint8_t beyond[TPO_WORLD_OBJECTS_MAX][TPO_SIDES];        /* objects further out on that side than o, anywhere */
    int apart[TPO_WORLD_OBJECTS_MAX][TPO_WORLD_OBJECTS_MAX]; /* squares of the distances between middles */
};

void tpo_facts_find(struct tpo_facts *f, const struct tpo_scene *scene, bool reserved);

/* Shuns the objects of reserved pairs. They are never a target in training; were they candidates there, they would always be the wrong one, and
 * that is what a model learns of them. */
void tpo_facts_shun_reserved(struct tpo_facts *f);

#endif
