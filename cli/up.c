/* up.c -- `tpo up` and `tpo down`: the mesh on this machine. It restarts nothing: that is Compose's and Kubernetes' work. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/asked.h"
#include "cli/commands.h"
#include "cli/http.h"
#include "cli/mesh.h"
#include "cli/ports.h"
#include "common/files.h"
#include "common/settings.h"

#define REPLICAS_MAX 8
#define WORDS_MAX    64
#define TEXT         1024
#define RUN_DIR      "build/run"

static struct {
    const char *model, *run_dir, *cache, *dtype, *log_level;
    int64_t http, grpc, wait_ms, drain_ms;
    bool any_port, redis, train;
    struct tpo_setting_list replicas;
} set;

static const struct tpo_setting rows[] = {
    {"model", TPO_SET_TEXT, &set.model, "models/small", .what = "DIR",
     .help = "the model folder that every service reads its part of"},
    {"run-dir", TPO_SET_TEXT, &set.run_dir, RUN_DIR, .what = "DIR", .help = "where logs, pids and uploads lie"},
    {"replicas", TPO_SET_LIST, &set.replicas, NULL, .what = "SERVICE=N",
     .help = "how many of encoder, router or region (default 1 each)"},
    {"http", TPO_SET_INT, &set.http, "0", .min = 0, .max = 65535, .what = "PORT",
     .help = "of the REST door; 0: 8420, or a free one where that is taken"},
    {"grpc", TPO_SET_INT, &set.grpc, "0", .min = 0, .max = 65535, .what = "PORT",
     .help = "of the gRPC door; 0: 8421, or a free one where that is taken"},
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

static struct tpo_ports ports; /* of the mesh that starts */

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

/* How many of each, in the order of `services`. */
static int replicas_read(int out[N_SERVICES], struct tpo_error *err)
{
    for (int k = 0; k < N_SERVICES; k++) out[k] = 1;
    for (int i = 0; i < set.replicas.n; i++) {
        const char *item = set.replicas.items[i], *equals = strchr(item, '=');
        const size_t length = equals != NULL ? (size_t)(equals - item) : 0;
        const int count = equals != NULL ? atoi(equals + 1) : 0;
        bool known = false;
        for (int k = 0; k < N_SERVICES; k++) {
            if (strlen(services[k].name) != length || memcmp(services[k].name, item, length) != 0) continue;
            known = true;
            out[k] = count;
        }
        if (!known || count < 1 || count > REPLICAS_MAX)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "replicas",
                            "--replicas %s: SERVICE=1..%d, SERVICE one of encoder, router, region", item, REPLICAS_MAX);
    }
    return TPO_OK;
}

/* Where a mesh runs that was asked for otherwise, it is not what this `tpo up` is for. Ports are compared by themselves: the usual ones may have
 * been others. */
static void asked_fill(struct tpo_asked *a, const int n[N_SERVICES])
{
    char text[TPO_ASKED_VALUE], path[PATH_MAX];
    *a = (struct tpo_asked){0};
    tpo_asked_add(a, "model", realpath(set.model, path) != NULL ? path : set.model);
    tpo_asked_add(a, "train", set.train ? "yes" : "no");
    tpo_asked_add(a, "dtype", set.dtype);
    snprintf(text, sizeof(text), "%s=%d %s=%d %s=%d", services[0].name, n[0], services[1].name, n[1], services[2].name, n[2]);
    tpo_asked_add(a, "replicas", text);
    tpo_asked_add(a, "redis", set.redis ? "yes" : "no");
    snprintf(text, sizeof(text), "%lldms", (long long)set.drain_ms);
    tpo_asked_add(a, "drain", text);
    tpo_asked_add(a, "log-level", set.log_level);
}

/* --- one process each -------------------------------------------------------------------------------------------------------------------------- */

/* Where the encoder finds the cache. Without redis-server installed the mesh runs all the same, and says so. */
static void start_redis(char address[64])
{
    char port[16];
    struct tpo_error err = {0};
    int number = 0;
    if (tpo_ports_find(&ports, "redis", 8429, set.any_port, &number, &err) != TPO_OK) return;
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
    if (tpo_mesh_start(set.run_dir, "redis", argv, &err) == TPO_OK)
        printf("  redis      %s\n", address);
    else
        printf("  redis      not here (%s): no shared cache, answers are slower\n", err.message);
}

static int start_service(int service, int replica, const char *cache, char *addresses, struct tpo_error *err)
{
    char name[32], program[TEXT], short_name[32], listen[64], media_dir[TEXT], drain[32];
    int port = 0;
    snprintf(name, sizeof(name), "%s-%d", services[service].name, replica);
    int rc = tpo_ports_find(&ports, name, services[service].port + replica, set.any_port, &port, err);
    if (rc != TPO_OK) return rc;
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
    rc = tpo_mesh_start(set.run_dir, name, argv, err);
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

/* As long as what `tpo up` started may drain, and a margin; the usual drain where it isn't known. */
static int grace_ms(void)
{
    char text[32];
    int drain_ms = 45000;
    if (tpo_asked_read(set.run_dir, "drain", text, sizeof(text)) && (drain_ms = atoi(text)) < 0) drain_ms = 45000;
    return (drain_ms < 600000 ? drain_ms : 600000) + DRAIN_MARGIN_MS;
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

#define PORT_LOST "port_lost" /* the reason of an end that another port helps against */

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
            if (tpo_ports_lost(&ports, s.dead))
                return tpo_fail(err, TPO_UNAVAILABLE, PORT_LOST, "somebody took a port of %s while it started", s.dead);
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

/* Named ones are taken as they are, and first, so that nobody else is given them. */
static int doors_find(int *http, int *grpc, struct tpo_error *err)
{
    int rc = TPO_OK;
    *http = (int)set.http, *grpc = (int)set.grpc;
    if (*http != 0) rc = tpo_ports_take(&ports, "gateway", "http", *http, err);
    if (*grpc != 0 && rc == TPO_OK) rc = tpo_ports_take(&ports, "gateway", "grpc", *grpc, err);
    if (*http == 0 && rc == TPO_OK) rc = tpo_ports_find(&ports, "gateway", 8420, set.any_port, http, err);
    if (*grpc == 0 && rc == TPO_OK) rc = tpo_ports_find(&ports, "gateway", 8421, set.any_port, grpc, err);
    return rc;
}

static int start_once(const int n[N_SERVICES], struct tpo_error *err)
{
    static char addresses[N_SERVICES][TEXT];
    char cache[64] = "", base[64];
    int http, grpc, started = 1; /* the gateway */
    ports = (struct tpo_ports){0};
    memset(addresses, 0, sizeof(addresses));
    int rc = doors_find(&http, &grpc, err);
    if (rc != TPO_OK) return rc;
    if (set.redis) start_redis(cache);
    for (int s = 0; s < N_SERVICES; s++) {
        started += n[s];
        for (int i = 0; i < n[s] && rc == TPO_OK; i++) rc = start_service(s, i, cache, addresses[s], err);
    }
    if (rc == TPO_OK) rc = start_gateway(addresses, http, grpc, err);
    if (rc == TPO_OK &&
        (write_address("http", http) != TPO_OK || write_address("grpc", grpc) != TPO_OK || write_services(addresses) != TPO_OK))
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s cannot be written", set.run_dir);
    snprintf(base, sizeof(base), "127.0.0.1:%d", http);
    return rc == TPO_OK ? wait_ready(base, started, err) : rc;
}

/* A port that was free may be somebody else's when its process listens: then all start once more, on others. */
static int start_all(const int n[N_SERVICES], struct tpo_error *err)
{
    int rc = start_once(n, err);
    for (int again = 0; again < 2 && rc != TPO_OK; again++) {
        stop_all(DRAIN_MARGIN_MS); /* nothing is in flight in a mesh that never served */
        if (again > 0 || strcmp(err->reason, PORT_LOST) != 0) break;
        printf("%s: once more\n", err->message);
        rc = start_once(n, err);
    }
    return rc;
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

static void door_compare(const char *name, int64_t port, const char *address, char *text, size_t size)
{
    char asked[16];
    const char *colon = strrchr(address, ':');
    snprintf(asked, sizeof(asked), "%lld", (long long)port);
    if (port != 0 && colon != NULL && strcmp(colon + 1, asked) != 0) tpo_asked_differs(name, colon + 1, asked, text, size);
}

/* Whether the mesh that runs is the one that is asked for. */
static int same_check(const struct tpo_asked *asked, const char *http, const char *grpc, struct tpo_error *err)
{
    char text[sizeof(err->message)] = "";
    tpo_asked_compare(asked, set.run_dir, text, sizeof(text));
    door_compare("http", set.http, http, text, sizeof(text));
    door_compare("grpc", set.grpc, grpc, text, sizeof(text));
    if (text[0] == '\0') return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "other_mesh", "another mesh runs in %.60s, `tpo down%s%.60s` ends it: its %s",
                    set.run_dir, strcmp(set.run_dir, RUN_DIR) != 0 ? " --run-dir " : "",
                    strcmp(set.run_dir, RUN_DIR) != 0 ? set.run_dir : "", text);
}

static int up(struct tpo_error *err)
{
    struct survey s = {0};
    struct tpo_asked asked;
    char http[64] = "", grpc[64] = "";
    int n[N_SERVICES];
    int rc = replicas_read(n, err);
    if (rc != TPO_OK) return rc;
    asked_fill(&asked, n);
    tpo_mesh_each(set.run_dir, look_at, &s);
    if (is_whole(&s, http, grpc)) {
        rc = same_check(&asked, http, grpc, err);
        if (rc != TPO_OK) return rc;
        printf("running already: %d of %d processes, REST http://%s, gRPC %s\n", s.n_alive, s.n, http, grpc);
        return wait_ready(http, 0, err);
    }
    clear_rest(&s);
    printf("starting the mesh on %s\n", set.model);
    rc = tpo_asked_write(&asked, set.run_dir, err);
    return rc == TPO_OK ? start_all(n, err) : rc;
}

int tpo_cmd_up(int argc, char **argv)
{
    static const struct tpo_settings table = {
        .program = "tpo up",
        .about = "Starts redis-server, tpo-encoder, tpo-router, tpo-region and tpo-gateway on this machine, each in a session of "
                 "its own, and "
                 "waits until they answer. Where they run already it says so, or fails if they were started with other flags; what "
                 "is left of a mesh that lost a process ends first, "
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
        {"run-dir", TPO_SET_TEXT, &set.run_dir, RUN_DIR, .what = "DIR", .help = "the run directory of the mesh to end"},
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
