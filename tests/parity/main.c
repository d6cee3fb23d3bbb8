/* main.c -- `parity DIR`: runs every golden case below DIR (a folder with case.json, or a vectors.json) and prints a line for
 * each:
 *
 *   ok NAME            FAILED NAME tensor max diff 0.1 (allowed 0.01)            NAME module skipped
 *
 * then `N passed, N failed` alone. The exit status is the verdict: something passed and nothing failed. A case's module is what
 * its case.json says; vectors.json is told by its content. Names decide nothing. */
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/parity/case.h"

static const struct {
    const char *name;
    void (*run)(struct tpo_case *c);
} modules[] = {{"vision_encoder", tpo_parity_vision_encoder},
               {"positional_tables", tpo_parity_positional_tables},
               {"qformer", tpo_parity_qformer},
               {"llm", tpo_parity_llm},
               {"splice", tpo_parity_splice},
               {"region_loss", tpo_parity_region_loss},
               {"resize", tpo_parity_resize},
               {"multitask_step", tpo_parity_multitask_step}};

static struct {
    char **paths; /* of case.json and vectors.json */
    int n;
} found;

static int collect(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    const char *base = path + ftw->base;
    if (flag != FTW_F || (strcmp(base, "case.json") != 0 && strcmp(base, "vectors.json") != 0)) return 0;
    char **grown = realloc(found.paths, (size_t)(found.n + 1) * sizeof(*grown));
    if (grown == NULL) return 1;
    found.paths = grown;
    found.paths[found.n] = strdup(path);
    return found.paths[found.n++] == NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void uncompared(struct tpo_case *c)
{
    bool any = false;
    for (int i = 0; i < c->n; i++) {
        any = any || c->tensors[i].compared;
        if (c->tensors[i].must_match && !c->tensors[i].compared)
            tpo_case_fail(c, "%s: this runner does not compute it", c->tensors[i].name);
    }
    if (!any) tpo_case_fail(c, "the case holds nothing to compare");
}

/* 1 passed, 0 failed, -1 skipped. */
static int case_run(struct tpo_case *c)
{
    if (!c->failed) {
        size_t i = 0;
        while (i < sizeof(modules) / sizeof(modules[0]) && strcmp(modules[i].name, c->module) != 0) i++;
        if (i == sizeof(modules) / sizeof(modules[0])) return -1;
        modules[i].run(c);
        if (c->skipped) return -1;
        uncompared(c);
    }
    return c->failed ? 0 : 1;
}

static int vectors_run(struct tpo_case *c)
{
    json_error_t where;
    char path[4096];
    snprintf(path, sizeof(path), "%s/vectors.json", c->folder);
    c->root = json_load_file(path, 0, &where);
    if (c->root == NULL)
        tpo_case_fail(c, "vectors.json, line %d: %s", where.line, where.text);
    else if (json_object_get(c->root, "model") != NULL)
        tpo_parity_tokenizer(c);
    else if (json_object_get(c->root, "cases") != NULL)
        tpo_parity_frame_sampling(c);
    else
        return -1;
    return c->failed ? 0 : 1;
}

static int path_run(struct tpo_stream *s, char *path, size_t below)
{
    struct tpo_case c;
    char *slash = strrchr(path, '/');
    const bool vectors = strcmp(slash + 1, "vectors.json") == 0;
    *slash = '\0';
    const char *name = strlen(path) > below ? path + below : path;
    while (*name == '/' && name[1] != '\0') name++;
    if (vectors)
        c = (struct tpo_case){.name = name, .folder = path, .stream = s};
    else
        tpo_case_open(&c, s, name, path);
    const int verdict = vectors ? vectors_run(&c) : case_run(&c);
    if (verdict < 0)
        printf("%s %s skipped\n", name, c.module != NULL ? c.module : "vectors.json");
    else if (verdict > 0)
        printf("ok %s\n", name);
    else
        printf("FAILED %s %s\n", name, c.message);
    fflush(stdout);
    tpo_case_close(&c);
    return verdict;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s DIR\n", argv[0]);
        return 2;
    }
    struct tpo_stream *stream;
    struct tpo_error err = {0};
    int passed = 0, failed = 0;
    if (tpo_stream_open(&stream, "cpu", 0, &err) != TPO_OK) {
        fprintf(stderr, "parity: %s\n", err.message);
        return 2;
    }
    char root[PATH_MAX]; /* a link to a kit is walked too */
    if (realpath(argv[1], root) == NULL || nftw(root, collect, 16, FTW_PHYS) != 0)
        fprintf(stderr, "parity: %s cannot be read whole\n", argv[1]);
    if (found.n > 0) qsort(found.paths, (size_t)found.n, sizeof(*found.paths), by_name);
    for (int i = 0; i < found.n; i++) {
        const int verdict = path_run(stream, found.paths[i], strlen(root));
        passed += verdict > 0;
        failed += verdict == 0;
        free(found.paths[i]);
    }
    free(found.paths);
    tpo_stream_close(stream);
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
