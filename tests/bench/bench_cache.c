/* What a cached answer saves: the same Encode request as a miss and as a hit, against a real tpo-encoder and a real redis-server.
 *
 * Random weights of models/small's dimensions on every core, as `tpo up` starts an encoder; a larger model's miss costs more, its hit about the same. */
#include <limits.h>

#include "common/clock.h"
#include "tests/bench/after.h"
#include "tests/services/encoder/live.h"

#define ROUNDS 40

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void make(const char *command)
{
    if (system(command) != 0) live_die(command);
}

static void put_file(struct live *l, const char *path, char id[TPO_SHA256_HEX])
{
    static uint8_t data[16 << 20];
    struct live_put p;
    FILE *f = fopen(path, "rb");
    size_t n = f != NULL ? fread(data, 1, sizeof(data), f) : 0;
    if (f != NULL) fclose(f);
    if (n == 0 || live_put(l, NULL, data, n, 1 << 20, &p) != TPO_OK) live_die(path);
    strcpy(id, p.id);
}

/* One request's latency as the client sees it. */
static double timed(struct live *l, const char *id, char cache[16])
{
    Tpo__V1__EncodeReply *reply;
    struct tpo_payload visual = {0};
    struct tpo_error err;
    double began = tpo_now_ms();
    if (live_encode(l, id, &reply, &visual, &err) != TPO_OK) live_die(err.message);
    double ms = tpo_now_ms() - began;
    snprintf(cache, 16, "%s", reply->cache);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    tpo_payload_free(&visual);
    return ms;
}

static void flush(const struct live *l)
{
    char command[96];
    snprintf(command, sizeof(command), "redis-cli -p %d flushall >/dev/null", l->redis_port);
    make(command);
}

static void measure(struct live *l, const char *what, const char *path)
{
    double hits[ROUNDS], misses[ROUNDS];
    char id[TPO_SHA256_HEX], cache[16];
    put_file(l, path, id);
    for (int i = 0, n = 0; n < ROUNDS; i++) { /* a value on its way into Redis may come after the flush */
        flush(l);
        misses[n] = timed(l, id, cache);
        if (strcmp(cache, "miss") == 0)
            n++;
        else if (i > 4 * ROUNDS)
            live_die("no misses");
    }
    for (int i = 0, n = 0; n < ROUNDS; i++) {
        hits[n] = timed(l, id, cache);
        if (strcmp(cache, "hit") == 0)
            n++;
        else if (i > 20 * ROUNDS)
            live_die("no hits");
    }
    qsort(hits, ROUNDS, sizeof(*hits), compare);
    qsort(misses, ROUNDS, sizeof(*misses), compare);
    printf("%-28s miss p50 %8.2f ms  p90 %8.2f    hit p50 %8.2f ms  p90 %8.2f    miss/hit %.1f\n", what, misses[ROUNDS / 2],
           misses[ROUNDS * 9 / 10], hits[ROUNDS / 2], hits[ROUNDS * 9 / 10], misses[ROUNDS / 2] / hits[ROUNDS / 2]);
}

int main(void)
{
    char build[PATH_MAX], source[PATH_MAX], dir[] = "/tmp/tpo-bench-XXXXXX";
    struct live l = {.threads = "0"};
    if (realpath(getenv("TPO_BUILD") != NULL ? getenv("TPO_BUILD") : "build", build) == NULL ||
        getcwd(source, sizeof(source)) == NULL)
        live_die("build");
    if (mkdtemp(dir) == NULL || chdir(dir) != 0) live_die(dir);
    after("rm -rf %s", dir);
    l.build = build;
    l.redis_port = live_free_port();
    live_model(&l, source);
    live_redis(&l);
    after("kill -9 %d", (int)l.redis);
    live_encoder(&l);
    after("kill -9 %d", (int)l.encoder);
    live_connect(&l);
    make("ffmpeg -v error -nostdin -y -f lavfi -i testsrc2=size=640x480 -frames:v 1 a.png");
    make("ffmpeg -v error -nostdin -y -f lavfi -i testsrc2=size=640x360:rate=25 -t 10 -pix_fmt yuv420p a.mp4");
    printf("%d requests each, one at a time, models/small's dimensions\n", ROUNDS);
    measure(&l, "png 640x480, 1 frame", "a.png");
    measure(&l, "mp4 640x360, 10 s, 8 frames", "a.mp4");
    live_close(&l);
    return 0;
}
