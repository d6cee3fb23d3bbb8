/* up.c -- `tpo up` and `tpo down`: the mesh on this machine. It restarts nothing: that is Compose's and Kubernetes' work. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/http.h"
#include "cli/mesh.h"
#include "common/files.h"
#include "common/settings.h"

#define REPLICAS_MAX 8
#define WORDS_MAX    64
#define TEXT         1024

static struct {
    const char *model, *run_dir, *cache, *dtype, *log_level;
    int64_t http, grpc, wait_ms, drain_ms;
    bool any_port, redis, train;
    struct tpo_setting_list replicas;
} set;

static const struct tpo_setting rows[] = {
    {"model", TPO_SET_TEXT, &set.model, "models/small", .what = "DIR",
     .help = "the model folder that every service reads its part of"},
    {"run-dir", TPO_SET_TEXT, &set.run_dir, "build/run", .what = "DIR", .help = "where logs, pids and uploads lie"},
    {"replicas", TPO_SET_LIST, &set.replicas, NULL, .what = "SERVICE=N",
     .help = "how many of encoder, router or region (default 1 each)"},
    {"http", TPO_SET_INT, &set.http, "8420", .min = 1, .max = 65535, .what = "PORT", .help = "of the REST door"},
    {"grpc", TPO_SET_INT, &set.grpc, "8421", .min = 1, .max = 65535, .what = "PORT", .help = "of the gRPC door"},
    {"any-port", TPO_SET_BOOL, &set.any_port, "no",
     .help = "take free ports instead of the usual ones, for a second mesh on the machine"},
    {"redis", TPO_SET_BOOL, &set.redis, "yes",
     .help = "start a redis-server for the shared cache; without one answers are slower, never wrong"},
    {"dtype", TPO_SET_TEXT, &set.dtype, "f32", .choices = "f32|bf16", .help = "how the services hold the weights of products"},
    {"train", TPO_SET_BOOL, &set.train, "no", .help = "start the services so that `tpo train --mesh` can drive them"},
    {"wait", TPO_SET_MS, &set.wait_ms, "120s", .min = 100, .max = 86400000, .help = "how long to wait until everything serves"},
    {"drain", TPO_SET_MS, &set.drain_ms, "45s", .min = 0, .max = 600000,
     .help = "how long calls in flight may go on after `tpo down`, in every process"},
    {"log-level", TPO_SET_TEXT, &set.log_level, "info", .choices = "debug|info|warn|error", .help = "of every process"},
};

/* The services in the order they start; ports: base + replica. */
static const struct {
    const char *name;
    int port;
} services[] = {{"encoder", 8430}, {"router", 8440}, {"region", 8450}};
#define N_SERVICES 3

/* `wanted` if it can be bound, 0 if not; 0 asks for any. */
static int try_port(int wanted)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)wanted), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0, one = 1;
    if (fd < 0) return 0;
    /* As servers do: a port whose last connections are winding down is free. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0 && getsockname(fd, (struct sockaddr *)&a, &n) == 0)
        port = ntohs(a.sin_port);
    close(fd);
    return port;
}

/* A free port below those that the system lends to connections: one of the latter could be taken by anybody's call before our process listens on
 * it. */
static int free_port(void)
{
    uint16_t drawn;
    for (int i = 0; i < 64 && getrandom(&drawn, sizeof(drawn), 0) == sizeof(drawn); i++) {
        int port = try_port(10000 + drawn % 22000);
        if (port != 0) return port;
    }
    return try_port(0);
}

/* The usual port, or another where someone else has it. */
static int port_or_free(int port)
{
    int usual = set.any_port ? 0 : try_port(port);
    return usual != 0 ? usual : free_port();
}

static int make_dirs(const char *path)
{
    char part[TEXT];
    snprintf(part, sizeof(part), "%s", path);
    for (char *p = part + 1; *p != '\0'; p++) {
        if (*p != '/') continue;
        *p = '\0';
        mkdir(part, 0755);
        *p = '/';
    }
    return mkdir(part, 0755) == 0 || errno == EEXIST ? TPO_OK : TPO_FAILED_PRECONDITION;
}

static int replicas_of(const char *service, struct tpo_error *err)
{
    int n = 1;
    for (int i = 0; i < set.replicas.n; i++) {
        const char *item = set.replicas.items[i], *equals = strchr(item, '=');
        size_t length = equals != NULL ? (size_t)(equals - item) : 0;
        bool known = false;
        for (int k = 0; k < N_SERVICES; k++)
            known |= strlen(services[k].name) == length && memcmp(services[k].name, item, length) == 0;
        int count = equals != NULL ? atoi(equals + 1) : 0;
        if (!known || count < 1 || count > REPLICAS_MAX) {
            tpo_fail(err, TPO_INVALID_ARGUMENT, "replicas", "--replicas %s: SERVICE=1..%d, SERVICE one of encoder, router, region",
                     item, REPLICAS_MAX);
            return 0;
        }
        if (strlen(service) == length && memcmp(service, item, length) == 0) n = count;
    }
    return n;
}

/* --- one process each -------------------------------------------------------------------------------------------------------------------------- */

/* Where the encoder finds the cache. Without redis-server installed the mesh runs all the same, and says so. */
static void start_redis(char address[64])
{
    char port[16];
    int number = port_or_free(8429);
    snprintf(port, sizeof(port), "%d", number);
    snprintf(address, 64, "127.0.0.1:%d", number);
    char *argv[] = {"redis-server",
                    "--port",
                    port,
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--dir",
                    (char *)set.run_dir,
                    "--maxmemory",
                    "256mb",
                    "--maxmemory-policy",
                    "allkeys-lru",
                    "--daemonize",
                    "no",
                    NULL};
    struct tpo_error err;
    if (tpo_mesh_start(set.run_dir, "redis", argv, &err) == TPO_OK)
        printf("  redis      %s\n", address);
    else
        printf("  redis      not here (%s): no shared cache, answers are slower\n", err.message);
}

static int start_service(int service, int replica, const char *cache, char *addresses, struct tpo_error *err)
{
    char name[32], program[TEXT], short_name[32], listen[64], media_dir[TEXT], drain[32];
    int port = port_or_free(services[service].port + replica);
    snprintf(name, sizeof(name), "%s-%d", services[service].name, replica);
    snprintf(short_name, sizeof(short_name), "tpo-%s", services[service].name);
    tpo_beside(program, sizeof(program), short_name);
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", port);
    snprintf(media_dir, sizeof(media_dir), "%s/%s-media", set.run_dir, name);
    snprintf(drain, sizeof(drain), "%lld", (long long)set.drain_ms);
    char *argv[WORDS_MAX] = {
        program,   "--listen",        listen,    "--model", (char *)set.model, "--log-level", (char *)set.log_level,
        "--dtype", (char *)set.dtype, "--drain", drain};
    int n = 11;
    if (set.train) argv[n++] = "--train";
    if (strcmp(services[service].name, "encoder") == 0) {
        argv[n++] = "--media-dir", argv[n++] = media_dir;
        if (cache[0] != '\0') argv[n++] = "--cache", argv[n++] = (char *)cache;
        make_dirs(media_dir);
    }
    int rc = tpo_mesh_start(set.run_dir, name, argv, err);
    if (rc != TPO_OK) return rc;
    printf("  %-10s %s\n", name, listen);
    snprintf(addresses + strlen(addresses), TEXT - strlen(addresses), "%s%s", addresses[0] != '\0' ? "," : "", listen);
    return TPO_OK;
}

static int write_address(const char *name, int port)
{
    char path[TEXT];
    snprintf(path, sizeof(path), "%s/%s", set.run_dir, name);
    FILE *out = fopen(path, "w");
    if (out == NULL) return TPO_FAILED_PRECONDITION;
    fprintf(out, "127.0.0.1:%d\n", port);
    return fclose(out) == 0 ? TPO_OK : TPO_FAILED_PRECONDITION;
}

/* What `tpo down` waits for. */
static int write_drain(void)
{
    char path[TEXT];
    snprintf(path, sizeof(path), "%s/drain", set.run_dir);
    FILE *out = fopen(path, "w");
    if (out == NULL) return TPO_FAILED_PRECONDITION;
    fprintf(out, "%lld\n", (long long)set.drain_ms);
    return fclose(out) == 0 ? TPO_OK : TPO_FAILED_PRECONDITION;
}

/* What `tpo train --mesh` reads when it is given no addresses: a line per service. */
static int write_services(char addresses[N_SERVICES][TEXT])
{
    char path[TEXT];
    snprintf(path, sizeof(path), "%s/services", set.run_dir);
    FILE *out = fopen(path, "w");
    if (out == NULL) return TPO_FAILED_PRECONDITION;
    for (int i = 0; i < N_SERVICES; i++) fprintf(out, "%s=%s\n", services[i].name, addresses[i]);
    return fclose(out) == 0 ? TPO_OK : TPO_FAILED_PRECONDITION;
}

static int start_gateway(char addresses[N_SERVICES][TEXT], int http, int grpc, struct tpo_error *err)
{
    char program[TEXT], http_address[64], grpc_address[64], head[TEXT + 16], media_dir[TEXT], drain[32];
    tpo_beside(program, sizeof(program), "tpo-gateway");
    snprintf(http_address, sizeof(http_address), "127.0.0.1:%d", http);
    snprintf(grpc_address, sizeof(grpc_address), "127.0.0.1:%d", grpc);
    snprintf(head, sizeof(head), "region=%s", addresses[2]);
    snprintf(media_dir, sizeof(media_dir), "%s/media", set.run_dir);
    snprintf(drain, sizeof(drain), "%lld", (long long)set.drain_ms);
    make_dirs(media_dir);
    char *argv[] = {program,      "--http",      http_address,          "--grpc",  grpc_address, "--encoder",
                    addresses[0], "--router",    addresses[1],          "--head",  head,         "--media-dir",
                    media_dir,    "--log-level", (char *)set.log_level, "--drain", drain,        NULL};
    int rc = tpo_mesh_start(set.run_dir, "gateway", argv, err);
    if (rc == TPO_OK) printf("  gateway    REST http://%s, gRPC %s\n", http_address, grpc_address);
    return rc;
}

/* --- ending ------------------------------------------------------------------------------------------------------------------------------------- */

#define DRAIN_MARGIN_MS 5000 /* from the end of a drain to the end of the process */

struct stopping {
    int n, grace_ms;
};

static void stop_one(void *owner, const char *name)
{
    struct stopping *s = owner;
    if (tpo_mesh_stop(set.run_dir, name, s->grace_ms)) {
        printf("  %s stopped\n", name);
        s->n++;
    }
}

/* As long as what `tpo up` started may drain, and a margin; the usual drain where its file can't be read. */
static int grace_ms(void)
{
    char path[TEXT];
    int drain_ms = 45000;
    snprintf(path, sizeof(path), "%s/drain", set.run_dir);
    FILE *in = fopen(path, "r");
    if (in != NULL && (fscanf(in, "%d", &drain_ms) != 1 || drain_ms < 0 || drain_ms > 600000)) drain_ms = 45000;
    if (in != NULL) fclose(in);
    return drain_ms + DRAIN_MARGIN_MS;
}

/* How many ran. */
static int stop_all(int grace_ms)
{
    struct stopping stopping = {.grace_ms = grace_ms};
    tpo_mesh_each(set.run_dir, stop_one, &stopping);
    return stopping.n;
}

/* --- waiting ------------------------------------------------------------------------------------------------------------------------------------ */

struct survey {
    int n, n_alive;
    int n_needed;  /* of n: all but redis */
    char dead[64]; /* one that should run and doesn't; redis may be missing */
};

static void look_at(void *owner, const char *name)
{
    struct survey *s = owner;
    s->n++;
    s->n_needed += strcmp(name, "redis") != 0;
    if (tpo_mesh_pid(set.run_dir, name) != 0)
        s->n_alive++;
    else if (strcmp(name, "redis") != 0)
        snprintf(s->dead, sizeof(s->dead), "%s", name);
}

/* Ready when the gateway says so and misses no head; fails as soon as a process has died, or fewer than `started` are known: a `tpo down` was
 * here. */
static int wait_ready(const char *base, int started, struct tpo_error *err)
{
    for (int64_t waited = 0; waited < set.wait_ms; waited += 100) {
        struct survey s = {0};
        json_t *body = NULL;
        long http = 0;
        tpo_mesh_each(set.run_dir, look_at, &s);
        if (s.dead[0] != '\0') {
            tpo_mesh_print_log(set.run_dir, s.dead, 12);
            return tpo_fail(err, TPO_UNAVAILABLE, "died", "%s did not stay up; its log is %s/%s.log", s.dead, set.run_dir, s.dead);
        }
        if (s.n_needed < started) return tpo_fail(err, TPO_UNAVAILABLE, "ended", "somebody ended the mesh while it started");
        int rc = tpo_http_get(base, "/readyz", &http, &body, NULL);
        bool ready = rc == TPO_OK && http == 200 && json_array_size(json_object_get(body, "missingHeads")) == 0;
        json_decref(body);
        if (ready) return TPO_OK;
        if (isatty(STDERR_FILENO) && waited % 1000 == 0)
            fprintf(stderr, "\rwaiting until all serve, %lld s ", (long long)waited / 1000);
        usleep(100000);
    }
    return tpo_fail(err, TPO_DEADLINE_EXCEEDED, "not_ready", "not ready after %lld s; the logs are in %s",
                    (long long)set.wait_ms / 1000, set.run_dir);
}

static bool read_address(const char *name, char out[64])
{
    char path[TEXT];
    snprintf(path, sizeof(path), "%s/%s", set.run_dir, name);
    FILE *in = fopen(path, "r");
    if (in == NULL) return false;
    int n = fscanf(in, "%63s", out);
    fclose(in);
    return n == 1;
}

/* Whether a mesh runs here. Without redis answers are slower, never wrong: it doesn't count. */
static bool is_whole(const struct survey *s, char http[64], char grpc[64])
{
    return s->n_alive > 0 && s->dead[0] == '\0' && tpo_mesh_pid(set.run_dir, "gateway") != 0 && read_address("http", http) &&
           read_address("grpc", grpc);
}

/* What a mesh left that has lost a process or was never started wholly: a mesh beside it would take over its files, and nobody would end it. */
static void clear_rest(const struct survey *s)
{
    if (s->n_alive > 0)
        printf("%d of %d processes run, %s is gone: they end, then all start anew\n", s->n_alive, s->n,
               s->dead[0] != '\0' ? s->dead : "gateway");
    stop_all(grace_ms());
}

static int start_all(struct tpo_error *err)
{
    static char addresses[N_SERVICES][TEXT];
    char cache[64] = "", base[64];
    int http = port_or_free((int)set.http), grpc = port_or_free((int)set.grpc), started = 1, rc = TPO_OK; /* the gateway */
    if (write_drain() != TPO_OK) return tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s cannot be written", set.run_dir);
    if (set.redis) start_redis(cache);
    for (int s = 0; s < N_SERVICES && rc == TPO_OK; s++) {
        int n = replicas_of(services[s].name, err);
        if (n == 0) return TPO_INVALID_ARGUMENT;
        started += n;
        for (int i = 0; i < n && rc == TPO_OK; i++) rc = start_service(s, i, cache, addresses[s], err);
    }
    if (rc == TPO_OK) rc = start_gateway(addresses, http, grpc, err);
    if (rc == TPO_OK &&
        (write_address("http", http) != TPO_OK || write_address("grpc", grpc) != TPO_OK || write_services(addresses) != TPO_OK))
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s cannot be written", set.run_dir);
    snprintf(base, sizeof(base), "127.0.0.1:%d", http);
    return rc == TPO_OK ? wait_ready(base, started, err) : rc;
}

/* Only one `tpo up` at a time may look at a run directory and start what is missing in it. Held until we exit. */
static int lock_run_dir(struct tpo_error *err)
{
    if (make_dirs(set.run_dir) != TPO_OK)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s: %s", set.run_dir, strerror(errno));
    int fd = open(set.run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s: %s", set.run_dir,
                        fd >= 0 && errno == EWOULDBLOCK ? "another `tpo up` is at work in it" : strerror(errno));
    return TPO_OK;
}

static int up(struct tpo_error *err)
{
    struct survey s = {0};
    char http[64] = "", grpc[64] = "";
    tpo_mesh_each(set.run_dir, look_at, &s);
    if (is_whole(&s, http, grpc)) {
        printf("running already: %d of %d processes, REST http://%s, gRPC %s\n", s.n_alive, s.n, http, grpc);
        return wait_ready(http, 0, err);
    }
    clear_rest(&s);
    printf("starting the mesh on %s\n", set.model);
    int rc = start_all(err);
    if (rc != TPO_OK) stop_all(DRAIN_MARGIN_MS); /* nothing is in flight in a mesh that never served */
    return rc;
}

int tpo_cmd_up(int argc, char **argv)
{
    static const struct tpo_settings table = {
        .program = "tpo up",
        .about =
            "Starts redis-server, tpo-encoder, tpo-router, tpo-region and tpo-gateway on this machine, each in a session of "
            "its own, and "
            "waits until they answer. Where they run already it says so; what is left of a mesh that lost a process ends first, "
            "and a start that fails ends what it started.",
        .examples = "tpo up\ntpo up --replicas encoder=2 --replicas router=2\ntpo up --train --replicas encoder=2\ntpo up "
                    "--any-port --run-dir /tmp/second --model models/small",
        .rows = rows,
        .n_rows = sizeof(rows) / sizeof(rows[0])};
    struct tpo_error err = {0};
    setvbuf(stdout, NULL, _IOLBF, 0);
    int rc = tpo_settings_read(&table, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc == TPO_OK) rc = lock_run_dir(&err);
    if (rc == TPO_OK) rc = up(&err);
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    if (rc == TPO_OK) {
        printf("ready\n");
        return 0;
    }
    fprintf(stderr, "tpo up: %s\n", err.message);
    return rc == TPO_INVALID_ARGUMENT ? 2 : 1;
}

/* --- down ------------------------------------------------------------------------------------------------------------------------------------------ */

int tpo_cmd_down(int argc, char **argv)
{
    static const struct tpo_setting down_rows[] = {
        {"run-dir", TPO_SET_TEXT, &set.run_dir, "build/run", .what = "DIR", .help = "the run directory of the mesh to end"},
    };
    static const struct tpo_settings table = {.program = "tpo down",
                                              .about =
                                                  "Ends what `tpo up` started: each process gets SIGTERM, finishes what it works "
                                                  "on, and is killed when it takes longer than `tpo up --drain` and 5 s.",
                                              .rows = down_rows,
                                              .n_rows = 1};
    struct tpo_error err;
    int rc = tpo_settings_read(&table, &argc, argv, &err);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (rc == TPO_CANCELLED) return 0;
    if (rc != TPO_OK) {
        fprintf(stderr, "tpo down: %s\n", err.message);
        return 2;
    }
    printf(stop_all(grace_ms()) > 0 ? "stopped\n" : "nothing was running\n");
    return 0;
}
