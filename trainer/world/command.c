/* This file owns `tpo world`. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/world/files.h"

static struct settings {
    const char *out, *split, *corpus;
    long seed, images, clips, frames, side, zoom, sentences, show;
} set;
static const struct settings preset = {.split = "train", .images = 100, .frames = 4, .side = 96, .zoom = 1, .sentences = 6};

static const char usage[] = "tpo world -- draws Shellgame, a world of shapes whose truth is known\n"
                            "\n"
                            "  tpo world --out DIR        pictures and videos with boxes, masks, expressions, questions and "
                            "descriptions, in the layouts of\n"
                            "                             RefCOCO (instances.json, refs.json), VideoChat2-IT (image_it.json, "
                            "video_it.json), MVBench (mvbench/)\n"
                            "  tpo world --show N         print N questions of each kind with their answers\n"
                            "  tpo world --corpus FILE    the sentences that the small model's tokenizer learns from\n"
                            "\n"
                            "  --images N       pictures to write (100)\n"
                            "  --clips N        videos to write (0); needs the ffmpeg program\n"
                            "  --frames N       frames of a video, four a second, 2..8 (4)\n"
                            "  --size PIXELS    width and height, 48..448 (96)\n"
                            "  --zoom N         draw every pixel N times as wide and high in the files, 1..8 (1)\n"
                            "  --sentences N    most expressions, and most questions, about one picture, 0..64 (6)\n"
                            "  --split NAME     train, val, test or combinations (train): no two share a scene; in `combinations` "
                            "every target is of a colour\n"
                            "                   and a shape that train never asks for together\n"
                            "  --seed N         counted from the first seed of the split (0)\n"
                            "\n"
                            "Training draws the same scenes in memory and needs none of these files. They are for looking at, and "
                            "for programs that read those\n"
                            "layouts. A picture depends on split, seed and its number alone.\n"
                            "\n"
                            "  tpo world --out /tmp/world --images 1000 --clips 200\n";

static const struct number {
    const char *name;
    long *value;
    long low, high;
} numbers[] = {
    {"images", &set.images, 0, 1000000}, {"clips", &set.clips, 0, 1000000}, {"frames", &set.frames, 2, TPO_WORLD_FRAMES_MAX},
    {"size", &set.side, 48, 448},        {"zoom", &set.zoom, 1, 8},         {"sentences", &set.sentences, 0, 64},
    {"seed", &set.seed, 0, 1l << 30},    {"show", &set.show, 0, 100000}};
static const struct {
    const char *name, **value;
} texts[] = {{"out", &set.out}, {"split", &set.split}, {"corpus", &set.corpus}};

static int read_number(const struct number *n, const char *text, struct tpo_error *err)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < n->low || value > n->high) {
        return tpo_fail(err, TPO_EINVAL, "bad_flag", "--%s %s: must be %ld .. %ld", n->name, text, n->low, n->high);
    }
    *n->value = value;
    return TPO_OK;
}

static int read_flag(const char *name, const char *value, struct tpo_error *err)
{
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (strcmp(numbers[i].name, name) == 0) return read_number(&numbers[i], value, err);
    }
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(texts[i].name, name) != 0) continue;
        *texts[i].value = value;
        return TPO_OK;
    }
    return tpo_fail(err, TPO_EINVAL, "bad_flag", "--%s: there is no such flag; --help lists them", name);
}

/* --name value or --name=value, and nothing else. */
static int read_flags(int argc, char **argv, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = 1; i < argc && rc == TPO_OK; i++) {
        char name[32];
        const char *equals = strchr(argv[i], '=');
        if (strncmp(argv[i], "--", 2) != 0)
            return tpo_fail(err, TPO_EINVAL, "bad_flag", "%s: flags only; --help lists them", argv[i]);
        snprintf(name, sizeof(name), "%.*s", (int)(equals != NULL ? equals - argv[i] - 2 : 30), argv[i] + 2);
        if (equals == NULL && i + 1 == argc) return tpo_fail(err, TPO_EINVAL, "bad_flag", "%s: needs a value", argv[i]);
        rc = read_flag(name, equals != NULL ? equals + 1 : argv[++i], err);
    }
    return rc;
}

static int split_of(const char *name, enum tpo_world_split *split, struct tpo_error *err)
{
    static const char *const names[TPO_WORLD_SPLITS] = {"train", "val", "test", "combinations"};
    for (int i = 0; i < TPO_WORLD_SPLITS; i++) {
        *split = (enum tpo_world_split)i;
        if (strcmp(name, names[i]) == 0) return TPO_OK;
    }
    return tpo_fail(err, TPO_EINVAL, "bad_flag", "--split %s: must be train, val, test or combinations", name);
}

static void show_item(const struct tpo_world_item *item)
{
    printf("%-18s %s%s%s\n", tpo_world_kind_name(item->kind), item->question, item->unseen ? "   [unseen]" : "",
           item->hard ? "   [hard]" : "");
    if (tpo_world_kind_boxes(item->kind)) {
        printf("%-18s -> %.3f %.3f %.3f %.3f\n", "", (double)item->box[0], (double)item->box[1], (double)item->box[2],
               (double)item->box[3]);
    } else {
        printf("%-18s -> %s\n", "", item->answer);
    }
}

static int show(enum tpo_world_split split, struct tpo_error *err)
{
    struct tpo_world *w = NULL;
    struct tpo_arena arena;
    struct tpo_world_options o = {split, tpo_world_first_seed(split) + (uint64_t)set.seed, (int)set.side};
    int rc = tpo_world_open(&w, &o, err);
    tpo_arena_init(&arena, 1 << 18, 0);
    for (int kind = 0; kind < TPO_WORLD_KINDS && rc == TPO_OK; kind++) {
        int n_frames = kind == TPO_KIND_DIRECTION ? (int)set.frames : 1;
        for (long i = 0; i < set.show && rc == TPO_OK; i++) {
            struct tpo_world_item item;
            tpo_arena_reset(&arena);
            rc = tpo_world_item(w, &arena, kind, n_frames, TPO_WORLD_ANY_PHRASING, (uint64_t)i, &item, err);
            if (rc == TPO_OK) show_item(&item);
        }
    }
    tpo_arena_free(&arena);
    tpo_world_close(w);
    return rc;
}

static int export_files(enum tpo_world_split split, struct tpo_error *err)
{
    struct tpo_world_export e = {.split = split,
                                 .seed = tpo_world_first_seed(split) + (uint64_t)set.seed,
                                 .n_images = (int)set.images,
                                 .n_clips = (int)set.clips,
                                 .n_frames = (int)set.frames,
                                 .side = (int)set.side,
                                 .zoom = (int)set.zoom,
                                 .sentences = (int)set.sentences,
                                 .out = set.out,
                                 .progress = true};
    int rc = tpo_world_export(&e, err);
    if (rc == TPO_OK) printf("%d pictures and %d videos, with their annotations, in %s\n", e.n_images, e.n_clips, e.out);
    return rc;
}

int tpo_world_main(int argc, char **argv)
{
    struct tpo_error err = {0};
    enum tpo_world_split split = TPO_WORLD_TRAIN;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") != 0) continue;
        fputs(usage, stdout);
        return 0;
    }
    set = preset;
    int rc = read_flags(argc, argv, &err);
    if (rc == TPO_OK) rc = split_of(set.split, &split, &err);
    signal(SIGPIPE, SIG_IGN); /* an ffmpeg that died is a sentence, not a signal */
    if (rc == TPO_OK && set.out == NULL && set.corpus == NULL && set.show == 0) {
        rc = tpo_fail(&err, TPO_EINVAL, "nothing_to_do",
                      "say what to make: --out DIR, --show N or --corpus FILE; --help tells more");
    }
    if (rc == TPO_OK && set.corpus != NULL)
        rc = tpo_world_corpus(set.corpus, &err);
    else if (rc == TPO_OK && set.show > 0)
        rc = show(split, &err);
    else if (rc == TPO_OK)
        rc = export_files(split, &err);
    if (rc != TPO_OK) fprintf(stderr, "tpo world: %s\n", err.message);
    return rc == TPO_OK ? 0 : rc == TPO_EINVAL ? 2 : 1;
}
