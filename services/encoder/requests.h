/* requests.h -- the encoder's requests: those that wait, those aboard a flight, and how each is answered.
 *
 * A request holds its call and its version from tpo_requests_new until it is answered. It waits in one line to be looked up, where it may
 * join an equal one of `flights` or lead one, and as a leader in another to be loaded: who only needs a look must not wait behind a decoder.
 * Only the leader of a flight may ask for the others aboard or end it. Any thread. */
#ifndef TPO_SERVICES_ENCODER_REQUESTS_H
#define TPO_SERVICES_ENCODER_REQUESTS_H

#include <pthread.h>

#include "common/cache_value.h"
#include "common/flight.h"
#include "common/sha256.h"
#include "services/host/host.h"

struct tpo_version;

struct tpo_encode {
    struct tpo_passenger passenger; /* first: a flight gives it back as this */
    struct tpo_encode *next;
    struct tpo_call *call;
    struct tpo_cache_key key;
    char id[TPO_SHA256_HEX];
    struct tpo_version *version; /* held */
    double came_ms;              /* tpo_now_ms */
    double looked_ms;            /* how long the look took */
};

enum tpo_request_line { TPO_TO_LOOK, TPO_TO_LOAD };

struct tpo_request_list {
    struct tpo_encode *first, **last;
    pthread_cond_t arrived;
    bool closed;
};

struct tpo_requests {
    struct tpo_host *host;
    tpo_flights_t *flights;
    pthread_mutex_t lock;
    struct tpo_request_list lines[2];
    int n_open; /* not yet answered; the host's --queue bounds them */
};

int tpo_requests_open(struct tpo_requests *q, struct tpo_host *h, struct tpo_error *err);
void tpo_requests_close(struct tpo_requests *q); /* none may be open */

/* NULL: RESOURCE_EXHAUSTED "queue_full" with retry_ms, or no memory; the call is still the caller's. id, key and version are the caller's to fill. */
struct tpo_encode *tpo_requests_new(struct tpo_requests *q, struct tpo_call *call, struct tpo_error *err);
void tpo_requests_drop(struct tpo_requests *q, struct tpo_encode *r); /* one that was not queued: its call is the caller's again */
/* False when the line is closed: the request is still the caller's. */
bool tpo_requests_queue(struct tpo_requests *q, struct tpo_encode *r, enum tpo_request_line line);
/* Waits for one; NULL after tpo_requests_stop, when none is left. */
struct tpo_encode *tpo_requests_next(struct tpo_requests *q, enum tpo_request_line line);
void tpo_requests_stop(struct tpo_requests *q, enum tpo_request_line line);

/* Ends the leader's flight: the leader and all who came aboard get the value, or the error where v is NULL. own and aboard are what their replies
 * say of the cache; began_ms is when the work began. */
void tpo_requests_land(struct tpo_requests *q, struct tpo_encode *leader, const struct tpo_cached *v, const char *own,
                       const char *aboard, double began_ms, const struct tpo_error *err);
/* Of all aboard, the time of the one who waits longest: a leader's deadline must not fail its passengers. 0 or less: nobody waits any more. */
double tpo_requests_left_ms(struct tpo_requests *q, const struct tpo_encode *leader);
/* Ends a flight without a result: who still waits starts anew, one of them as the leader. */
void tpo_requests_disband(struct tpo_requests *q, struct tpo_encode *leader);
bool tpo_requests_abandoned(struct tpo_requests *q,
                            struct tpo_encode *leader); /* whether nobody waits: then it has been disbanded */

#endif
