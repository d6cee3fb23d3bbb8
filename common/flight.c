/* This file owns the work in flight. */
#include "common/flight.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/status.h"

struct flight {
    struct flight *next;
    struct tpo_cache_key key;
    struct tpo_passenger *first, **last;
};

struct tpo_flights {
    pthread_mutex_t lock;
    struct flight *list; /* as many as there are requests in work: a handful */
};

tpo_flights_t *tpo_flights_open(void)
{
    tpo_flights_t *f = calloc(1, sizeof(*f));
    if (f != NULL) pthread_mutex_init(&f->lock, NULL);
    return f;
}

void tpo_flights_close(tpo_flights_t *f)
{
    if (f == NULL) return;
    TPO_ASSERT(f->list == NULL);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static struct flight **find(tpo_flights_t *f, const struct tpo_cache_key *key)
{
    struct flight **at = &f->list;
    while (*at != NULL && memcmp(&(*at)->key, key, sizeof(*key)) != 0) at = &(*at)->next;
    return at;
}

bool tpo_flight_join(tpo_flights_t *f, const struct tpo_cache_key *key, struct tpo_passenger *p)
{
    pthread_mutex_lock(&f->lock);
    struct flight *found = *find(f, key);
    p->next = NULL;
    if (found != NULL) {
        *found->last = p;
        found->last = &p->next;
    } else {
        struct flight *new = calloc(1, sizeof(*new));
        if (new != NULL) {
            new->key = *key;
            new->last = &new->first;
            new->next = f->list;
            f->list = new;
        }
    }
    pthread_mutex_unlock(&f->lock);
    return found == NULL;
}

void tpo_flight_look(tpo_flights_t *f, const struct tpo_cache_key *key, void (*see)(void *owner, const struct tpo_passenger *p),
                     void *owner)
{
    pthread_mutex_lock(&f->lock);
    const struct flight *found = *find(f, key);
    for (const struct tpo_passenger *p = found != NULL ? found->first : NULL; p != NULL; p = p->next) see(owner, p);
    pthread_mutex_unlock(&f->lock);
}

struct tpo_passenger *tpo_flight_land(tpo_flights_t *f, const struct tpo_cache_key *key)
{
    struct tpo_passenger *first = NULL;
    pthread_mutex_lock(&f->lock);
    struct flight **at = find(f, key), *found = *at;
    if (found != NULL) {
        *at = found->next;
        first = found->first;
        free(found);
    }
    pthread_mutex_unlock(&f->lock);
    return first;
}
