/* This file owns the export: media and annotation files in the layouts of real data sets. */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cores.h"
#include "common/progress.h"
#include "trainer/world/files.h"

#define FRAMES_PER_S 4
#define THREADS_MAX  32

/* The lists of MVBench, one file each; every task is one kind of question. */
static const struct {
    const char *name;
    enum tpo_world_kind kind;
} tasks[] = {{"moving_direction", TPO_KIND_DIRECTION},
             {"object_attribute", TPO_KIND_ATTRIBUTE},
             {"object_count", TPO_KIND_COUNT},
             {"object_existence", TPO_KIND_EXIST}};
#define TASKS (int)(sizeof(tasks) / sizeof(tasks[0]))

/* What one picture or clip adds to the files; NULL where nothing. */
struct row {
    json_t *image, *annotations, *refs, *talk, *tasks[TASKS];
};

struct export
{
    const struct tpo_world_export *options;
    struct tpo_world *world;
    struct row *rows; /* images, then clips */
    int n;
    atomic_int next, done, failed;
    pthread_mutex_t lock;
    struct tpo_error err; /* the first */
};

/* --- one picture ------------------------------------------------------------------------------------------------------------------------------ */

/* COCO's uncompressed run lengths: column by column, beginning with the ground. */
static json_t *mask_runs(const struct tpo_scene *s, int object, int zoom)
{
    json_t *counts = json_array();
    int run = 0, side = s->side * zoom;
    bool inside = false;
    for (int x = 0; x < side; x++) {
        for (int y = 0; y < side; y++) {
            if ((s->labels[y / zoom * s->side + x / zoom] == object) != inside) {
                json_array_append_new(counts, json_integer(run));
                run = 0;
                inside = !inside;
            }
            run++;
        }
    }
    json_array_append_new(counts, json_integer(run));
    return json_pack("{s:[i,i], s:o}", "size", side, side, "counts", counts);
}

static json_t *annotations_of(const struct tpo_view *v, int image, int zoom)
{
    json_t *list = json_array();
    for (int o = 0; o < v->facts.n; o++) {
        const struct tpo_scene_object *object = &v->scene.objects[o];
        const int *e = object->edges[0];
        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:[i,i,i,i], s:i, s:i, s:o}", "id",
                                              image * TPO_WORLD_OBJECTS_MAX + o, "image_id", image, "category_id",
                                              object->attributes[TPO_WORLD_SHAPE] + 1, "bbox", e[0] * zoom, e[1] * zoom,
                                              (e[2] - e[0]) * zoom, (e[3] - e[1]) * zoom, "area", object->visible[0] * zoom * zoom,
                                              "iscrowd", 0, "segmentation", mask_runs(&v->scene, o, zoom)));
    }
    return list;
}

static json_t *tokens_of(const char *text)
{
    json_t *list = json_array();
    while (*text != '\0') {
        size_t n = strcspn(text, " ");
        json_array_append_new(list, json_stringn(text, n));
        text += n + (text[n] == ' ');
    }
    return list;
}

static const char *split_name(enum tpo_world_split split)
{
    static const char *const names[TPO_WORLD_SPLITS] = {"train", "val", "test", "combinations"};
    return names[split];
}

static json_t *refs_of(const struct export *e, const struct tpo_view *v, int image, const char *name)
{
    json_t *list = json_array();
    for (int i = 0; i < e->options->sentences; i++) {
        struct tpo_asked q;
        struct tpo_rng r = {tpo_rng_key(v->key, TPO_VIEW_TEXT + (uint64_t)i)};
        if (!tpo_ask_expression(&q, &v->facts, &r, (enum tpo_world_kind)(i % 3))) continue;
        int id = image * e->options->sentences + i;
        json_array_append_new(list,
                              json_pack("{s:i, s:i, s:i, s:s, s:i, s:[i], s:[{s:s, s:s, s:i, s:o}], s:s}", "ref_id", id, "ann_id",
                                        image * TPO_WORLD_OBJECTS_MAX + q.target, "category_id",
                                        v->scene.objects[q.target].attributes[TPO_WORLD_SHAPE] + 1, "file_name", name, "image_id",
                                        image, "sent_ids", id, "sentences", "raw", q.question, "sent", q.question, "sent_id", id,
                                        "tokens", tokens_of(q.question), "split", split_name(e->options->split)));
    }
    return list;
}

/* Questions and descriptions, in VideoChat2-IT's layout. */
static json_t *talk_of(const struct export *e, const struct tpo_view *v, const char *key, const char *name)
{
    json_t *list = json_array();
    for (int i = 0; i < e->options->sentences; i++) {
        struct tpo_asked q;
        struct tpo_rng r = {tpo_rng_key(v->key, TPO_VIEW_TEXT + 64 + (uint64_t)i)};
        enum tpo_world_kind kind = TPO_KIND_ATTRIBUTE + (enum tpo_world_kind)(i % (TPO_WORLD_KINDS - TPO_KIND_ATTRIBUTE));
        if (!tpo_ask(&q, &v->facts, &e->world->phrases, &r, kind, false)) continue;
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "i", "", "q", q.question, "a", q.answer));
    }
    return json_pack("{s:s, s:o}", key, name, "QA", list);
}

static json_t *candidates_of(enum tpo_world_kind kind, const struct tpo_asked *q)
{
    static const char *const counts[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8"}, *const answers[] = {"yes", "no"};
    json_t *list = json_array();
    int n = kind == TPO_KIND_COUNT ? 9 : kind == TPO_KIND_EXIST ? 2 : tpo_world_values(q->asked);
    for (int i = 0; i < n; i++) {
        const char *word = kind == TPO_KIND_COUNT ? counts[i] : kind == TPO_KIND_EXIST ? answers[i] : tpo_world_word(q->asked, i);
        json_array_append_new(list, json_string(word));
    }
    return list;
}

static json_t *task_of(const struct export *e, const struct tpo_view *v, enum tpo_world_kind kind, const char *name)
{
    struct tpo_asked q;
    struct tpo_rng r = {tpo_rng_key(v->key, TPO_VIEW_TEXT + 128 + (uint64_t)kind)};
    if (!tpo_ask(&q, &v->facts, &e->world->phrases, &r, kind, false)) return NULL;
    return json_pack("{s:s, s:s, s:o, s:s}", "video", name, "question", q.question, "candidates", candidates_of(kind, &q), "answer",
                     q.answer);
}

static int write_media(const struct export *e, const struct tpo_scene *s, const char *path, struct tpo_error *err)
{
    int zoom = e->options->zoom, side = s->side * zoom;
    uint8_t *pixels = tpo_world_zoom(s->pixels, s->n_frames, s->side, zoom);
    if (pixels == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a picture");
    int rc = s->n_frames == 1 ? tpo_world_png(path, pixels, side, err)
                              : tpo_world_mp4(path, pixels, s->n_frames, side, FRAMES_PER_S, err);
    free(pixels);
    return rc;
}

static int write_image(const struct export *e, struct tpo_view *v, int i, struct row *row, struct tpo_error *err)
{
    char name[32], path[4096];
    snprintf(name, sizeof(name), "%06d.png", i);
    snprintf(path, sizeof(path), "%s/images/%s", e->options->out, name);
    tpo_view_make(v, e->world, TPO_VIEW_FILES, (uint64_t)i, 0, 4);
    row->image = json_pack("{s:i, s:s, s:i, s:i}", "id", i, "file_name", name, "height", v->scene.side * e->options->zoom, "width",
                           v->scene.side * e->options->zoom);
    row->annotations = annotations_of(v, i, e->options->zoom);
    row->refs = refs_of(e, v, i, name);
    row->talk = talk_of(e, v, "image", name);
    return write_media(e, &v->scene, path, err);
}

static int write_clip(const struct export *e, struct tpo_view *v, int i, struct row *row, struct tpo_error *err)
{
    char name[32], path[4096];
    snprintf(name, sizeof(name), "%06d.mp4", i);
    snprintf(path, sizeof(path), "%s/videos/%s", e->options->out, name);
    tpo_view_make(v, e->world, TPO_VIEW_CLIPS, (uint64_t)i, 0, 4);
    row->talk = talk_of(e, v, "video", name);
    for (int t = 0; t < TASKS; t++) row->tasks[t] = task_of(e, v, tasks[t].kind, name);
    return write_media(e, &v->scene, path, err);
}

static void *work(void *arg)
{
    struct export *e = arg;
    for (int i; !e->failed && (i = atomic_fetch_add(&e->next, 1)) < e->n; atomic_fetch_add(&e->done, 1)) {
        struct tpo_arena arena;
        struct tpo_view v;
        struct tpo_error err = {0};
        bool clip = i >= e->options->n_images;
        tpo_arena_init(&arena, 1 << 18, 0);
        int rc = tpo_view_alloc(&v, e->world, &arena, clip ? e->options->n_frames : 1);
        if (rc != TPO_OK)
            tpo_fail(&err, rc, "out_of_memory", "no memory for a picture");
        else
            rc = (clip ? write_clip : write_image)(e, &v, clip ? i - e->options->n_images : i, &e->rows[i], &err);
        tpo_arena_free(&arena);
        if (rc == TPO_OK) continue;
        pthread_mutex_lock(&e->lock);
        if (!e->failed) e->err = err;
        e->failed = rc;
        pthread_mutex_unlock(&e->lock);
    }
    return NULL;
}

/* --- the files ---------------------------------------------------------------------------------------------------------------------------------- */

static int dump(const struct export *e, json_t *root, const char *name, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", e->options->out, name);
    int rc = root == NULL ? -1 : json_dump_file(root, path, JSON_INDENT(1));
    json_decref(root);
    return rc == 0 ? TPO_OK : tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "disk", "cannot write %s", path);
}

static json_t *categories(void)
{
    json_t *list = json_array();
    for (int s = 0; s < tpo_world_values(TPO_WORLD_SHAPE); s++) {
        json_array_append_new(
            list, json_pack("{s:i, s:s, s:s}", "id", s + 1, "name", tpo_world_word(TPO_WORLD_SHAPE, s), "supercategory", "object"));
    }
    return list;
}

static int write_annotations(struct export *e, struct tpo_error *err)
{
    json_t *images = json_array(), *annotations = json_array(), *refs = json_array(), *talks[2] = {json_array(), json_array()};
    json_t *lists[TASKS];
    for (int t = 0; t < TASKS; t++) lists[t] = json_array();
    for (int i = 0; i < e->n; i++) {
        struct row *row = &e->rows[i];
        if (row->image != NULL) json_array_append(images, row->image);
        if (row->annotations != NULL) json_array_extend(annotations, row->annotations);
        if (row->refs != NULL) json_array_extend(refs, row->refs);
        json_array_append(talks[i >= e->options->n_images], row->talk);
        for (int t = 0; t < TASKS; t++) {
            if (row->tasks[t] != NULL) json_array_append(lists[t], row->tasks[t]);
        }
    }
    int rc = dump(e, json_pack("{s:o, s:o, s:o}", "images", images, "annotations", annotations, "categories", categories()),
                  "instances.json", err);
    int rest[3] = {dump(e, refs, "refs.json", err), dump(e, talks[0], "image_it.json", err),
                   dump(e, talks[1], "video_it.json", err)};
    for (int i = 0; i < 3 && rc == TPO_OK; i++) rc = rest[i];
    for (int t = 0; t < TASKS; t++) {
        char name[64];
        snprintf(name, sizeof(name), "mvbench/%s.json", tasks[t].name);
        int one = dump(e, lists[t], name, err);
        if (rc == TPO_OK) rc = one;
    }
    return rc;
}

static void show_progress(struct export *e)
{
    struct tpo_progress bar = {.what = "drawing", .unit = " files"};
    for (; e->done < e->n && !e->failed; usleep(200000)) tpo_progress_show(&bar, e->done, e->n);
    tpo_progress_end(&bar);
}

static int make_folders(const char *out, struct tpo_error *err)
{
    static const char *const names[] = {"", "/images", "/videos", "/mvbench"};
    for (int i = 0; i < 4; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s%s", out, names[i]);
        if (mkdir(path, 0777) != 0 && errno != EEXIST)
            return tpo_fail(err, TPO_NOT_FOUND, "bad_path", "cannot make %s: %s", path, strerror(errno));
    }
    return TPO_OK;
}

static void run_workers(struct export *e)
{
    pthread_t ids[THREADS_MAX];
    int n = 0, cores = tpo_cores();
    json_object_seed(0); /* its first use would otherwise race */
    while (n < cores && n < THREADS_MAX && pthread_create(&ids[n], NULL, work, e) == 0) n++;
    if (n == 0)
        work(e);
    else if (e->options->progress)
        show_progress(e);
    for (int i = 0; i < n; i++) pthread_join(ids[i], NULL);
}

int tpo_world_export(const struct tpo_world_export *o, struct tpo_error *err)
{
    struct export e = {.options = o, .n = o->n_images + o->n_clips, .lock = PTHREAD_MUTEX_INITIALIZER};
    int rc = tpo_world_open(&e.world, &(struct tpo_world_options){.split = o->split, .seed = o->seed, .side = o->side}, err);
    if (rc == TPO_OK) rc = make_folders(o->out, err);
    if (rc == TPO_OK && (e.rows = calloc((size_t)e.n + 1, sizeof(*e.rows))) == NULL) {
        rc = tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for %d pictures", e.n);
    }
    if (rc == TPO_OK) run_workers(&e);
    if (rc == TPO_OK && e.failed) {
        rc = e.failed;
        if (err != NULL) *err = e.err;
    }
    if (rc == TPO_OK) rc = write_annotations(&e, err);
    for (int i = 0; e.rows != NULL && i < e.n; i++) {
        struct row *row = &e.rows[i];
        json_decref(row->image), json_decref(row->annotations), json_decref(row->refs), json_decref(row->talk);
        for (int t = 0; t < TASKS; t++) json_decref(row->tasks[t]);
    }
    free(e.rows);
    tpo_world_close(e.world);
    pthread_mutex_destroy(&e.lock);
    return rc;
}
