/* The cache before a real redis-server, killed and started again, and before servers that are slow, absent or lie. */
#include "common/cache.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/dtype.h"
#include "common/flight.h"
#include "tests/support/test.h"

extern char **environ;

static struct tpo_cache_key key_of(const char *text)
{
    struct tpo_cache_key key;
    tpo_cache_key_make(&key, &text, 1);
    return key;
}

static struct tpo_cached sample(int n)
{
    struct tpo_cached v = {
        .dtype = TPO_F32, .n_dims = 2, .shape = {n, 3}, .width = 640, .height = 360, .duration_s = 2.5, .n_frames = 2};
    v.data_bytes = (size_t)n * 12;
    v.data = aligned_alloc(64, (v.data_bytes + 63) & ~(size_t)63);
    for (int i = 0; i < 3 * n; i++) ((float *)v.data)[i] = (float)i * 0.37f - 1;
    v.indices = malloc(2 * sizeof(*v.indices));
    v.times = malloc(2 * sizeof(*v.times));
    v.indices[0] = 3, v.indices[1] = 11;
    v.times[0] = 0.12, v.times[1] = 0.44;
    return v;
}

static void assert_equal(const struct tpo_cached *a, const struct tpo_cached *b)
{
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->n_dims, b->n_dims);
    assert_memory_equal(a->shape, b->shape, sizeof(a->shape));
    assert_int_equal(a->data_bytes, b->data_bytes);
    assert_memory_equal(a->data, b->data, a->data_bytes);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_true(a->duration_s == b->duration_s);
    assert_int_equal(a->n_frames, b->n_frames);
    assert_memory_equal(a->indices, b->indices, (size_t)a->n_frames * sizeof(*a->indices));
    assert_memory_equal(a->times, b->times, (size_t)a->n_frames * sizeof(*a->times));
}

/* --- the value's bytes ---------------------------------------------------------------------------------------------------------------- */
static void a_value_survives_and_nothing_else_does(void **state)
{
    (void)state;
    struct tpo_cached v = sample(5), got;
    struct tpo_cache_key key = key_of("a"), other = key_of("b");
    size_t size;
    uint8_t *bytes = tpo_cached_pack(&v, &key, NULL, 0, &size);
    assert_non_null(bytes);
    assert_int_equal(tpo_cached_unpack(&got, &key, NULL, 0, bytes, size), 0);
    assert_int_equal((uintptr_t)got.data % 64, 0);
    assert_equal(&v, &got);
    tpo_cached_free(&got);
    assert_int_equal(tpo_cached_unpack(&got, &other, NULL, 0, bytes, size), -1);                              /* swapped */
    for (size_t n = 0; n < size; n++) assert_int_equal(tpo_cached_unpack(&got, &key, NULL, 0, bytes, n), -1); /* torn */
    for (size_t i = 0; i < size; i++) {
        bytes[i] ^= 1;
        assert_int_equal(tpo_cached_unpack(&got, &key, NULL, 0, bytes, size), -1);
        bytes[i] ^= 1;
    }
    free(bytes);
    tpo_cached_free(&v);
}

/* Sizes that lie under a checksum that is right: what a server that knows our layout could write. */
static void sizes_are_checked_under_a_sound_checksum(void **state)
{
    (void)state;
    struct tpo_cached v = sample(5), got;
    struct tpo_cache_key key = key_of("a");
    size_t size;
    uint8_t *bytes = tpo_cached_pack(&v, &key, NULL, 0, &size), *copy = malloc(size);
    for (size_t at = 40; at < 40 + 8 + 64 + 8 + 8 + 8 + 8; at++)
        for (int value = 0; value < 3; value++) {
            memcpy(copy, bytes, size);
            copy[at] = value == 0 ? 0xff : value == 1 ? 0x80 : (uint8_t)(copy[at] + 1);
            tpo_sha256(copy + size - 32, copy, size - 32);
            if (tpo_cached_unpack(&got, &key, NULL, 0, copy, size) != 0) continue;
            assert_int_equal(got.data_bytes, v.data_bytes); /* a changed width or duration is theirs to tell; sizes are not */
            tpo_cached_free(&got);
        }
    free(copy), free(bytes);
    tpo_cached_free(&v);
}

static void a_secret_keeps_forgers_out(void **state)
{
    (void)state;
    struct tpo_cached v = sample(2), got;
    struct tpo_cache_key key = key_of("a");
    size_t size;
    uint8_t *plain = tpo_cached_pack(&v, &key, NULL, 0, &size),
            *sealed = tpo_cached_pack(&v, &key, (const uint8_t *)"secret", 6, &size);
    assert_int_equal(tpo_cached_unpack(&got, &key, (const uint8_t *)"secret", 6, plain, size), -1);
    assert_int_equal(tpo_cached_unpack(&got, &key, (const uint8_t *)"Secret", 6, sealed, size), -1);
    assert_int_equal(tpo_cached_unpack(&got, &key, NULL, 0, sealed, size), -1);
    assert_int_equal(tpo_cached_unpack(&got, &key, (const uint8_t *)"secret", 6, sealed, size), 0);
    tpo_cached_free(&got);
    tpo_cached_free(&v);
    free(plain), free(sealed);
}

static void keys_keep_their_parts_apart(void **state)
{
    (void)state;
    struct tpo_cache_key a, b;
    tpo_cache_key_make(&a, (const char *[]){"ab", "c"}, 2);
    tpo_cache_key_make(&b, (const char *[]){"a", "bc"}, 2);
    assert_memory_not_equal(&a, &b, sizeof(a));
}

/* --- servers -------------------------------------------------------------------------------------------------------------------------- */
static int listener(int *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 8), 0);
    getsockname(fd, (struct sockaddr *)&a, &n);
    *port = ntohs(a.sin_port);
    return fd;
}

static pid_t start_redis(int port)
{
    char text[16];
    pid_t pid;
    snprintf(text, sizeof(text), "%d", port);
    char *argv[] = {"redis-server", "--port", text,        "--bind",    "127.0.0.1", "--save", "",
                    "--appendonly", "no",     "--logfile", "redis.log", NULL};
    assert_int_equal(posix_spawnp(&pid, "redis-server", NULL, NULL, argv, environ), 0);
    for (int i = 0; i < 500; i++) {
        struct sockaddr_in a = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = connect(fd, (struct sockaddr *)&a, sizeof(a));
        close(fd);
        if (rc == 0) return pid;
        usleep(10000);
    }
    fail_msg("redis-server does not come up");
    return -1;
}

static void stop(pid_t pid, int with)
{
    kill(pid, with);
    waitpid(pid, NULL, 0);
}

static tpo_cache_t *cache_at(int port, const char *secret_file, struct tpo_metrics *m)
{
    char address[32];
    tpo_cache_t *c;
    struct tpo_error err;
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    struct tpo_cache_options o = {.address = address, .secret_file = secret_file, .name = "t", .metrics = m};
    if (tpo_cache_open(&c, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    return c;
}

/* Asks until the answer is `want`: writes and reconnects happen on a thread of the cache's own. */
static void becomes(tpo_cache_t *c, const struct tpo_cache_key *key, enum tpo_cache_result want, struct tpo_cached *v)
{
    enum tpo_cache_result got = TPO_CACHE_MISS;
    for (int i = 0; i < 1500; i++) {
        if ((got = tpo_cache_get(c, key, v)) == want) return;
        tpo_cached_free(v);
        usleep(10000);
    }
    fail_msg("result %d, want %d", got, want);
}

static int free_port(void)
{
    int port;
    close(listener(&port));
    return port;
}

static void a_real_redis_keeps_values(void **state)
{
    (void)state;
    int port = free_port();
    pid_t redis = start_redis(port);
    struct tpo_metrics *m;
    assert_int_equal(tpo_metrics_open(&m, NULL), TPO_OK);
    tpo_cache_t *c = cache_at(port, NULL, m);
    struct tpo_cached v = sample(1000), got;
    struct tpo_cache_key key = key_of("a"), other = key_of("b");
    becomes(c, &key, TPO_CACHE_MISS, &got);
    tpo_cache_put(c, &key, &v);
    becomes(c, &key, TPO_CACHE_HIT, &got);
    assert_equal(&v, &got);
    tpo_cached_free(&got);
    becomes(c, &other, TPO_CACHE_MISS, &got);
    char labels[64];
    tpo_metrics_labels(labels, sizeof(labels), "cache", "t", "result", "hit", NULL);
    assert_true(tpo_metrics_get(m, "tpo_cache_requests_total", labels) >= 1);
    tpo_cache_close(c);
    c = cache_at(port, NULL, NULL); /* another process would find it too */
    becomes(c, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    tpo_cache_close(c);
    tpo_cached_free(&v);
    tpo_metrics_close(m);
    stop(redis, SIGTERM);
}

static void redis_dies_and_comes_back(void **state)
{
    (void)state;
    int port = free_port();
    pid_t redis = start_redis(port);
    tpo_cache_t *c = cache_at(port, NULL, NULL);
    struct tpo_cached v = sample(10), got;
    struct tpo_cache_key key = key_of("a");
    becomes(c, &key, TPO_CACHE_MISS, &got);
    stop(redis, SIGKILL);
    for (int i = 0; i < 20; i++) {
        assert_int_not_equal(tpo_cache_get(c, &key, &got), TPO_CACHE_HIT);
        tpo_cache_put(c, &key, &v);
    }
    becomes(c, &key, TPO_CACHE_DOWN, &got);
    redis = start_redis(port);
    becomes(c, &key, TPO_CACHE_MISS, &got); /* by itself */
    tpo_cache_put(c, &key, &v);
    becomes(c, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    tpo_cache_close(c);
    tpo_cached_free(&v);
    stop(redis, SIGTERM);
}

static void a_stopped_redis_is_waited_for_briefly(void **state)
{
    (void)state;
    int port = free_port();
    pid_t redis = start_redis(port);
    tpo_cache_t *c = cache_at(port, NULL, NULL);
    struct tpo_cached v = sample(10), got;
    struct tpo_cache_key key = key_of("a");
    tpo_cache_put(c, &key, &v);
    becomes(c, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    kill(redis, SIGSTOP);
    assert_int_equal(tpo_cache_get(c, &key, &got), TPO_CACHE_TIMEOUT);
    becomes(c, &key, TPO_CACHE_DOWN, &got);
    kill(redis, SIGCONT);
    becomes(c, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    tpo_cache_close(c);
    tpo_cached_free(&v);
    stop(redis, SIGKILL);
}

static void values_of_another_secret_are_misses(void **state)
{
    (void)state;
    int port = free_port();
    pid_t redis = start_redis(port);
    FILE *f = fopen("secret", "w");
    fputs("correct horse", f);
    fclose(f);
    tpo_cache_t *plain = cache_at(port, NULL, NULL), *sealed = cache_at(port, "secret", NULL);
    struct tpo_cached v = sample(4), got;
    struct tpo_cache_key key = key_of("a");
    tpo_cache_put(plain, &key, &v);
    becomes(plain, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    becomes(sealed, &key, TPO_CACHE_CORRUPT, &got);
    tpo_cache_put(sealed, &key, &v);
    becomes(sealed, &key, TPO_CACHE_HIT, &got);
    tpo_cached_free(&got);
    becomes(plain, &key, TPO_CACHE_CORRUPT, &got);
    tpo_cache_close(plain);
    tpo_cache_close(sealed);
    tpo_cached_free(&v);
    stop(redis, SIGTERM);
}

static void nobody_listens(void **state)
{
    (void)state;
    tpo_cache_t *c = cache_at(free_port(), NULL, NULL);
    struct tpo_cached v = sample(4), got;
    struct tpo_cache_key key = key_of("a");
    becomes(c, &key, TPO_CACHE_DOWN, &got);
    tpo_cache_put(c, &key, &v);
    assert_null(got.data);
    tpo_cache_close(c);
    tpo_cached_free(&v);
}

/* A server that answers whatever it is asked with bytes of the test's, the last of them after a pause. */
struct liar {
    int listener, port;
    const void *answer;
    size_t size;
    int drip; /* one byte every 20 ms, for ever */
    int hang_up;
    atomic_int stop;
    pthread_t thread;
};

static void *lie(void *arg)
{
    struct liar *l = arg;
    int fd = -1;
    while (!l->stop) {
        char buffer[4096];
        struct pollfd p[2] = {{.fd = l->listener, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        poll(p, 2, 20);
        if (p[0].revents & POLLIN) {
            if (fd >= 0) close(fd);
            fd = accept(l->listener, NULL, NULL);
        } else if (fd >= 0 && (p[1].revents & (POLLIN | POLLHUP))) {
            if (read(fd, buffer, sizeof(buffer)) <= 0) {
                close(fd);
                fd = -1;
                continue;
            }
            send(fd, l->answer, l->size, MSG_NOSIGNAL);
            if (l->hang_up) close(fd), fd = -1;
        } else if (fd >= 0 && l->drip) {
            send(fd, "x", 1, MSG_NOSIGNAL);
        }
    }
    if (fd >= 0) close(fd);
    close(l->listener);
    return NULL;
}

static void never_hits(const void *answer, size_t size, int drip, int hang_up)
{
    struct liar l = {.answer = answer, .size = size, .drip = drip, .hang_up = hang_up};
    l.listener = listener(&l.port);
    pthread_create(&l.thread, NULL, lie, &l);
    tpo_cache_t *c = cache_at(l.port, NULL, NULL);
    struct tpo_cached v = sample(4), got;
    struct tpo_cache_key key = key_of("a");
    for (int i = 0; i < 6; i++) {
        assert_int_not_equal(tpo_cache_get(c, &key, &got), TPO_CACHE_HIT);
        assert_null(got.data);
        tpo_cache_put(c, &key, &v);
        usleep(30000);
    }
    tpo_cache_close(c);
    l.stop = 1;
    pthread_join(l.thread, NULL);
    tpo_cached_free(&v);
}

static void lying_servers_never_hit(void **state)
{
    (void)state;
    static const char *const answers[] = {"$5\r\nhello\r\n",
                                          "+OK\r\n",
                                          ":1\r\n",
                                          "-ERR no\r\n",
                                          "$-1\r\n",
                                          "*2147483647\r\n",
                                          "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
                                          "HTTP/1.1 200 OK\r\n\r\n",
                                          "$99999999999999999999\r\n",
                                          "$2000000000\r\nabc",
                                          "",
                                          "$0\r\n\r\n",
                                          "\0\0\0\0"};
    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) never_hits(answers[i], strlen(answers[i]), 0, 0);
    never_hits("$100000\r\n", 9, 1, 0);
    never_hits("$100000\r\nabc", 12, 0, 1);
}

/* The right bytes, of another key. */
static void a_swapped_value_is_a_miss(void **state)
{
    (void)state;
    struct tpo_cached v = sample(4);
    struct tpo_cache_key other = key_of("b");
    size_t size;
    uint8_t *bytes = tpo_cached_pack(&v, &other, NULL, 0, &size), *answer = malloc(size + 32);
    int n = sprintf((char *)answer, "$%zu\r\n", size);
    memcpy(answer + n, bytes, size);
    memcpy(answer + n + size, "\r\n", 2);
    never_hits(answer, (size_t)n + size + 2, 0, 0);
    free(bytes), free(answer);
    tpo_cached_free(&v);
}

static void refuses_addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "localhost", ":1", "h:", "h:0", "h:65536", "h:1x"};
    tpo_cache_t *c;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tpo_error err;
        struct tpo_cache_options o = {.address = bad[i], .name = "t"};
        assert_int_equal(tpo_cache_open(&c, &o, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "cache_address");
    }
    struct tpo_error err;
    struct tpo_cache_options o = {.address = "h:1", .name = "t", .secret_file = "/nonexistent"};
    assert_int_equal(tpo_cache_open(&c, &o, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "cache_secret");
}

static void count_aboard(void *owner, const struct tpo_passenger *p)
{
    assert_non_null(p);
    ++*(int *)owner;
}

static void equal_flights_are_shared(void **state)
{
    (void)state;
    tpo_flights_t *f = tpo_flights_open();
    int n_aboard = 0;
    struct tpo_cache_key a = key_of("a"), b = key_of("b");
    struct tpo_passenger p[5];
    assert_true(tpo_flight_join(f, &a, &p[0]));
    assert_true(tpo_flight_join(f, &b, &p[1]));
    assert_false(tpo_flight_join(f, &a, &p[2]));
    assert_false(tpo_flight_join(f, &a, &p[3]));
    tpo_flight_look(f, &a, count_aboard, &n_aboard);
    assert_int_equal(n_aboard, 2);
    tpo_flight_look(f, &b, count_aboard, &n_aboard);
    assert_int_equal(n_aboard, 2);
    struct tpo_passenger *landed = tpo_flight_land(f, &a);
    assert_ptr_equal(landed, &p[2]);
    assert_ptr_equal(landed->next, &p[3]);
    assert_null(landed->next->next);
    assert_true(tpo_flight_join(f, &a, &p[4])); /* landed: the next one flies anew */
    assert_null(tpo_flight_land(f, &a));
    assert_null(tpo_flight_land(f, &b));
    tpo_flights_close(f);
}

TPO_TESTS(cmocka_unit_test(a_value_survives_and_nothing_else_does), cmocka_unit_test(sizes_are_checked_under_a_sound_checksum),
          cmocka_unit_test(a_secret_keeps_forgers_out), cmocka_unit_test(keys_keep_their_parts_apart),
          cmocka_unit_test(a_real_redis_keeps_values), cmocka_unit_test(redis_dies_and_comes_back),
          cmocka_unit_test(a_stopped_redis_is_waited_for_briefly), cmocka_unit_test(values_of_another_secret_are_misses),
          cmocka_unit_test(nobody_listens), cmocka_unit_test(lying_servers_never_hit), cmocka_unit_test(a_swapped_value_is_a_miss),
          cmocka_unit_test(refuses_addresses), cmocka_unit_test(equal_flights_are_shared))
