/* ask.h -- one sentence about a scene and its answer, in words and as truth. */
#ifndef TPO_TRAINER_WORLD_ASK_H
#define TPO_TRAINER_WORLD_ASK_H

#include "trainer/world/phrases.h"
#include "trainer/world/refer.h"

#define TPO_ASK_TEXT 640

struct tpo_asked {
    enum tpo_world_kind kind;
    char question[TPO_ASK_TEXT], answer[TPO_ASK_TEXT];
    bool hard, unseen;
    int asked;  /* attribute asked for, -1 */
    int target; /* object that the answer is about, -1 */
    int outermost;
    uint8_t matches; /* of the head */
    uint8_t counted; /* objects that a count or a "yes" is about */
    int n_nouns;
    struct {
        int offset; /* of the noun in the question, bytes */
        uint8_t matches;
    } nouns[4];
    int n_options, right; /* multiple choice */
    struct {
        int letter, word; /* offsets */
    } options[4];
    int n_told; /* a description's objects, in its order */
    struct {
        int object, begin, end; /* the bytes of the answer that say what it is and does, its article left out */
    } told[TPO_WORLD_OBJECTS_MAX];
};

/* False when the scene can't be asked this. */
bool tpo_ask(struct tpo_asked *out, const struct tpo_facts *f, const struct tpo_phrases *p, struct tpo_rng *r,
             enum tpo_world_kind kind, bool unseen);

/* The bare phrase of a kind that asks for a box, "the star left of the large cup", as `question`. */
bool tpo_ask_expression(struct tpo_asked *out, const struct tpo_facts *f, struct tpo_rng *r, enum tpo_world_kind kind);

/* The objects of a description, in its order: left to right. */
void tpo_ask_order(const struct tpo_facts *f, int order[TPO_WORLD_OBJECTS_MAX]);

#endif
