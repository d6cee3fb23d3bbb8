/* This file owns `tpo world`: its arguments, and questions as text. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/settings.h"
#include "trainer/world/files.h"

static struct {
    const char *out, *split, *corpus;
    int64_t seed, images, clips, frames, side, zoom, sentences, show;
} set;

static const struct tpo_setting rows[] = {
    {"out", TPO_SET_TEXT, &set.out, NULL, .what = "DIR",
     .help = "write pictures and videos with boxes, masks, expressions, questions and descriptions, in the layouts of RefCOCO "
             "(instances.json, refs.json), VideoChat2-IT (image_it.json, video_it.json) and MVBench (mvbench/)"},
    {"show", TPO_SET_INT, &set.show, "0", .min = 0, .max = 100000, .help = "print this many questions of each kind with answers"},
    {"corpus", TPO_SET_TEXT, &set.corpus, NULL, .what = "FILE",
     .help = "write the sentences that the small model's tokenizer learns from"},
    {"images", TPO_SET_INT, &set.images, "100", .min = 0, .max = 1000000, .help = "pictures to write"},
    {"clips", TPO_SET_INT, &set.clips, "0", .min = 0, .max = 1000000, .help = "videos to write; needs the ffmpeg program"},
    {"frames", TPO_SET_INT, &set.frames, "4", .min = 2, .max = TPO_WORLD_FRAMES_MAX, .help = "of a video, four a second, 2..8"},
    {"size", TPO_SET_INT, &set.side, "96", .min = 48, .max = 448, .what = "PIXELS", .help = "width and height, 48..448"},
    {"zoom", TPO_SET_INT, &set.zoom, "1", .min = 1, .max = 8,
     .help = "draw every pixel so many times as wide and high in the files, 1..8"},
    {"sentences", TPO_SET_INT, &set.sentences, "6", .min = 0, .max = 64,
     .help = "most expressions, and most questions, about one picture, 0..64"},
    {"split", TPO_SET_TEXT, &set.split, "train", .choices = "train|val|test|combinations",
     .help = "no two share a scene; in combinations every target is of a colour and a shape that train never asks for together"},
    {"seed", TPO_SET_INT, &set.seed, "0", .min = 0, .max = 1 << 30, .help = "counted from the first seed of the split"},
};
static const struct tpo_settings table = {
    .program = "tpo world",
    .about = "Draws Shellgame, a world of shapes whose truth is known. Training draws the same scenes in memory and needs none of "
             "these files: they are for looking at, and for programs that read those layouts. A picture depends on split, seed "
             "and its number alone. Exit status: 0 done, 1 something failed, 2 wrong usage.",
    .examples = "tpo world --out /tmp/world --images 1000 --clips 200\n"
                "tpo world --show 3",
    .rows = rows,
    .n_rows = sizeof(rows) / sizeof(rows[0])};

static enum tpo_world_split split_of(const char *name)
{
    static const char *const names[TPO_WORLD_SPLITS] = {"train", "val", "test", "combinations"};
    int i = 0;
    while (strcmp(name, names[i]) != 0) i++; /* the table lets no other through */
    return (enum tpo_world_split)i;
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
        for (int64_t i = 0; i < set.show && rc == TPO_OK; i++) {
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

static int make(enum tpo_world_split split, struct tpo_error *err)
{
    if (set.corpus[0] != '\0') return tpo_world_corpus(set.corpus, err);
    if (set.show > 0) return show(split, err);
    if (set.out[0] != '\0') return export_files(split, err);
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "nothing_to_do",
                    "say what to make: --out DIR, --show N or --corpus FILE; --help tells more");
}

int tpo_world_main(int argc, char **argv)
{
    struct tpo_error err = {0};
    int rc = tpo_settings_read(&table, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    signal(SIGPIPE, SIG_IGN); /* an ffmpeg that died is a sentence, not a signal */
    if (rc == TPO_OK) rc = make(split_of(set.split), &err);
    if (rc == TPO_OK) return 0;
    fprintf(stderr, "tpo world: %s\n", err.message);
    return rc == TPO_INVALID_ARGUMENT ? 2 : 1;
}
