/* bench_decode -- the router answers one request, token by token, at TinyLlama's dimensions (22 layers, width 2048, 32/4 heads, MLP 5632,
 * vocabulary 32,000) with random weights in bf16, beside a bare read of the same bytes and beside llama.cpp at the same shape
 * (tests/peers/decode_llama.py), in one run.
 *
 *   bench_decode [ROUNDS] [bf16|f16|none ...]     default: 7 rounds with each of llama.cpp's two 16-bit types; its better one counts
 *
 * Ours is services/router whole: scheduler, paged keys, choice of the token; weights are mapped from a safetensors file. A round is a read in each
 * of two orders (the faster counts), 8 tokens of ours and 8 of llama.cpp's, one after the other, so that whoever else uses the machine disturbs
 * all alike. A table has the best round and the median one; a ratio is the median of the rounds' own ratios. The read runs on the same threads
 * over the same mapped pages, and adds up every byte. "busy" is the same while a process of no use never sleeps. Files lie in BUILD/bench-decode
 * (2.2 GB of ours, 2.2 GB of llama.cpp's at a time) and go at the end. CPU seconds say more than wall where others use the machine; waiting in a
 * spin counts there. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "common/safetensors.h"
#include "services/router/router.h"
#include "tests/bench/after.h"
#include "tests/bench/bare_read.h"
#include "trainer/model_folder.h"

#define TOKENS     8 /* of a round */
#define ROUNDS_MAX 50
#define FROM       "models/small"                 /* lends its tokenizer */
#define PYTHON     "build/peers-llama/bin/python" /* its own name tells it where its packages are */

struct took {
    double wall, cpu; /* seconds of a round; cpu is that of all threads */
};

static char folder[256];

static void die(const char *what)
{
    fprintf(stderr, "bench_decode: %s\n", what);
    exit(1);
}

static void shell(const char *format, const char *argument)
{
    char command[1024];
    snprintf(command, sizeof(command), format, argument, argument);
    if (system(command) != 0) die(command);
}

static struct took now(void)
{
    struct timespec wall, cpu;
    clock_gettime(CLOCK_MONOTONIC, &wall);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (struct took){(double)wall.tv_sec + (double)wall.tv_nsec * 1e-9, (double)cpu.tv_sec + (double)cpu.tv_nsec * 1e-9};
}

static struct took since(struct took start)
{
    struct took t = now();
    return (struct took){t.wall - start.wall, t.cpu - start.cpu};
}

/* --- the model folder ------------------------------------------------------------------------------------------------------------------- */

static void write_config(struct tpo_config *c)
{
    struct tpo_error err;
    char path[300];
    if (tpo_model_folder_companions(folder, FROM, &err) != TPO_OK) die(err.message);
    snprintf(path, sizeof(path), "%s/config.json", folder);
    json_t *config = json_load_file(path, 0, NULL), *llm = json_object_get(json_object_get(config, "model_config"), "llm");
    json_t *shape = json_pack("{si si si si si si si sf sb}", "hidden_size", 2048, "num_hidden_layers", 22, "num_attention_heads",
                              32, "num_key_value_heads", 4, "head_dim", 64, "intermediate_size", 5632, "vocab_size", 32000,
                              "rope_theta", 10000.0, "use_lora", 0);
    if (json_object_update(llm, shape) != 0 || json_dump_file(config, path, 0) != 0) die("the config cannot be written");
    json_decref(shape), json_decref(config);
    if (tpo_config_load(c, folder, &err) != TPO_OK) die(err.message);
    c->keep_bf16 = true;
}

/* Uniform in +-1.7/sqrt(depth), or what a vector starts with: the draw of a real start would take longer than the bench. */
static void put_tensor(struct tpo_safetensors_writer *w, const struct tpo_param *p)
{
    static uint16_t piece[1 << 19];
    static uint32_t state = 1;
    struct tpo_error err;
    const float scale = 1.7f / sqrtf((float)(p->size / p->shape[0]));
    for (int64_t at = 0, n; at < p->size; at += n) {
        n = p->size - at < (1 << 19) ? p->size - at : 1 << 19;
        for (int64_t i = 0; i < n; i++) {
            state = state * 1664525u + 1013904223u;
            float x = p->n_dims > 1 ? scale * ((float)(state >> 8) * 0x1p-23f - 1.0f) : p->init == TPO_INIT_ONE ? 1.0f : 0.0f;
            uint32_t bits;
            memcpy(&bits, &x, sizeof(bits));
            piece[i] = (uint16_t)(bits >> 16);
        }
        if (tpo_safetensors_put(w, piece, (size_t)n * 2, &err) != TPO_OK) die(err.message);
    }
}

static void write_weights(const struct tpo_config *c)
{
    struct tpo_params p = {0};
    struct tpo_error err;
    struct tpo_safetensors_writer *w;
    struct tpo_stream *s;
    char path[300];
    if (tpo_stream_open(&s, "cpu", 1, &err) != TPO_OK) die(err.message);
    tpo_router_schema(&p, c, 0);
    struct tpo_entry *entries = calloc((size_t)p.n, sizeof(*entries));
    if (entries == NULL) die("no memory");
    for (int i = 0; i < p.n; i++) {
        entries[i] = (struct tpo_entry){.name = p.items[i]->name, .dtype = TPO_BF16, .n_dims = p.items[i]->n_dims};
        memcpy(entries[i].shape, p.items[i]->shape, sizeof(p.items[i]->shape));
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    if (tpo_safetensors_create(&w, path, entries, p.n, &err) != TPO_OK) die(err.message);
    for (int i = 0; i < p.n; i++) put_tensor(w, p.items[i]);
    if (tpo_safetensors_finish(w, &err) != TPO_OK) die(err.message);
    free(entries);
    tpo_params_free(&p, s);
    tpo_stream_close(s);
}

/* --- the bare read ---------------------------------------------------------------------------------------------------------------------- */

/* The products' weights as they are mapped. project_up is of the request's media and the box encoder of its boxes: a token reads neither. */
static struct bare_read pieces_of(const struct tpo_params *params)
{
    struct bare_read all = {0};
    for (int i = 0; i < params->n; i++) {
        const struct tpo_param *p = params->items[i];
        if (strncmp(p->name, "lm.", 3) != 0 || p->half == NULL || strstr(p->name, "embed_tokens") != NULL)
            continue; /* a row is read of that table */
        if (!bare_read_add(&all, p->half, (size_t)p->size * 2)) die("a weight lies crooked");
    }
    return all;
}

/* --- ours ------------------------------------------------------------------------------------------------------------------------------- */

struct ours {
    struct tpo_stream *stream;
    struct tpo_router *router;
    struct bare_read pieces; /* its bytes: all that one token reads of the weights */
};

/* A request whose prompt has been read. */
static void ask(struct ours *o)
{
    const struct tpo_chat_turn turn = {"user", "Where is the red square?"};
    const struct tpo_router_request q = {.n_turns = 1, .turns = &turn, .task = "none", .max_new_tokens = 2000};
    const struct tpo_router_events on = {0};
    struct tpo_error err;
    uint64_t handle;
    if (tpo_router_submit(o->router, &q, &on, &handle, &err) != TPO_OK) die(err.message);
    if (tpo_router_step(o->router) != 1) die("the prompt failed");
}

/* A random model may end its answer at any token: then the round is made again with the next answer. */
static struct took decode(struct ours *o)
{
    for (;;) {
        struct took start = now();
        int n = 0;
        while (n < TOKENS && tpo_router_step(o->router) == 1) n++;
        if (n == TOKENS) return since(start);
        ask(o);
    }
}

/* The faster of the read's two orders. */
static struct took read_all(struct ours *o)
{
    struct took took[2];
    for (int quarters = 0; quarters < 2; quarters++) {
        struct took start = now();
        bare_read_run(&o->pieces, o->stream->team, quarters);
        took[quarters] = since(start);
    }
    return took[1].wall < took[0].wall ? took[1] : took[0];
}

static void ours_open(struct ours *o, const struct tpo_config *c, int threads)
{
    const struct tpo_router_options options = {.folder = folder, .kv_bytes = 256 << 20, .max_sequences = 1, .prefill_tokens = 64};
    struct tpo_error err;
    if (tpo_stream_open(&o->stream, "cpu", threads, &err) != TPO_OK) die(err.message);
    if (tpo_router_open(&o->router, o->stream, c, &options, &err) != TPO_OK) die(err.message);
    o->pieces = pieces_of(tpo_router_params(o->router));
    ask(o);
}

static void ours_close(struct ours *o)
{
    free(o->pieces.items);
    tpo_router_close(o->router);
    tpo_stream_close(o->stream);
}

/* --- llama.cpp -------------------------------------------------------------------------------------------------------------------------- */

struct peer {
    pid_t pid;
    FILE *to, *from;
};

static struct peer peer_open(const char *dtype)
{
    int in[2], out[2];
    char file[300];
    snprintf(file, sizeof(file), "%s/peer.gguf", folder);
    if (pipe(in) != 0 || pipe(out) != 0) die("no pipe");
    struct peer p = {.pid = fork()};
    if (p.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(in[0], 0), dup2(out[1], 1);
        close(in[1]), close(out[0]);
        execl(PYTHON, PYTHON, "tests/peers/decode_llama.py", file, dtype, (char *)NULL);
        _exit(127);
    }
    close(in[0]), close(out[1]);
    p.to = fdopen(in[1], "w"), p.from = fdopen(out[0], "r");
    return p;
}

/* 0 tokens: a new sequence. */
static struct took peer_decode(struct peer *p, int threads, int tokens)
{
    char line[256] = "";
    fprintf(p->to, "%d %d\n", threads, tokens);
    fflush(p->to);
    if (fgets(line, sizeof(line), p->from) == NULL) die("llama.cpp answered nothing");
    json_t *answer = json_loads(line, 0, NULL);
    struct took took = {json_number_value(json_object_get(answer, "seconds")),
                        json_number_value(json_object_get(answer, "cpu_seconds"))};
    json_decref(answer);
    return took;
}

static void peer_close(struct peer *p)
{
    fclose(p->to), fclose(p->from);
    waitpid(p->pid, NULL, 0);
}

/* --- the rounds ------------------------------------------------------------------------------------------------------------------------- */

struct rounds {
    int n;
    struct took read[ROUNDS_MAX], ours[ROUNDS_MAX], theirs[ROUNDS_MAX];
};

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int n)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, x, (size_t)n * sizeof(*x));
    qsort(sorted, (size_t)n, sizeof(*sorted), ascending);
    return (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
}

static double median_ratio(const struct took *a, const struct took *b, double scale, int n)
{
    double ratio[ROUNDS_MAX];
    for (int i = 0; i < n; i++) ratio[i] = scale * a[i].wall / b[i].wall;
    return median(ratio, n);
}

static void print_line(const char *what, const struct took *t, int n, int passes, double bytes)
{
    double wall[ROUNDS_MAX], cpu[ROUNDS_MAX], least = 1e9;
    for (int i = 0; i < n; i++) {
        wall[i] = t[i].wall / passes, cpu[i] = t[i].cpu / passes;
        least = wall[i] < least ? wall[i] : least;
    }
    printf("  %-16s %8.2f %8.2f %8.2f %8.2f %10.3f\n", what, 1 / least, 1 / median(wall, n), 1e-9 * bytes / least,
           1e-9 * bytes / median(wall, n), median(cpu, n));
}

static void print_rounds(const struct rounds *r, int threads, const char *busy, const char *dtype, double bytes)
{
    double load = 0;
    char name[32];
    getloadavg(&load, 1);
    snprintf(name, sizeof(name), "llama.cpp, %s", dtype);
    printf("%d thread%s%s, load %.1f\n  %-16s %8s %8s %8s %8s %10s\n", threads, threads > 1 ? "s" : "", busy, load, "", "passes/s",
           "median", "GB/s", "median", "CPU s/pass");
    print_line("bare read", r->read, r->n, 1, bytes);
    print_line("ours, bf16", r->ours, r->n, TOKENS, bytes);
    if (r->theirs[0].wall > 0) print_line(name, r->theirs, r->n, TOKENS, bytes);
    printf("  share of the read %.2f", median_ratio(r->read, r->ours, TOKENS, r->n));
    if (r->theirs[0].wall > 0) printf(", ours / llama.cpp %.2f", median_ratio(r->theirs, r->ours, 1, r->n));
    printf("\n");
    fflush(stdout);
}

static pid_t busy_start(void)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile unsigned i = 0;; i++) {
    }
}

/* One table: quiet, or with a busy process beside it. The median seconds of a round of ours. */
static void setting(const struct tpo_config *c, struct peer *peer, const char *dtype, int threads, bool busy, int n)
{
    struct ours o;
    struct rounds r = {.n = n};
    ours_open(&o, c, threads);
    read_all(&o), decode(&o);
    if (peer != NULL) peer_decode(peer, threads, 0);
    pid_t other = busy ? busy_start() : 0;
    for (int i = 0; i < n; i++) {
        r.read[i] = read_all(&o);
        r.ours[i] = decode(&o);
        if (peer != NULL) r.theirs[i] = peer_decode(peer, threads, TOKENS);
    }
    if (other > 0) kill(other, SIGKILL), waitpid(other, NULL, 0);
    print_rounds(&r, threads, busy ? ", busy" : "", dtype, o.pieces.bytes);
    ours_close(&o);
}

static void settings(const struct tpo_config *c, const char *dtype, int n)
{
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const bool alone = strcmp(dtype, "none") == 0;
    struct peer peer;
    if (!alone) peer = peer_open(dtype);
    for (int busy = 0; busy < 2; busy++)
        for (int threads = 1; threads <= cores; threads += cores > 1 ? cores - 1 : 1)
            setting(c, alone ? NULL : &peer, dtype, threads, busy, n);
    if (!alone) peer_close(&peer);
}

int main(int argc, char **argv)
{
    const char *build = getenv("TPO_BUILD") != NULL ? getenv("TPO_BUILD") : "build";
    const int n = argc > 1 ? atoi(argv[1]) : 7;
    struct tpo_config c;
    if (n < 1 || n > ROUNDS_MAX) die("from 1 to 50 rounds");
    signal(SIGPIPE, SIG_IGN);
    snprintf(folder, sizeof(folder), "%s/bench-decode", build);
    shell("rm -rf %s && mkdir -p %s", folder);
    after("rm -rf %s", folder);
    write_config(&c);
    write_weights(&c);
    for (int i = 2; i < argc; i++) settings(&c, argv[i], n);
    if (argc < 3) settings(&c, "bf16", n), settings(&c, "f16", n);
    return 0;
}
