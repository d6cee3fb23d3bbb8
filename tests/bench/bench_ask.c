/* bench_ask -- the whole mesh on the small model: 1, 8 and 32 askers over REST, answers a second, p50, p99, where the time goes, and the same
 * questions to the same weights in PyTorch (tests/peers/tpo_torch.py: one process, batch 1), in one run.
 *
 * It starts a mesh of its own on free ports and ends it. Pictures are warm (their visual tokens cached) in the rows so named, and new to the mesh
 * in the cold ones: PNG files made unequal by a few bytes at their end, which no decoder reads. The share that no stage accounts for is 1 - (sum
 * of the stages' queue and run time) / (time between sending and answer) as the asker sees it; beside it, what is left when the hops count too:
 * HTTP, JSON and the client. */
#include <curl/curl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/cores.h"
#include "common/text.h"
#include "tests/bench/after.h"

#define QUESTIONS_MAX 64
#define STAGES        4
#define LINE          1024

static const char *const stage_names[STAGES] = {"gateway", "encoder", "router", "region"};

struct question {
    char file[LINE], sentence[LINE], id[65], text[LINE];
    double boxes[16][4];
    int n_boxes;
};

static struct question questions[QUESTIONS_MAX];
static int n_questions;
static char base[128];

static void die(const char *what)
{
    fprintf(stderr, "bench_ask: %s\n", what);
    exit(1);
}

static size_t on_body(char *data, size_t size, size_t n, void *owner)
{
    tpo_text_add(owner, data, size * n);
    return size * n;
}

static json_t *post(CURL *c, const char *path, const char *type, const void *body, size_t size)
{
    char url[256], header[128];
    struct tpo_text answer = {0};
    long http = 0;
    snprintf(url, sizeof(url), "%s%s", base, path);
    snprintf(header, sizeof(header), "Content-Type: %s", type);
    struct curl_slist *headers = curl_slist_append(curl_slist_append(NULL, header), "Expect:");
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_POST, 1L);
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &answer);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    CURLcode rc = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &http);
    curl_slist_free_all(headers);
    if (rc != CURLE_OK || http >= 300) {
        fprintf(stderr, "%s: %s HTTP %ld %s\n", path, curl_easy_strerror(rc), http, answer.data != NULL ? answer.data : "");
        exit(1);
    }
    json_t *json = json_loads(answer.data, 0, NULL);
    tpo_text_free(&answer);
    return json;
}

/* Uploads the file with `salt` behind its end (none when negative); id gets its name. */
static void upload(CURL *c, const char *path, int salt, char id[65])
{
    struct stat st;
    FILE *in = fopen(path, "rb");
    if (in == NULL || fstat(fileno(in), &st) != 0) die(path);
    char *bytes = malloc((size_t)st.st_size + 16);
    size_t n = fread(bytes, 1, (size_t)st.st_size, in);
    fclose(in);
    if (salt >= 0) n += (size_t)sprintf(bytes + n, "%08x", (unsigned)salt);
    json_t *reply = post(c, "/v1/media", "application/octet-stream", bytes, n);
    const char *text = json_string_value(json_object_get(reply, "id"));
    if (text == NULL || strlen(text) != 64) die("no media id");
    memcpy(id, text, 65);
    json_decref(reply);
    free(bytes);
}

/* --- askers -------------------------------------------------------------------------------------------------------------------------------------- */

struct asker {
    pthread_t thread;
    int first, n, step; /* questions first, first + step, ... */
    const char (*ids)[65];
    double *latency_s, stage_s[STAGES], stages_s, hops_s, total_s;
    int n_done;
};

static void account(struct asker *a, const json_t *answer, double seconds)
{
    size_t i;
    json_t *stage;
    a->latency_s[a->n_done++] = seconds;
    a->total_s += seconds;
    json_array_foreach(json_object_get(answer, "stages"), i, stage)
    {
        const char *name = json_string_value(json_object_get(stage, "name"));
        double ms = json_number_value(json_object_get(stage, "queueMs")) + json_number_value(json_object_get(stage, "runMs"));
        for (int k = 0; k < STAGES; k++)
            if (strcmp(name, stage_names[k]) == 0) a->stage_s[k] += ms * 1e-3;
        a->stages_s += ms * 1e-3;
        a->hops_s += json_number_value(json_object_get(stage, "hopMs")) * 1e-3;
    }
}

static void keep_answer(struct question *q, const json_t *answer)
{
    size_t i;
    json_t *box;
    static const char *const sides[] = {"x0", "y0", "x1", "y1"};
    snprintf(q->text, sizeof(q->text), "%s", json_string_value(json_object_get(answer, "text")));
    q->n_boxes = 0;
    json_array_foreach(json_object_get(answer, "boxes"), i, box)
    {
        for (int k = 0; k < 4 && i < 16; k++)
            q->boxes[i][k] = json_number_value(json_object_get(json_object_get(box, "normalised"), sides[k]));
        q->n_boxes++;
    }
}

static void *run_asker(void *arg)
{
    struct asker *a = arg;
    CURL *c = curl_easy_init();
    for (int i = 0; i < a->n; i++) {
        int at = a->first + i * a->step;
        struct question *q = &questions[at % n_questions];
        json_t *request =
            json_pack("{s:[{s:s}],s:[{s:s,s:s}]}", "media", "id", a->ids[at], "turns", "role", "user", "text", q->sentence);
        char *body = json_dumps(request, JSON_COMPACT);
        double begun = tpo_now_s();
        json_t *answer = post(c, "/v1/perceive", "application/json", body, strlen(body));
        account(a, answer, tpo_now_s() - begun);
        if (a->step == 1) keep_answer(q, answer);
        json_decref(answer);
        json_decref(request);
        free(body);
    }
    curl_easy_cleanup(c);
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* `total` answers by `n_askers`; answers per second. */
static double run(const char *what, int n_askers, int total, const char (*ids)[65])
{
    struct asker *askers = calloc((size_t)n_askers, sizeof(*askers));
    double *latency = calloc((size_t)total, sizeof(*latency)), stage_s[STAGES] = {0}, stages_s = 0, hops_s = 0, sum_s = 0,
           begun = tpo_now_s();
    int each = total / n_askers, n = 0;
    for (int i = 0; i < n_askers; i++) {
        askers[i] = (struct asker){.first = i, .n = each, .step = n_askers, .ids = ids, .latency_s = latency + i * each};
        pthread_create(&askers[i].thread, NULL, run_asker, &askers[i]);
    }
    for (int i = 0; i < n_askers; i++) {
        pthread_join(askers[i].thread, NULL);
        for (int k = 0; k < STAGES; k++) stage_s[k] += askers[i].stage_s[k];
        stages_s += askers[i].stages_s;
        hops_s += askers[i].hops_s;
        sum_s += askers[i].total_s;
        n += askers[i].n_done;
    }
    double seconds = tpo_now_s() - begun;
    qsort(latency, (size_t)n, sizeof(*latency), by_size);
    printf("%-22s %2d askers %8.1f answers/s  p50 %7.2f ms  p99 %7.2f ms  mean per stage:", what, n_askers, n / seconds,
           1e3 * latency[n / 2], 1e3 * latency[n * 99 / 100]);
    for (int k = 0; k < STAGES; k++) printf(" %s %.2f", stage_names[k], 1e3 * stage_s[k] / n);
    printf(" hops %.2f ms  unaccounted %.1f %%, without the hops %.1f %%\n", 1e3 * hops_s / n, 100 * (1 - stages_s / sum_s),
           100 * (1 - (stages_s + hops_s) / sum_s));
    fflush(stdout);
    free(latency);
    free(askers);
    return n / seconds;
}

/* --- the peer -------------------------------------------------------------------------------------------------------------------------------------- */

/* Prints the peer's figures and how many of its answers are ours: text equal, boxes within half a percent of the picture's side. */
static void run_peer(const char *python, const char *list, const char *model, double ours)
{
    char command[8192], line[16384];
    int same = 0, answers = 0;
    snprintf(command, sizeof(command), "%s tests/peers/tpo_torch.py %s %s --repeat 5 --threads %d", python, model, list,
             tpo_cores());
    FILE *out = popen(command, "r");
    while (out != NULL && fgets(line, sizeof(line), out) != NULL) {
        json_t *row = json_loads(line, 0, NULL);
        const char *text = json_string_value(json_object_get(row, "text"));
        if (text != NULL && answers < n_questions) {
            const struct question *q = &questions[answers++];
            const json_t *boxes = json_object_get(row, "boxes");
            bool equal =
                strcmp(text + strspn(text, " "), q->text + strspn(q->text, " ")) == 0 && (int)json_array_size(boxes) == q->n_boxes;
            for (int i = 0; equal && i < q->n_boxes; i++)
                for (int k = 0; k < 4; k++) {
                    double d = json_number_value(json_array_get(json_array_get(boxes, (size_t)i), (size_t)k)) - q->boxes[i][k];
                    equal = equal && d < 0.005 && d > -0.005;
                }
            same += equal;
            if (!equal) printf("  other answer to \"%s\": PyTorch \"%s\", ours \"%s\"\n", q->sentence, text, q->text);
        } else if (row != NULL) {
            double theirs = json_number_value(json_object_get(row, "answers_per_s"));
            printf("PyTorch %s, %lld threads, one process, batch 1, cold: %.1f answers/s  p50 %.2f ms  p99 %.2f ms\n",
                   json_string_value(json_object_get(row, "torch")), (long long)json_integer_value(json_object_get(row, "threads")),
                   theirs, json_number_value(json_object_get(row, "p50_ms")), json_number_value(json_object_get(row, "p99_ms")));
            printf("same answers: %d of %d; the mesh, cold, 1 asker, against PyTorch: ratio %.2f\n", same, answers, ours / theirs);
        }
        json_decref(row);
    }
    if (out == NULL || pclose(out) != 0) printf("the PyTorch peer did not run (%s)\n", python);
}

int main(int argc, char **argv)
{
    const char *python = argc > 1 ? argv[1] : "build/peers/bin/python";
    char run_dir[] = "/tmp/tpo-bench-XXXXXX", command[4096], list[128];
    const int warm = 960, cold = 320;
    if (mkdtemp(run_dir) == NULL) die("no directory");
    after("rm -rf %s", run_dir);
    /* 96-pixel pictures, so that neither side resizes. */
    snprintf(command, sizeof(command), "build/tpo world --split test --seed 99 --images 8 --clips 0 --out %s/world >/dev/null 2>&1",
             run_dir);
    if (system(command) != 0) die("tpo world failed");
    static const char *const sentences[] = {"Describe the picture.", "How many stars are there?",   "Is there a red ball?",
                                            "Where is the square?",  "What colour is the cup?",     "Where is the blue star?",
                                            "Describe the picture.", "Where is the large triangle?"};
    snprintf(command, sizeof(command), "find %s/world -name '*.png' | sort | head -8", run_dir);
    FILE *files = popen(command, "r");
    while (n_questions < 8 && fgets(questions[n_questions].file, LINE, files) != NULL) {
        questions[n_questions].file[strcspn(questions[n_questions].file, "\n")] = '\0';
        snprintf(questions[n_questions].sentence, LINE, "%s", sentences[n_questions]);
        n_questions++;
    }
    pclose(files);
    if (n_questions == 0) die("tpo world wrote no pictures");
    snprintf(list, sizeof(list), "%s/questions.tsv", run_dir);
    FILE *out = fopen(list, "w");
    for (int i = 0; i < n_questions; i++) fprintf(out, "%s\t%s\n", questions[i].file, questions[i].sentence);
    fclose(out);

    after("build/tpo down --run-dir %s/run", run_dir);
    snprintf(command, sizeof(command), "build/tpo up --any-port --run-dir %s/run >/dev/null", run_dir);
    if (system(command) != 0) die("the mesh did not start");
    snprintf(command, sizeof(command), "%s/run/http", run_dir);
    FILE *address = fopen(command, "r");
    strcpy(base, "http://");
    if (address == NULL || fscanf(address, "%100s", base + 7) != 1) die("no address");
    fclose(address);

    curl_global_init(CURL_GLOBAL_ALL);
    CURL *c = curl_easy_init();
    char(*ids)[65] = calloc((size_t)warm, sizeof(*ids)), (*cold_ids)[65] = calloc((size_t)cold * 3, sizeof(*cold_ids));
    for (int i = 0; i < n_questions; i++) upload(c, questions[i].file, -1, ids[i]);
    for (int i = n_questions; i < warm; i++) memcpy(ids[i], ids[i % n_questions], 65);
    for (int i = 0; i < cold * 3; i++) upload(c, questions[i % n_questions].file, i, cold_ids[i]);
    curl_easy_cleanup(c);

    run("warm-up", 1, n_questions * 4, (const char(*)[65])ids);
    double ours = run("new pictures", 1, cold, (const char(*)[65])cold_ids);
    run("new pictures", 8, cold, (const char(*)[65])(cold_ids + cold));
    run("new pictures", 32, cold, (const char(*)[65])(cold_ids + 2 * cold));
    run("second question", 1, warm, (const char(*)[65])ids);
    run("second question", 8, warm, (const char(*)[65])ids);
    run("second question", 32, warm, (const char(*)[65])ids);
    snprintf(command, sizeof(command), "build/tpo down --run-dir %s/run >/dev/null", run_dir);
    if (system(command) != 0) die("the mesh did not stop");
    run_peer(python, list, "models/small", ours);
    return 0;
}
