/* ask.c -- `tpo ask` and `tpo chat`: a file, a sentence, the answer as it comes, and how long each stage took. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/http.h"
#include "cli/picture.h"
#include "common/clock.h"
#include "common/settings.h"

#define BOXES_MAX 64

static struct {
    const char *gateway, *task, *out, *system;
    int64_t max_new_tokens, seed, timeout_ms;
    double temperature, top_p;
    bool json;
    struct tpo_setting_list boxes;
} set;

static const struct tpo_setting rows[] = {
    {"gateway", TPO_SET_TEXT, &set.gateway, "", .what = "ADDRESS",
     .help = "the REST door of the mesh; empty: the one of build/run, else 127.0.0.1:8420"},
    {"task", TPO_SET_TEXT, &set.task, "auto", .what = "NAME",
     .help = "auto: the model decides; none: text only; a task's name (region): that one, first"},
    {"box", TPO_SET_LIST, &set.boxes, NULL, .what = "X0,Y0,X1,Y1",
     .help = "a box in pixels that the sentence speaks of; {box} in the sentence is its place"},
    {"out", TPO_SET_TEXT, &set.out, "", .what = "PICTURE.png", .help = "write the frame with the answer's boxes drawn on it"},
    {"json", TPO_SET_BOOL, &set.json, "no", .help = "print the whole answer as JSON and nothing else"},
    {"system", TPO_SET_TEXT, &set.system, "", .what = "TEXT", .help = "a system turn before the first question"},
    {"max-new-tokens", TPO_SET_INT, &set.max_new_tokens, "200", .min = 1, .max = 4096, .help = "where an answer is cut"},
    {"temperature", TPO_SET_REAL, &set.temperature, "0", .min = 0, .max = 10, .help = "0 takes the likeliest token each time"},
    {"top-p", TPO_SET_REAL, &set.top_p, "1", .min = 0, .max = 1, .help = "share of the probability that sampling draws from"},
    {"seed", TPO_SET_INT, &set.seed, "1", .min = 1, .max = 4294967295.0, .help = "of the sampling"},
    {"timeout", TPO_SET_MS, &set.timeout_ms, "60s", .min = 1, .max = 86400000, .help = "for the whole answer, over all hops"},
};

/* One answer being received. */
struct answer {
    json_t *done;
    bool printed_text;
    double begun_s, first_text_s;
};

static const char *text_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* A place in a list; -1, which no list has, for what is none. */
static int32_t index_at(const json_t *object, const char *key)
{
    double x = number_at(object, key);
    return x >= 0 && x <= INT32_MAX ? (int32_t)x : -1;
}

static void on_event(void *owner, const char *event, const json_t *data)
{
    struct answer *a = owner;
    if (strcmp(event, "text") == 0 && !set.json) {
        if (!a->printed_text) a->first_text_s = tpo_now_s() - a->begun_s;
        fputs(text_at(json_object_get(data, "text"), "text"), stdout);
        fflush(stdout);
        a->printed_text = true;
    }
    if (strcmp(event, "done") != 0) return;
    json_decref(a->done);
    a->done = json_incref(json_object_get(data, "done"));
}

/* --- the request -------------------------------------------------------------------------------------------------------------------------------- */

static json_t *parse_box(const char *text)
{
    double v[4];
    char rest;
    if (sscanf(text, "%lf,%lf,%lf,%lf%c", &v[0], &v[1], &v[2], &v[3], &rest) != 4) return NULL;
    return json_pack("{s:{s:f,s:f,s:f,s:f}}", "rect", "x0", v[0], "y0", v[1], "x1", v[2], "y1", v[3]);
}

static json_t *make_request(const char *media_id, json_t *turns, struct tpo_error *err)
{
    json_t *boxes = json_array();
    for (int i = 0; i < set.boxes.n; i++) {
        json_t *box = parse_box(set.boxes.items[i]);
        if (box == NULL) {
            json_decref(boxes);
            tpo_fail(err, TPO_INVALID_ARGUMENT, "box", "--box %s: four numbers with commas", set.boxes.items[i]);
            return NULL;
        }
        json_array_append_new(boxes, box);
    }
    return json_pack("{s:[{s:s}],s:O,s:o,s:s,s:I,s:I,s:f,s:f,s:I,s:b}", "media", "id", media_id, "turns", turns, "boxes", boxes,
                     "task", set.task, "maxNewTokens", (json_int_t)set.max_new_tokens, "seed", (json_int_t)set.seed, "temperature",
                     set.temperature, "topP", set.top_p, "timeoutMs", (json_int_t)set.timeout_ms, "stream", 1);
}

/* --- telling -------------------------------------------------------------------------------------------------------------------------------------- */

static void print_error(const json_t *error, const char *before)
{
    printf("%s%s %s%s%s: %s\n", before, text_at(error, "code"), text_at(error, "reason"),
           text_at(error, "stage")[0] != '\0' ? " at " : "", text_at(error, "stage"), text_at(error, "message"));
}

static void print_boxes(const json_t *done)
{
    size_t i;
    json_t *box, *call;
    const json_t *frames = json_object_get(json_object_get(done, "media"), "frames");
    json_array_foreach(json_object_get(done, "boxes"), i, box)
    {
        const json_t *p = json_object_get(box, "pixels"), *frame = json_array_get(frames, (size_t)index_at(box, "frame"));
        printf("  box     x0 %.1f  y0 %.1f  x1 %.1f  y1 %.1f pixels of frame %.0f (%.2f s)\n", number_at(p, "x0"),
               number_at(p, "y0"), number_at(p, "x1"), number_at(p, "y1"), number_at(frame, "index"), number_at(frame, "timeS"));
    }
    json_array_foreach(json_object_get(done, "calls"), i, call) if (json_is_object(json_object_get(call, "error")))
    {
        printf("  call    %s failed: ", text_at(call, "task"));
        print_error(json_object_get(call, "error"), "");
    }
}

static void print_stages(const struct answer *a)
{
    size_t i;
    json_t *stage;
    const json_t *usage = json_object_get(a->done, "usage");
    json_array_foreach(json_object_get(a->done, "stages"), i, stage)
    {
        const char *cache = text_at(stage, "cache");
        printf("  stage   %-8s queue %7.2f ms  run %8.2f ms  hop %6.2f ms%s%s\n", text_at(stage, "name"),
               number_at(stage, "queueMs"), number_at(stage, "runMs"), number_at(stage, "hopMs"),
               cache[0] != '\0' ? "  cache " : "", cache);
    }
    printf("  total   %.1f ms in the mesh, %.0f prompt and %.0f answer tokens, %s", number_at(usage, "totalMs"),
           number_at(usage, "promptTokens"), number_at(usage, "completionTokens"), text_at(a->done, "finishReason"));
    if (a->printed_text) printf(", first text after %.1f ms", a->first_text_s * 1e3);
    printf("\n");
}

static int draw(const struct answer *a, const char *file, struct tpo_error *err)
{
    struct tpo_drawn_box boxes[BOXES_MAX];
    const json_t *frames = json_object_get(json_object_get(a->done, "media"), "frames"), *list = json_object_get(a->done, "boxes");
    int n = 0;
    size_t i;
    json_t *box;
    json_array_foreach(list, i, box)
    {
        const json_t *p = json_object_get(box, "pixels");
        if (n < BOXES_MAX)
            boxes[n++] = (struct tpo_drawn_box){number_at(p, "x0"), number_at(p, "y0"), number_at(p, "x1"), number_at(p, "y1")};
    }
    const json_t *frame = json_array_get(frames, (size_t)index_at(json_array_get(list, 0), "frame"));
    int rc = tpo_picture_write(set.out, file, index_at(frame, "index"), boxes, n, err);
    if (rc == TPO_OK && !set.json) printf("  picture %s\n", set.out);
    return rc;
}

/* Asks once more with all turns so far; the answer's text is added to them. */
static int ask(const char *file, const char *media_id, json_t *turns, struct tpo_error *err)
{
    struct answer a = {.begun_s = tpo_now_s()};
    json_t *request = make_request(media_id, turns, err);
    if (request == NULL) return TPO_INVALID_ARGUMENT;
    int rc = tpo_http_perceive(set.gateway, request, set.timeout_ms, on_event, &a, err);
    json_decref(request);
    if (a.printed_text) printf("\n");
    if (rc == TPO_OK && a.done == NULL) rc = tpo_fail(err, TPO_UNAVAILABLE, "cut_off", "the answer was cut off");
    const json_t *error = json_object_get(a.done, "error");
    if (rc == TPO_OK && json_is_object(error)) {
        rc = tpo_fail(err, TPO_UNKNOWN, text_at(error, "reason"), "%s (%s): %s", text_at(error, "code"), text_at(error, "stage"),
                      text_at(error, "message"));
    } else if (rc == TPO_OK && set.json) {
        json_dumpf(a.done, stdout, JSON_INDENT(2));
        printf("\n");
    } else if (rc == TPO_OK) {
        print_boxes(a.done);
        print_stages(&a);
    }
    if (rc == TPO_OK && set.out[0] != '\0') rc = draw(&a, file, err);
    if (rc == TPO_OK) json_array_append_new(turns, json_pack("{s:s,s:s}", "role", "assistant", "text", text_at(a.done, "text")));
    json_decref(a.done);
    return rc;
}

static json_t *first_turns(void)
{
    json_t *turns = json_array();
    if (set.system[0] != '\0') json_array_append_new(turns, json_pack("{s:s,s:s}", "role", "system", "text", set.system));
    return turns;
}

static int add_question(json_t *turns, const char *sentence, struct tpo_error *err)
{
    json_t *text = json_string(sentence);
    if (text == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "utf8", "the sentence is not UTF-8");
    json_array_append_new(turns, json_pack("{s:s,s:o}", "role", "user", "text", text));
    return TPO_OK;
}

static int finish(const char *command, int rc, const struct tpo_error *err)
{
    if (rc == TPO_OK) return 0;
    fprintf(stderr, "%s: %s%s%s: %s\n", command, tpo_status_name(err->code), err->stage[0] != '\0' ? " at " : "", err->stage,
            err->message);
    return 1;
}

/* `tpo up` leaves the address of its REST door in build/run/http. */
static void choose_gateway(void)
{
    static char address[64] = "127.0.0.1:8420";
    if (set.gateway[0] != '\0') return;
    FILE *in = fopen("build/run/http", "r");
    if (in != NULL) {
        char found[64];
        if (fscanf(in, "%63s", found) == 1) memcpy(address, found, sizeof(address));
        fclose(in);
    }
    set.gateway = address;
}

/* Reads the flags; -1 to go on, else the exit status. */
static int read_flags(const struct tpo_settings *table, int *argc, char **argv, int n_arguments)
{
    struct tpo_error err;
    int rc = tpo_settings_read(table, argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc == TPO_OK) choose_gateway();
    if (rc == TPO_OK && *argc - 1 == n_arguments) return -1;
    fprintf(stderr, "%s: %s\n", table->program, rc != TPO_OK ? err.message : table->arguments);
    return 2;
}

int tpo_cmd_ask(int argc, char **argv)
{
    static const struct tpo_settings table = {.program = "tpo ask",
                                              .arguments = "FILE \"SENTENCE\"",
                                              .about = "Asks the mesh one question about a picture or a video. The file is sent "
                                                       "once and then named by its hash; a second question on it "
                                                       "finds its visual tokens in the cache.",
                                              .examples = "tpo ask clip.mp4 \"Which way does the red star move?\"\n"
                                                          "tpo ask scene.png \"Where is the small blue cup?\" --out boxed.png\n"
                                                          "tpo ask scene.png \"What colour is the ball?\" --json",
                                              .rows = rows,
                                              .n_rows = sizeof(rows) / sizeof(rows[0])};
    char id[65];
    struct tpo_error err = {0};
    int status = read_flags(&table, &argc, argv, 2);
    if (status >= 0) return status;
    json_t *turns = first_turns();
    int rc = add_question(turns, argv[2], &err);
    if (rc == TPO_OK) rc = tpo_http_upload(set.gateway, argv[1], set.timeout_ms, id, &err);
    if (rc == TPO_OK) rc = ask(argv[1], id, turns, &err);
    json_decref(turns);
    return finish("tpo ask", rc, &err);
}

int tpo_cmd_chat(int argc, char **argv)
{
    static const struct tpo_settings table = {.program = "tpo chat",
                                              .arguments = "FILE",
                                              .about = "Several questions about one file; each sees the turns before it. One "
                                                       "question a line on standard input; an empty line ends.",
                                              .examples =
                                                  "tpo chat clip.mp4\nprintf 'What moves?\\nWhere is it?\\n' | tpo chat clip.mp4",
                                              .rows = rows,
                                              .n_rows = sizeof(rows) / sizeof(rows[0])};
    char id[65], *line = NULL;
    size_t size = 0;
    struct tpo_error err = {0};
    int status = read_flags(&table, &argc, argv, 1);
    if (status >= 0) return status;
    json_t *turns = first_turns();
    int rc = tpo_http_upload(set.gateway, argv[1], set.timeout_ms, id, &err);
    while (rc == TPO_OK) {
        if (isatty(STDIN_FILENO)) printf("> "), fflush(stdout);
        if (getline(&line, &size, stdin) <= 0) break;
        line[strcspn(line, "\n")] = '\0';
        if (line[0] == '\0') break;
        rc = add_question(turns, line, &err);
        if (rc == TPO_OK) rc = ask(argv[1], id, turns, &err);
    }
    free(line);
    json_decref(turns);
    return finish("tpo chat", rc, &err);
}
