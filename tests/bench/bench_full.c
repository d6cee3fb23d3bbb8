/* bench_full -- the published size on this machine: a mesh in bf16 on 16.2 GB of random weights answers a question about an image and one about a
 * video.
 *
 *   KEEP=1 make bench B=full     leaves the folder for the next run; one that was there already is used, and stays
 *
 * build/published is made of models/published where it is missing (`tpo model random`), and is there only when it is whole. The mesh is `tpo up
 * --any-port --dtype bf16`, all cores, weights mapped. Per process: the time until it serves (open: mapped and checked; ready: after a pass that
 * warms it, which reads every weight once, from the disk if need be), and memory after both answers beside the bytes of the tensors it owns: what
 * it has of its own (RssAnon) and what of the files is in memory (RssFile, the kernel's to drop), and the peak of both (VmHWM). Random weights
 * never stop: every answer is cut at a number of tokens. The time to the first token is what the asker waits, encoder and every hop included, less
 * what the router ran on after it (its log tells both: most of those tokens have no text). The bare read is the best of some passes of all cores
 * over memory of this process. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/cores.h"
#include "common/prefixes.h"
#include "common/safetensors.h"
#include "tests/bench/after.h"
#include "tests/bench/bare_read.h"
#include "tests/support/http.h"
#include "tests/support/test.h"

#define FOLDER     "build/published"
#define NEW        FOLDER ".new" /* while it is written */
#define TOKENS     16
#define READ_BYTES ((size_t)512 << 20)

static char run_dir[64];
static const char *const processes[] = {"encoder-0", "router-0", "region-0", "gateway"};

static void die(const char *what)
{
    fprintf(stderr, "bench_full: %s\n", what);
    exit(1);
}

/* --- the bare read ------------------------------------------------------------------------------------------------------------------------------ */

/* Bytes a second. */
static double bare_read(void)
{
    struct bare_read all = {0};
    struct tpo_team *team;
    struct tpo_error err;
    void *data = aligned_alloc(4096, READ_BYTES);
    const int cores = tpo_cores();
    double best_s = 1e9;
    if (data == NULL) die("no memory to read");
    memset(data, 1, READ_BYTES);
    if (!bare_read_add(&all, data, READ_BYTES)) die("no memory to read");
    if (tpo_team_open(&team, cores < TPO_TEAM_MAX ? cores : TPO_TEAM_MAX, &err) != TPO_OK) die(err.message);
    for (int round = 0; round < 16; round++) {
        const double begun = tpo_now_s();
        bare_read_run(&all, team, round % 2);
        if (tpo_now_s() - begun < best_s) best_s = tpo_now_s() - begun;
    }
    tpo_team_close(team);
    free(all.items);
    free(data);
    return all.bytes / best_s;
}

/* --- processes ------------------------------------------------------------------------------------------------------------------------------------ */

static double owned_bytes(const char *process)
{
    struct tpo_safetensors *files;
    struct tpo_error err;
    double bytes = 0;
    if (tpo_safetensors_open(&files, FOLDER, &err) != TPO_OK) die(err.message);
    for (int i = 0; i < files->n; i++) {
        const char *owner = tpo_prefix_owner(files->items[i].name);
        if (owner != NULL && strncmp(owner, process, strlen(owner)) == 0) bytes += (double)files->items[i].size_bytes;
    }
    tpo_safetensors_close(files);
    return bytes;
}

/* A line of /proc/PID/status, in GB. */
static double status_of(const char *process, const char *key)
{
    char path[128], line[256];
    int pid = 0;
    double kilobytes = 0;
    snprintf(path, sizeof(path), "%s/%s.pid", run_dir, process);
    FILE *f = fopen(path, "r");
    if (f == NULL || fscanf(f, "%d", &pid) != 1) die(path);
    fclose(f);
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    f = fopen(path, "r");
    if (f == NULL) die("a process is gone");
    while (fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, key, strlen(key)) == 0) kilobytes = strtod(line + strlen(key) + 1, NULL);
    fclose(f);
    return kilobytes * 1024e-9;
}

/* A number of the last line of that event in the process's log; negative where there is none. */
static double logged(const char *process, const char *event, const char *key)
{
    char path[128], line[1024];
    double value = -1;
    snprintf(path, sizeof(path), "%s/%s.log", run_dir, process);
    FILE *f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        const char *at = strstr(line, event) != NULL ? strstr(line, key) : NULL;
        if (at != NULL) value = strtod(at + strlen(key), NULL);
    }
    if (f != NULL) fclose(f);
    return value;
}

static void print_processes(void)
{
    for (size_t i = 0; i < sizeof(processes) / sizeof(processes[0]); i++) {
        const char *p = processes[i];
        const double owned = owned_bytes(p) * 1e-9, peak = status_of(p, "VmHWM");
        printf("%-10s owns %6.3f GB  its own %6.3f GB  of the files %6.3f GB  peak %6.3f GB  over what it owns %+7.3f GB", p, owned,
               status_of(p, "RssAnon"), status_of(p, "RssFile"), peak, peak - owned);
        const double ready_ms = logged(p, "event=ready", " ms=");
        if (ready_ms >= 0) printf("  open %.2f s, ready %.1f s", 1e-3 * logged(p, "event=ready", " open_ms="), 1e-3 * ready_ms);
        printf("\n");
    }
}

/* --- questions --------------------------------------------------------------------------------------------------------------------------------- */

struct answer {
    double wall_s, encoder_s, first_s, run_s; /* the last two: the router's, until its first token and until its last */
    int prompt_tokens, tokens, boxes;
};

static struct answer ask(const char *id, const char *question, const char *task, int tokens)
{
    char body[1024];
    struct tpo_text out = {0};
    struct answer a = {0};
    size_t i;
    json_t *stage;
    snprintf(body, sizeof(body),
             "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}],\"task\":\"%s\",\"maxNewTokens\":%d,"
             "\"timeoutMs\":3600000}",
             id, question, task, tokens);
    const double begun = tpo_now_s();
    const long http = http_post(run_dir, "/v1/perceive", body, strlen(body), &out);
    a.wall_s = tpo_now_s() - begun;
    if (http != 200) die(out.data != NULL ? out.data : "no answer");
    json_t *root = json_loads(out.data, 0, NULL);
    json_array_foreach(json_object_get(root, "stages"), i, stage)
    {
        const char *name = json_string_value(json_object_get(stage, "name"));
        const double run_s = 1e-3 * json_number_value(json_object_get(stage, "runMs"));
        if (strcmp(name, "encoder") == 0) a.encoder_s += run_s;
    }
    a.first_s = 1e-3 * logged("router-0", "event=answer", " first_ms=");
    a.run_s = 1e-3 * logged("router-0", "event=answer", " run_ms=");
    const json_t *usage = json_object_get(root, "usage");
    a.prompt_tokens = (int)json_integer_value(json_object_get(usage, "promptTokens"));
    a.tokens = (int)json_integer_value(json_object_get(usage, "completionTokens"));
    a.boxes = (int)json_array_size(json_object_get(root, "boxes"));
    json_decref(root);
    tpo_text_free(&out);
    return a;
}

/* What one token reads of the router's tensors: all but the table of which it takes a row. */
static double token_bytes(void)
{
    struct tpo_safetensors *files;
    struct tpo_error err;
    double bytes = owned_bytes("router");
    if (tpo_safetensors_open(&files, FOLDER, &err) != TPO_OK) die(err.message);
    bytes -= (double)tpo_safetensors_find(files, "lm.base_model.model.model.embed_tokens.weight")->size_bytes;
    tpo_safetensors_close(files);
    return bytes;
}

static void ask_about(const char *what, const char *file, const char *question)
{
    char id[65];
    http_upload_sample(run_dir, file, id);
    const struct answer a = ask(id, question, "none", TOKENS);
    if (a.tokens < 2) die("the answer ended at its first token");
    const double each_s = (a.run_s - a.first_s) / (a.tokens - 1), bytes = token_bytes() / each_s, read = bare_read();
    printf("%-6s %d rows of prompt: first token after %.1f s (encoder %.1f s, router %.1f s); then %d tokens at %.3f a second, "
           "%.2f GB/s of weights, bare "
           "read %.2f GB/s, share %.0f %%\n",
           what, a.prompt_tokens, a.wall_s - (a.run_s - a.first_s), a.encoder_s, a.first_s, a.tokens - 1, 1 / each_s, 1e-9 * bytes,
           1e-9 * read, 100 * bytes / read);
    const struct answer box = ask(id, question, "region", 1);
    if (box.boxes != 1) die("the region head gave no box");
    printf("%-6s asked again, for its box: one, first token after %.1f s\n", what, box.wall_s - (box.run_s - box.first_s));
    fflush(stdout);
}

int main(void)
{
    char command[1024];
    const bool there = access(FOLDER "/config.json", F_OK) == 0, keep = there || getenv("KEEP") != NULL;
    const double begun = tpo_now_s();
    strcpy(run_dir, "/tmp/tpo-bench-XXXXXX");
    if (mkdtemp(run_dir) == NULL) die("no directory");
    after("rm -rf %s " NEW "%s", run_dir, keep ? "" : " " FOLDER);
    if (!there &&
        system("rm -rf " NEW " && build/tpo model random models/published " NEW " --dtype bf16 && mv " NEW " " FOLDER) != 0)
        die("the folder could not be written");
    if (!there) printf("folder written in %.0f s\n", tpo_now_s() - begun);
    setenv("TPO_TIMEOUT_MAX", "2h", 0);
    const double started = tpo_now_s();
    after("build/tpo down --run-dir %s", run_dir);
    snprintf(command, sizeof(command), "build/tpo up --any-port --run-dir %s --model %s --dtype bf16 --wait 1h >/dev/null", run_dir,
             FOLDER);
    if (system(command) != 0) die("the mesh did not start");
    printf("all serve after %.1f s\n", tpo_now_s() - started);
    fflush(stdout);
    ask_about("image", "crowd.png", "Where is the red cross?");
    ask_about("video", "walk.mp4", "Where is the white cross?");
    print_processes();
    return 0;
}
