/* versions.h -- which versions of the weights the peers hold, and which one a request gets (docs/versions.md).
 *
 * A request is stamped when its turn comes, for all its hops, retries and heads:
 *
 *   the newest version that every set of peers holds somewhere: router, encoder where there are media, the heads it may call (none without media or
 *     |  with task none, one by its name, else all); a set of which no peer has told yet sets no bound; with no bound at all: 0
 *     +-- none: the newest that router and encoder hold; a head that lacks it costs its own call, UNAVAILABLE "version"
 *     +-- none: the peers are asked at once, then the choice is made again; still none: UNAVAILABLE "version", until the trainer publishes
 *   each hop: tpo-version names it exactly; only peers that hold it are picked (or such that have not told)
 *     +-- FAILED_PRECONDITION "version", from a replica that was started again: another peer that holds it
 *           +-- none left: nothing streamed yet: the peers are asked at once, the request starts anew on the choice of then (a few times at most)
 *                          text is out already, or once too often: UNAVAILABLE "version"; in a head's call, in that call alone
 *                          a head that was known to lack it: so in that call, at once
 *
 * So an answer is of one version, whatever is published or killed meanwhile. A service that was killed comes back with version 0 alone: then requests
 * get 0 where all still hold it, else the error (a head's: in its calls), until the trainer has published there. */
#ifndef TPO_GATEWAY_VERSIONS_H
#define TPO_GATEWAY_VERSIONS_H

#include "gateway.pb-c.h"
#include "gateway/gateway.h"

struct tpo_version_watch;

/* Asks every peer for its Status, again and again. */
int tpo_version_watch_open(struct tpo_version_watch **out, struct tpo_gateway *g, struct tpo_error *err);
/* Once the peers are closed. Whoever waits is called; the gateway is held until the timers are closed. Accepts NULL. */
void tpo_version_watch_close(struct tpo_version_watch *w);

struct tpo_version_choice {
    uint64_t number;
    bool heads; /* the heads that may be called hold it, too, as far as they have told */
};
/* False, and *err, when router and encoder have told of no version in common. */
bool tpo_version_choose(struct tpo_version_watch *w, const Tpo__V1__PerceiveRequest *q, struct tpo_version_choice *out,
                        struct tpo_error *err);

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
