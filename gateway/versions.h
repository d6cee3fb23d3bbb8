/* versions.h -- which versions of the weights the peers hold, and which one a request gets (docs/versions.md).
 *
 * A request is stamped when its turn comes, for all its hops, retries and heads:
 *
 *   the newest version that every set of peers it needs holds somewhere: router, every head that is configured, encoder where there are media
 *     |  (a set of which no peer has told yet sets no bound; with no bound at all: 0)
 *     +-- none: the peers are asked at once, then the choice is made again; still none: UNAVAILABLE "version", until the trainer publishes
 *   each hop: tpo-version names it exactly; only peers that hold it are picked (or such that have not told)
 *     +-- FAILED_PRECONDITION "version", from a replica that was started again: another peer that holds it
 *           +-- none left: nothing streamed yet: the peers are asked at once, the request starts anew on the choice of then (a few times at most)
 *                          text is out already, or once too often: UNAVAILABLE "version"; in a head's call, in that call alone
 *
 * So an answer is of one version, whatever is published or killed meanwhile. A service that was killed comes back with version 0 alone: then requests
 * get 0 where all still hold it, else the error, until the trainer has published there. */
#ifndef TPO_GATEWAY_VERSIONS_H
#define TPO_GATEWAY_VERSIONS_H

#include "gateway/gateway.h"

struct tpo_version_watch;

/* Asks every peer for its Status, again and again. */
int tpo_version_watch_open(struct tpo_version_watch **out, struct tpo_gateway *g, struct tpo_error *err);
/* Once the peers are closed. Whoever waits is called; the gateway is held until the timers are closed. Accepts NULL. */
void tpo_version_watch_close(struct tpo_version_watch *w);

/* False, and *err, when the sets have told of no version in common. */
bool tpo_version_choose(struct tpo_version_watch *w, bool media, uint64_t *out, struct tpo_error *err);

/* Memory of the caller's, until on_known: the peers have been asked since, and have answered or not. Later, never from within; exactly once. */
struct tpo_version_wait {
    struct tpo_version_wait *next;
    void (*on_known)(void *owner);
    void *owner;
};
void tpo_version_ask(struct tpo_version_watch *w, struct tpo_version_wait *wait);

/* A peer refused the version as one that it does not hold. Whether another peer has told that it holds it. */
bool tpo_version_refused(struct tpo_peers *peers, int peer, uint64_t version);

#endif
