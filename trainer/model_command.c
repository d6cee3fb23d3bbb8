/* model_command.c -- `tpo model check|random|export|export-peft|import-peft`: reads its arguments and says what happened. */
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/files.h"
#include "common/prefixes.h"
#include "common/safetensors.h"
#include "common/settings.h"
#include "trainer/model_folder.h"
#include "trainer/peft.h"

extern char **environ;

/* --- check ----------------------------------------------------------------------------------------------------------------------------------- */

/* Runs `tpo-STAGE --check DIR`, which lies beside this program; its exit status, or 2. */
static int run_check(const char *stage, const char *dir)
{
    char name[64], program[4096];
    snprintf(name, sizeof(name), "tpo-%s", stage);
    tpo_beside(program, sizeof(program), name);
    char *argv[] = {program, "--check", (char *)dir, NULL};
    pid_t pid;
    int status = 0;
    int rc = posix_spawn(&pid, program, NULL, NULL, argv, environ);
    if (rc != 0) {
        fprintf(stderr, "%s: %s\n", program, strerror(rc));
        return 2;
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return 2;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

/* What the folder holds for services that this build lacks, and names that are under no prefix at all. */
static int check_rest(const char *dir)
{
    static const char *const others[] = {"temporal", "mask", "dead"};
    struct tpo_safetensors *files = NULL;
    struct tpo_error err;
    int n_unowned = 0;
    if (tpo_safetensors_survey(&files, dir, &err) != TPO_OK) return 2;
    for (int i = 0; i < files->n; i++)
        if (tpo_prefix_owner(files->items[i].name) == NULL) {
            printf("folder: fault: %s is extra: no service owns this name\n", files->items[i].name);
            n_unowned++;
        }
    for (size_t k = 0; k < sizeof(others) / sizeof(others[0]); k++) {
        int n = 0;
        unsigned long long bytes = 0;
        for (int i = 0; i < files->n; i++) {
            const char *owner = tpo_prefix_owner(files->items[i].name);
            if (owner == NULL || strcmp(owner, others[k]) != 0) continue;
            n++;
            bytes += files->items[i].size_bytes;
        }
        if (n > 0) printf("folder: %s: %d tensors, %llu bytes, not checked here\n", others[k], n, bytes);
    }
    int faults = n_unowned + files->n_faults;
    printf("folder: %d tensors: %s\n", files->n, faults == 0 ? "every name has an owner" : "faults");
    tpo_safetensors_close(files);
    return faults == 0 ? 0 : 1;
}

static int check(char **names)
{
    static const char *const built[] = {"encoder", "router", "region"};
    int worst = 0;
    for (size_t k = 0; k < sizeof(built) / sizeof(built[0]); k++) {
        int rc = run_check(built[k], names[0]);
        if (rc > worst) worst = rc;
    }
    fflush(stdout);
    int rc = check_rest(names[0]);
    return rc > worst ? rc : worst;
}

/* --- what is written ------------------------------------------------------------------------------------------------------------------------ */

static struct {
    const char *dtype;
    int64_t seed;
} set;

static int done(int rc, const char *dir, const char *details, const struct tpo_error *err)
{
    if (rc == TPO_OK)
        printf("wrote %s%s\n", dir, details);
    else
        fprintf(stderr, "tpo model: %s: %s\n", tpo_status_name(rc), err->message);
    return rc == TPO_OK ? 0 : 2;
}

static int write_folder(const char *dir, const char *from, bool random)
{
    char details[64];
    struct tpo_error err = {0};
    const enum tpo_dtype dtype = strcmp(set.dtype, "bf16") == 0 ? TPO_BF16 : TPO_F32;
    snprintf(details, sizeof(details), " (%s%s)", tpo_dtype_name(dtype),
             random ? ", random weights: its answers mean nothing" : "");
    return done(tpo_model_folder_write(dir, from, random, (uint64_t)set.seed, dtype, &err), dir, details, &err);
}

static int write_random(char **names)
{
    return write_folder(names[1], names[0], true);
}

static int export(char **names)
{
    return write_folder(names[1], names[0], false);
}

static int export_peft(char **names)
{
    struct tpo_error err = {0};
    return done(tpo_peft_export(names[1], names[0], &err), names[1], "", &err);
}

static int import_peft(char **names)
{
    struct tpo_error err = {0};
    return done(tpo_peft_import(names[2], names[0], names[1], &err), names[2], "", &err);
}

/* --- the command line ------------------------------------------------------------------------------------------------------------------------ */

static const struct tpo_setting random_rows[] = {
    {"seed", TPO_SET_INT, &set.seed, "1", .min = 0, .max = 4294967295.0, .help = "another number, other weights"},
    {"dtype", TPO_SET_TEXT, &set.dtype, "f32", .choices = "f32|bf16", .help = "how weights are stored"},
};
static const struct tpo_setting export_rows[] = {
    {"dtype", TPO_SET_TEXT, &set.dtype, "bf16", .choices = "f32|bf16",
     .help = "how weights are stored; to bf16 they are rounded to the nearest, ties to even"},
};

#define PROGRAM "tpo model "
static const struct subcommand {
    int (*run)(char **names);
    int n_names;
    struct tpo_settings table;
} subcommands[] = {
    {check,
     1,
     {.program = PROGRAM "check",
      .arguments = "DIR",
      .about = "What each service finds of its own in a folder: tensors, bytes, dtypes, every fault. Reads no data."}},
    {write_random,
     2,
     {.program = PROGRAM "random",
      .arguments = "FROM DIR",
      .about = "Makes a folder of random weights for FROM's config and tokenizer, to try the mesh with.",
      .examples = "tpo model random models/small /tmp/model --seed 7\n"
                  "tpo model random models/published /tmp/model --dtype bf16    (the published size: 16.2 GB in 4 shards)",
      .rows = random_rows,
      .n_rows = sizeof(random_rows) / sizeof(random_rows[0])}},
    {export,
     2,
     {.program = PROGRAM "export",
      .arguments = "CHECKPOINT DIR",
      .about = "Writes the tensors that serving needs out of a training checkpoint.",
      .examples = "tpo model export run/7-polish/model models/mine",
      .rows = export_rows,
      .n_rows = sizeof(export_rows) / sizeof(export_rows[0])}},
    {export_peft,
     2,
     {.program = PROGRAM "export-peft",
      .arguments = "MODEL DIR",
      .about = "Writes the language model's LoRA as Hugging Face PEFT stores it."}},
    {import_peft,
     3,
     {.program = PROGRAM "import-peft",
      .arguments = "MODEL ADAPTER DIR",
      .about = "Writes to DIR the folder MODEL with the LoRA of a PEFT adapter in place of its own."}},
};
#define N_SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

static void overview(FILE *out)
{
    fputs("tpo model -- a model folder in Hugging Face layout: config.json, added_tokens.json, tokenizer.model, model.safetensors\n"
          "(or shards with their index)\n\n",
          out);
    for (size_t i = 0; i < N_SUBCOMMANDS; i++) {
        const struct tpo_settings *t = &subcommands[i].table;
        fprintf(out, "  %s %s", t->program, t->arguments);
        for (int k = 0; k < t->n_rows; k++)
            fprintf(out, " [--%s %s]", t->rows[k].name, t->rows[k].choices != NULL ? t->rows[k].choices : "N");
        fprintf(out, "\n      %s\n", t->about);
    }
    fputs("\neach with --help\nexit status: 0 sound or written, 1 faults found, 2 could not do it\n", out);
}

static int subcommand_main(const struct subcommand *s, int argc, char **argv)
{
    struct tpo_error err = {0};
    int rc = tpo_settings_read(&s->table, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc == TPO_OK && argc - 1 != s->n_names)
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "arguments", "takes %s (see --help)", s->table.arguments);
    if (rc == TPO_OK) return s->run(argv + 1);
    fprintf(stderr, "%s: %s\n", s->table.program, err.message);
    return 2;
}

int tpo_model_main(int argc, char **argv)
{
    for (size_t i = 0; i < N_SUBCOMMANDS && argc > 1; i++)
        if (strcmp(argv[1], subcommands[i].table.program + sizeof(PROGRAM) - 1) == 0)
            return subcommand_main(&subcommands[i], argc - 1, argv + 1);
    const bool help = argc > 1 && strcmp(argv[1], "--help") == 0;
    if (argc > 1 && !help) fprintf(stderr, "tpo model: there is no %s\n\n", argv[1]);
    overview(help ? stdout : stderr);
    return help ? 0 : 2;
}
