/* An annotation file of any bytes, of each source: refused with a sentence, or every row that is good becomes a sample that keeps its promises. The
 * first byte chooses the source; a refcoco file's second half, after a line of "---", is its instances.json. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/data/annotations.h"

#define ROWS_MAX 64

/* A file in memory, and a path to it. */
static void file_make(int *fd, char path[32])
{
    *fd = memfd_create("fuzz", MFD_CLOEXEC);
    TPO_ASSERT(*fd >= 0);
    snprintf(path, 32, "/proc/self/fd/%d", *fd);
}

static void file_write(int fd, const uint8_t *bytes, size_t n)
{
    TPO_ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n);
}

static void media_make(void)
{
    mkdir("media", 0755);
    FILE *f = fopen("media/media.png", "wb");
    TPO_ASSERT(f != NULL);
    fclose(f);
}

/* The one file below the folder, however the row spells its path. */
static bool names_the_medium(const char *id)
{
    char path[4096];
    struct stat named, there;
    TPO_ASSERT((size_t)snprintf(path, sizeof(path), "media/%s", id) < sizeof(path));
    return id[0] != '/' && stat("media/media.png", &there) == 0 && stat(path, &named) == 0 && named.st_dev == there.st_dev &&
           named.st_ino == there.st_ino;
}

static void conversation_check(const struct tpo_conversation *c)
{
    TPO_ASSERT(c->n_turns == 1 && c->turns[0].question[0] != '\0' && c->turns[0].answer[0] != '\0');
    TPO_ASSERT((c->n_boxes == 1) == (strcmp(c->turns[0].answer, "<box_begin><boxes>") == 0));
    for (int i = 0; i < c->n_boxes; i++)
        TPO_ASSERT(c->boxes[i][0] >= 0 && c->boxes[i][1] >= 0 && c->boxes[i][2] <= 1 && c->boxes[i][3] <= 1 &&
                   c->boxes[i][0] <= c->boxes[i][2] && c->boxes[i][1] <= c->boxes[i][3]);
}

static void rows_check(const struct tpo_annotations *a)
{
    const int64_t n = tpo_annotations_rows(a);
    struct tpo_arena arena;
    struct tpo_error err;
    tpo_arena_init(&arena, 4096, 0);
    TPO_ASSERT(n > 0);
    for (int64_t i = 0; i < n && i < ROWS_MAX; i++) {
        struct tpo_sample s;
        const int64_t row = tpo_annotations_pick(a, (uint64_t)i);
        TPO_ASSERT(row >= 0 && row < n);
        tpo_arena_reset(&arena);
        const int rc = tpo_annotations_row(a, &arena, row, &s, &err);
        TPO_ASSERT(rc == (tpo_annotations_missing(a, row) ? TPO_NOT_FOUND : TPO_OK));
        if (rc != TPO_OK) continue;
        TPO_ASSERT(names_the_medium(s.media_id) && s.pixels == NULL && s.n_conversations > 0);
        for (int k = 0; k < s.n_conversations; k++) conversation_check(&s.conversations[k]);
    }
    tpo_arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static const char *const tokens[] = {"<boxes>", "<box_begin>", NULL};
    static const char separator[] = "\n---\n";
    static char rows_path[32], instances_path[32];
    static int rows = -1, instances = -1;
    struct tpo_annotations *a = NULL;
    struct tpo_error err = {0};
    if (n == 0) return 0;
    const uint8_t *second = memmem(bytes + 1, n - 1, separator, sizeof(separator) - 1);
    const size_t first = second != NULL ? (size_t)(second - bytes) : n, at = second != NULL ? first + sizeof(separator) - 1 : n;
    if (rows < 0) {
        file_make(&rows, rows_path);
        file_make(&instances, instances_path);
        media_make();
    }
    file_write(rows, bytes + 1, first - 1);
    file_write(instances, bytes + at, n - at);
    const struct tpo_annotations_options o = {.source = bytes[0] % TPO_ANNOTATION_SOURCES,
                                              .annotations = rows_path,
                                              .instances = instances_path,
                                              .media = "media",
                                              .skip_most = 1,
                                              .seed = n,
                                              .tokens = tokens};
    if (tpo_annotations_open(&a, &o, &err) != TPO_OK) {
        TPO_ASSERT(err.message[0] != '\0');
        return 0;
    }
    rows_check(a);
    tpo_annotations_close(a);
    return 0;
}
