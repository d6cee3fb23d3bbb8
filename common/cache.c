/* This file owns the Redis connection. */
#include "common/cache.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

#define WAIT_MS        50
#define COMMAND_MS     250 /* for Redis to answer; a caller has long gone on by then */
#define BACKOFF_MS     100
#define BACKOFF_MAX_MS 5000
#define WRITES_MAX     64
#define READS_MAX      256 /* more than these wait for a Redis that does not answer */
#define MISSES_KEPT    31
#define SECRET_MAX     4096
#define CLOSE_MS       200
#define TTL_S          (7 * 24 * 3600)
#define KEY_TEXT       (sizeof("tpo:1:") + 64)

/* A get lives on its caller's side until both have let go of it; a put is the thread's alone. */
struct op {
    struct op *next;
    struct tpo_cache_key key;
    uint8_t *bytes; /* put: the packed value */
    size_t size;
    int holders, done;
    enum tpo_cache_result result;
    struct tpo_cached value;
};

struct tpo_cache {
    char host[256];
    int port; /* 0: host is the path of a socket */
    uint8_t secret[SECRET_MAX];
    size_t secret_bytes;
    const char *name;
    struct tpo_metrics *metrics;
    int ttl_s;

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t queued, answered;
    struct op *gets, *puts;            /* oldest first; gets go before puts */
    int n_gets, n_puts, closing, down; /* down: gets need not wait */
    int64_t close_until_us;
    double misses[MISSES_KEPT], wait_ms;
    uint64_t n_misses;

    redisContext *redis; /* the thread's */
    int64_t retry_us, backoff_ms;
};

static void count(tpo_cache_t *c, const char *metric, const char *result)
{
    char labels[96];
    if (c->metrics != NULL)
        tpo_metrics_add(c->metrics, metric, tpo_metrics_labels(labels, sizeof(labels), "cache", c->name, "result", result, NULL),
                        1);
}

static void op_free(struct op *o)
{
    tpo_cached_free(&o->value);
    free(o->bytes);
    free(o);
}

static void append(struct op **list, struct op *o)
{
    while (*list != NULL) list = &(*list)->next;
    *list = o;
}

static struct op *take(struct op **list)
{
    struct op *o = *list;
    if (o != NULL) *list = o->next, o->next = NULL;
    return o;
}

/* --- the thread's side ------------------------------------------------------------------------------------------------------------- */
static void set_down(tpo_cache_t *c, int down)
{
    pthread_mutex_lock(&c->lock);
    c->down = down;
    pthread_mutex_unlock(&c->lock);
}

static void lose(tpo_cache_t *c)
{
    tpo_log(TPO_LOG_WARN, "cache_lost", "cache=%s retry_ms=%d", c->name, (int)c->backoff_ms);
    if (c->redis != NULL) redisFree(c->redis);
    c->redis = NULL;
    c->retry_us = tpo_now_us() + c->backoff_ms * 1000;
    c->backoff_ms = c->backoff_ms * 2 < BACKOFF_MAX_MS ? c->backoff_ms * 2 : BACKOFF_MAX_MS;
    set_down(c, 1);
}

static int connected(tpo_cache_t *c)
{
    const struct timeval limit = {0, COMMAND_MS * 1000};
    if (c->redis != NULL) return 1;
    if (tpo_now_us() < c->retry_us) return 0;
    c->redis = c->port != 0 ? redisConnectWithTimeout(c->host, c->port, limit) : redisConnectUnixWithTimeout(c->host, limit);
    if (c->redis == NULL || c->redis->err != 0 || redisSetTimeout(c->redis, limit) != REDIS_OK) {
        lose(c);
        return 0;
    }
    set_down(c, 0);
    return 1;
}

static const char *key_text(char out[KEY_TEXT], const struct tpo_cache_key *key)
{
    memcpy(out, "tpo:1:", 6);
    tpo_sha256_hex(out + 6, key->digest);
    return out;
}

/* redisCommand, but with one limit on the whole of it (hiredis has one per read, so a byte now and then could hold the thread for ever), one on
 * memory, and without the replies that our commands never get: lists, whose claimed length hiredis 0.14 would allocate. */
static redisReply *command(tpo_cache_t *c, int argc, const char **argv, const size_t *sizes)
{
    int64_t until_us = tpo_now_us() + COMMAND_MS * 1000;
    int sent = 0;
    void *reply = NULL;
    if (redisAppendCommandArgv(c->redis, argc, argv, sizes) != REDIS_OK) return NULL;
    while (!sent && tpo_now_us() < until_us)
        if (redisBufferWrite(c->redis, &sent) != REDIS_OK) return NULL;
    while (sent && reply == NULL && tpo_now_us() < until_us) {
        redisReader *r = c->redis->reader;
        if (redisBufferRead(c->redis) != REDIS_OK || r->len > TPO_CACHE_BYTES_MAX + 65536) return NULL;
        if (r->ridx < 0 && r->pos < r->len && strchr("$+-:", r->buf[r->pos]) == NULL) return NULL;
        if (redisGetReplyFromReader(c->redis, &reply) != REDIS_OK) return NULL;
    }
    return reply;
}

static enum tpo_cache_result run_get(tpo_cache_t *c, struct op *o)
{
    char key[KEY_TEXT];
    if (!connected(c)) return TPO_CACHE_DOWN;
    redisReply *r = command(c, 2, (const char *[]){"GET", key_text(key, &o->key)}, (const size_t[]){3, KEY_TEXT - 1});
    if (r == NULL) {
        lose(c);
        return TPO_CACHE_DOWN;
    }
    c->backoff_ms = BACKOFF_MS; /* now that it has answered, not when it accepted */
    enum tpo_cache_result result = TPO_CACHE_MISS;
    if (r->type == REDIS_REPLY_STRING)
        result = tpo_cached_unpack(&o->value, &o->key, c->secret, c->secret_bytes, (const uint8_t *)r->str, (size_t)r->len) == 0
                     ? TPO_CACHE_HIT
                     : TPO_CACHE_CORRUPT;
    else if (r->type != REDIS_REPLY_NIL)
        result = TPO_CACHE_CORRUPT;
    freeReplyObject(r);
    return result;
}

static void run_put(tpo_cache_t *c, struct op *o)
{
    char key[KEY_TEXT], ttl[16];
    redisReply *r = NULL;
    int n = snprintf(ttl, sizeof(ttl), "%d", c->ttl_s);
    if (connected(c)) {
        r = command(c, 5, (const char *[]){"SET", key_text(key, &o->key), (const char *)o->bytes, "EX", ttl},
                    (const size_t[]){3, KEY_TEXT - 1, o->size, 2, (size_t)n});
        if (r == NULL) lose(c);
    }
    count(c, "tpo_cache_writes_total", r != NULL && r->type == REDIS_REPLY_STATUS ? "ok" : "failed");
    if (r != NULL) freeReplyObject(r);
}

/* Under the lock: the next thing to do, or NULL when the cache closes. While Redis is away the connection is tried now and then, for
 * nobody else would notice that it is back. */
static struct op *next_op(tpo_cache_t *c, int *get, int *probe)
{
    for (;;) {
        int over = c->closing && (c->puts == NULL || tpo_now_us() >= c->close_until_us);
        struct op *o = over ? NULL : take(&c->gets);
        *get = o != NULL;
        c->n_gets -= *get;
        *probe = 0;
        if (o == NULL && !over && (o = take(&c->puts)) != NULL) c->n_puts--;
        if (o != NULL || over) return o;
        if (!c->down) {
            pthread_cond_wait(&c->queued, &c->lock);
            continue;
        }
        if (tpo_now_us() >= c->retry_us) {
            *probe = 1;
            return NULL;
        }
        struct timespec until = tpo_cond_until(c->retry_us);
        pthread_cond_timedwait(&c->queued, &c->lock, &until);
    }
}

static void finish_get(tpo_cache_t *c, struct op *o, enum tpo_cache_result result)
{
    pthread_mutex_lock(&c->lock);
    o->result = result;
    o->done = 1;
    int last = --o->holders == 0;
    pthread_cond_broadcast(&c->answered);
    pthread_mutex_unlock(&c->lock);
    if (last) op_free(o);
}

static int abandoned(tpo_cache_t *c, struct op *o)
{
    pthread_mutex_lock(&c->lock);
    int gone = o->holders == 1;
    pthread_mutex_unlock(&c->lock);
    return gone;
}

static void *run(void *arg)
{
    tpo_cache_t *c = arg;
    sigset_t pipe;
    /* hiredis writes to a closed connection without asking for silence. */
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    for (;;) {
        int get, probe;
        pthread_mutex_lock(&c->lock);
        struct op *o = next_op(c, &get, &probe);
        pthread_mutex_unlock(&c->lock);
        if (probe)
            connected(c);
        else if (o == NULL)
            break;
        else if (get)
            finish_get(c, o, abandoned(c, o) ? TPO_CACHE_TIMEOUT : run_get(c, o));
        else {
            run_put(c, o);
            op_free(o);
        }
    }
    return NULL;
}

/* --- the callers' side --------------------------------------------------------------------------------------------------------------- */
enum tpo_cache_result tpo_cache_get(tpo_cache_t *c, const struct tpo_cache_key *key, struct tpo_cached *value)
{
    static const char *const names[] = {"hit", "miss", "corrupt", "timeout", "down"};
    enum tpo_cache_result result = TPO_CACHE_DOWN;
    memset(value, 0, sizeof(*value));
    struct op *o = calloc(1, sizeof(*o));
    pthread_mutex_lock(&c->lock);
    if (o != NULL && !c->down && c->n_gets < READS_MAX) {
        int rc = 0;
        struct timespec until = tpo_cond_until(tpo_now_us() + (int64_t)(c->wait_ms * 1e3));
        o->key = *key;
        o->holders = 2;
        append(&c->gets, o);
        c->n_gets++;
        pthread_cond_signal(&c->queued);
        while (!o->done && rc == 0) rc = pthread_cond_timedwait(&c->answered, &c->lock, &until);
        result = o->done ? o->result : TPO_CACHE_TIMEOUT;
        if (result == TPO_CACHE_HIT) {
            *value = o->value;
            memset(&o->value, 0, sizeof(o->value));
        }
        if (--o->holders > 0) o = NULL; /* the thread frees it */
    }
    pthread_mutex_unlock(&c->lock);
    if (o != NULL) op_free(o);
    count(c, "tpo_cache_requests_total", names[result]);
    return result;
}

void tpo_cache_put(tpo_cache_t *c, const struct tpo_cache_key *key, const struct tpo_cached *value)
{
    struct op *o = calloc(1, sizeof(*o));
    int queued = 0;
    if (o != NULL) o->bytes = tpo_cached_pack(value, key, c->secret, c->secret_bytes, &o->size);
    pthread_mutex_lock(&c->lock);
    if (o != NULL && o->bytes != NULL && !c->down && !c->closing && c->n_puts < WRITES_MAX) {
        o->key = *key;
        append(&c->puts, o);
        c->n_puts++;
        queued = 1;
        pthread_cond_signal(&c->queued);
    }
    pthread_mutex_unlock(&c->lock);
    if (queued) return;
    if (o != NULL) op_free(o);
    count(c, "tpo_cache_writes_total", "dropped");
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void tpo_cache_missed(tpo_cache_t *c, double ms)
{
    double sorted[MISSES_KEPT];
    pthread_mutex_lock(&c->lock);
    c->misses[c->n_misses++ % MISSES_KEPT] = ms;
    int n = c->n_misses < MISSES_KEPT ? (int)c->n_misses : MISSES_KEPT;
    memcpy(sorted, c->misses, (size_t)n * sizeof(*sorted));
    qsort(sorted, (size_t)n, sizeof(*sorted), compare);
    c->wait_ms = sorted[n / 2] < WAIT_MS ? sorted[n / 2] : WAIT_MS;
    pthread_mutex_unlock(&c->lock);
}

static int read_secret(tpo_cache_t *c, const char *path, struct tpo_error *err)
{
    FILE *f = path != NULL && path[0] != '\0' ? fopen(path, "rbe") : NULL;
    if (path == NULL || path[0] == '\0') return TPO_OK;
    if (f != NULL) {
        c->secret_bytes = fread(c->secret, 1, sizeof(c->secret), f);
        fclose(f);
    }
    return c->secret_bytes > 0 ? TPO_OK : tpo_fail(err, TPO_INVALID_ARGUMENT, "cache_secret", "no secret in %s", path);
}

static int read_address(tpo_cache_t *c, const char *address, struct tpo_error *err)
{
    char *end = NULL;
    if (strncmp(address, "unix:", 5) == 0) {
        snprintf(c->host, sizeof(c->host), "%s", address + 5);
        return TPO_OK;
    }
    const char *colon = strrchr(address, ':');
    long port = colon != NULL && colon > address ? strtol(colon + 1, &end, 10) : 0;
    if (end == NULL || *end != '\0' || port < 1 || port > 65535 || (size_t)(colon - address) >= sizeof(c->host))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "cache_address", "`%s` is neither HOST:PORT nor unix:PATH", address);
    int brackets = address[0] == '[' && colon[-1] == ']';
    snprintf(c->host, sizeof(c->host), "%.*s", (int)(colon - address) - 2 * brackets, address + brackets);
    c->port = (int)port;
    return TPO_OK;
}

int tpo_cache_open(tpo_cache_t **out, const struct tpo_cache_options *options, struct tpo_error *err)
{
    *out = NULL;
    tpo_cache_t *c = calloc(1, sizeof(*c));
    if (c == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a cache");
    c->name = options->name;
    c->metrics = options->metrics;
    c->ttl_s = options->ttl_s > 0 ? options->ttl_s : TTL_S;
    c->wait_ms = WAIT_MS;
    c->backoff_ms = BACKOFF_MS;
    int rc = read_address(c, options->address, err);
    if (rc == TPO_OK) rc = read_secret(c, options->secret_file, err);
    if (rc != TPO_OK) {
        free(c);
        return rc;
    }
    pthread_mutex_init(&c->lock, NULL);
    tpo_cond_init(&c->queued);
    tpo_cond_init(&c->answered);
    TPO_ASSERT(pthread_create(&c->thread, NULL, run, c) == 0);
    *out = c;
    return TPO_OK;
}

void tpo_cache_close(tpo_cache_t *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->lock);
    c->closing = 1;
    c->close_until_us = tpo_now_us() + CLOSE_MS * 1000;
    pthread_cond_signal(&c->queued);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    for (struct op *o; (o = take(&c->gets)) != NULL || (o = take(&c->puts)) != NULL;) op_free(o);
    if (c->redis != NULL) redisFree(c->redis);
    pthread_cond_destroy(&c->queued);
    pthread_cond_destroy(&c->answered);
    pthread_mutex_destroy(&c->lock);
    OPENSSL_cleanse(c->secret, sizeof(c->secret));
    free(c);
}
