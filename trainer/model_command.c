/* model_command.c -- `tpo model check|random|export|export-peft|import-peft`: reads its arguments and says what happened. */
#include <errno.h>
#include <getopt.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/prefixes.h"
#include "common/safetensors.h"
#include "trainer/model_folder.h"
#include "trainer/peft.h"

extern char **environ;

static const char usage[] =
    "tpo model -- a model folder in Hugging Face layout: config.json, added_tokens.json, tokenizer.model, model.safetensors (or "
    "shards + index)\n"
    "\n"
    "  tpo model check DIR                  what each service finds of its own: tensors, bytes, dtypes, every fault; reads no "
    "data\n"
    "  tpo model random FROM DIR            a folder of random weights for FROM's config and tokenizer, to try the mesh with;\n"
    "                                       FROM models/published with --dtype bf16: the published size, 2,594 tensors, 16.2 GB in "
    "4 shards\n"
    "      --seed N        other weights (default 1)\n"
    "      --dtype D       f32 (default) or bf16\n"
    "  tpo model export CHECKPOINT DIR      the tensors that serving needs out of a training checkpoint\n"
    "      --dtype D       f32 or bf16 (default), rounded to nearest even\n"
    "  tpo model export-peft MODEL DIR      the language model's LoRA as Hugging Face PEFT stores it\n"
    "  tpo model import-peft MODEL ADAPTER DIR\n"
    "                                       MODEL with the LoRA of a PEFT adapter in place of its own, in DIR\n"
    "\n"
    "exit status: 0 sound or written, 1 faults found, 2 could not do it\n";

/* Runs `tpo-STAGE --check DIR`, which lies beside this program; its exit status, or 2. */
static int run_check(const char *stage, const char *dir)
{
    char program[4096], self[3072];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0) return 2;
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash != NULL) *slash = '\0';
    snprintf(program, sizeof(program), "%s/tpo-%s", self, stage);
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

static int check(const char *dir)
{
    static const char *const built[] = {"encoder", "router", "region"};
    int worst = 0;
    for (size_t k = 0; k < sizeof(built) / sizeof(built[0]); k++) {
        int rc = run_check(built[k], dir);
        if (rc > worst) worst = rc;
    }
    fflush(stdout);
    int rc = check_rest(dir);
    return rc > worst ? rc : worst;
}

static int make(int argc, char **argv, int random)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'}, {"dtype", required_argument, NULL, 'd'}, {0}};
    enum tpo_dtype dtype = random ? TPO_F32 : TPO_BF16;
    uint64_t seed = 1;
    int o;
    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        char *end = NULL;
        if (o == 's') seed = strtoull(optarg, &end, 10);
        if (o == 'd') dtype = strcmp(optarg, "bf16") == 0 ? TPO_BF16 : TPO_F32;
        if (o == '?' || (o == 's' && *end != '\0') || (o == 'd' && strcmp(optarg, "bf16") != 0 && strcmp(optarg, "f32") != 0)) {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (argc - optind != 2) {
        fputs(usage, stderr);
        return 2;
    }
    struct tpo_error err = {0};
    if (tpo_model_folder_write(argv[optind + 1], argv[optind], random, seed, dtype, &err) != TPO_OK) {
        fprintf(stderr, "tpo model: %s: %s\n", tpo_status_name(err.code), err.message);
        return 2;
    }
    printf("wrote %s (%s%s)\n", argv[optind + 1], tpo_dtype_name(dtype),
           random ? ", random weights: its answers mean nothing" : "");
    return 0;
}

static int done(int rc, const char *dir, const struct tpo_error *err)
{
    if (rc == TPO_OK)
        printf("wrote %s\n", dir);
    else
        fprintf(stderr, "tpo model: %s: %s\n", tpo_status_name(rc), err->message);
    return rc == TPO_OK ? 0 : 2;
}

int tpo_model_main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    if (argc == 3 && strcmp(argv[1], "check") == 0 && argv[2][0] != '-') return check(argv[2]);
    if (argc >= 2 && strcmp(argv[1], "random") == 0) return make(argc - 1, argv + 1, 1);
    if (argc >= 2 && strcmp(argv[1], "export") == 0) return make(argc - 1, argv + 1, 0);
    struct tpo_error err = {0};
    if (argc == 4 && strcmp(argv[1], "export-peft") == 0) return done(tpo_peft_export(argv[3], argv[2], &err), argv[3], &err);
    if (argc == 5 && strcmp(argv[1], "import-peft") == 0)
        return done(tpo_peft_import(argv[4], argv[2], argv[3], &err), argv[4], &err);
    fputs(usage, stderr);
    return 2;
}
