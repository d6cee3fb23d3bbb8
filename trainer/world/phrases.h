/* phrases.h -- the phrasings of trainer/data/templates.yaml, which the program carries inside it. */
#ifndef TPO_TRAINER_WORLD_PHRASES_H
#define TPO_TRAINER_WORLD_PHRASES_H

#include <stdbool.h>

#include "common/status.h"

enum tpo_phrase_kind {
    TPO_PHRASE_OPENING,
    TPO_PHRASE_BOX,
    TPO_PHRASE_ATTRIBUTE,
    TPO_PHRASE_COUNT,
    TPO_PHRASE_EXIST,
    TPO_PHRASE_HALF,
    TPO_PHRASE_CHOICE,
    TPO_PHRASE_DESCRIPTION,
    TPO_PHRASE_DIRECTION,
    TPO_PHRASE_KINDS,
};

struct tpo_phrase_list {
    char **items;
    int n;
};

struct tpo_phrases {
    struct tpo_phrase_list lists[TPO_PHRASE_KINDS][2]; /* [kind][unseen] */
};

/* INTERNAL when the file is not what its head says. */
int tpo_phrases_open(struct tpo_phrases *p, struct tpo_error *err);
void tpo_phrases_close(struct tpo_phrases *p);

#endif
