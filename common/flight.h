/* flight.h -- single flight: of equal pieces of work that overlap in time, the first does it and the others wait for its result.
 *
 * The first to join a key leads; later ones become its passengers, until the leader lands and takes them all. A passenger is a struct of the
 * caller's that begins with struct tpo_passenger. Any thread may call; nothing blocks. */
#ifndef TPO_COMMON_FLIGHT_H
#define TPO_COMMON_FLIGHT_H

#include <stdbool.h>

#include "common/cache_value.h"

struct tpo_passenger {
    struct tpo_passenger *next;
};

typedef struct tpo_flights tpo_flights_t;

tpo_flights_t *tpo_flights_open(void);    /* NULL when out of memory */
void tpo_flights_close(tpo_flights_t *f); /* none may be in the air; accepts NULL */

/* True: the caller leads and must land this key. False: p is aboard an equal flight and comes back from its landing. Out of memory: true,
 * and a flight nobody can join. */
bool tpo_flight_join(tpo_flights_t *f, const struct tpo_cache_key *key, struct tpo_passenger *p);
/* Calls see(owner, p) for everyone aboard now, the leader not among them, while nobody can board or leave: see must not come back here. Only the
 * leader may ask. */
void tpo_flight_look(tpo_flights_t *f, const struct tpo_cache_key *key, void (*see)(void *owner, const struct tpo_passenger *p),
                     void *owner);
/* Ends the flight; its passengers in the order they came, NULL for none. */
struct tpo_passenger *tpo_flight_land(tpo_flights_t *f, const struct tpo_cache_key *key);

#endif
