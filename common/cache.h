/* cache.h -- values by key in a Redis that may be absent, slow or lying: none of it changes an answer.
 *
 * A thread of the cache's own holds the connection (hiredis, blocking). A caller waits for a value at most min(50 ms, the median time that a miss
 * took lately) and computes then. Whatever does not unpack (cache_value.h) is a miss. After a failure the connection is tried again after 100 ms,
 * 200 ms, ... 5 s; until then every get is a miss at once. Any thread may call; every result is counted:
 * tpo_cache_requests_total{cache=NAME,result=hit|miss|corrupt|timeout|down} and tpo_cache_writes_total{cache=NAME,result=ok|dropped|failed}. */
#ifndef TPO_COMMON_CACHE_H
#define TPO_COMMON_CACHE_H

#include "common/cache_value.h"
#include "common/metrics.h"
#include "common/status.h"

struct tpo_cache_options {
    const char *address;         /* "127.0.0.1:6379", "[::1]:6379" or "unix:/path" */
    const char *secret_file;     /* NULL or "": values carry a checksum; else an HMAC under that file's bytes */
    const char *name;            /* label of the counters; borrowed */
    struct tpo_metrics *metrics; /* borrowed; may be NULL */
    int ttl_s;                   /* of a value; 0: a week */
};

typedef struct tpo_cache tpo_cache_t;

enum tpo_cache_result { TPO_CACHE_HIT, TPO_CACHE_MISS, TPO_CACHE_CORRUPT, TPO_CACHE_TIMEOUT, TPO_CACHE_DOWN };

/* Does not wait for Redis. INVALID_ARGUMENT "cache_address", "cache_secret" (unreadable or empty). */
int tpo_cache_open(tpo_cache_t **out, const struct tpo_cache_options *options, struct tpo_error *err);
void tpo_cache_close(tpo_cache_t *c); /* writes still queued are tried for a moment; accepts NULL */

/* On TPO_CACHE_HIT the value is the caller's (tpo_cached_free); on anything else it is zeroed. */
enum tpo_cache_result tpo_cache_get(tpo_cache_t *c, const struct tpo_cache_key *key, struct tpo_cached *value);
/* Copies the value and returns; the write happens later or, when too many wait, never. */
void tpo_cache_put(tpo_cache_t *c, const struct tpo_cache_key *key, const struct tpo_cached *value);
/* How long computing a value took that was not there. */
void tpo_cache_missed(tpo_cache_t *c, double ms);

#endif
