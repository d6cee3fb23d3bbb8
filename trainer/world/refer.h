/* refer.h -- the choice of what to say: phrases that match exactly what they should. Each answers false when the scene offers none.
 */
#ifndef TPO_TRAINER_WORLD_REFER_H
#define TPO_TRAINER_WORLD_REFER_H

#include "trainer/world/facts.h"

#define TPO_SIDE_NEXT TPO_SIDES /* "next to", after the four sides */

/* Words that match a set of objects: values of the attributes named, -1 for one that isn't. */
struct tpo_noun {
    int values[TPO_NAMED];
    uint8_t matches;
};

struct tpo_reference {
    struct tpo_noun head;
    int target;
    int side; /* -1: no relation */
    struct tpo_noun anchor;
    bool hard;
    int outermost; /* index, -1 without a side */
};

/* One object of `among` by attributes alone; the set `hidden` of attributes may not be named. */
bool tpo_refer_attributes(const struct tpo_facts *f, struct tpo_rng *r, uint8_t among, int hidden, struct tpo_reference *out);
bool tpo_refer_relation(const struct tpo_facts *f, struct tpo_rng *r, int hidden, struct tpo_reference *out);
bool tpo_refer_next(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_reference *out);

/* A phrase to count by: 0..8 matches, evenly spread as far as the scene allows. */
bool tpo_refer_count(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_noun *out);
/* A phrase that matches something (real), or nothing although its words, but one, describe an object. */
bool tpo_refer_exist(const struct tpo_facts *f, struct tpo_rng *r, bool real, struct tpo_noun *out);

#endif
