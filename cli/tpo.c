/* tpo -- the one command a person types. This file owns the choice of the subcommand. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "common/files.h"

static const char usage[] =
    "tpo -- ask a mesh of small services about a picture or a video, and teach it\n"
    "\n"
    "  tpo up                         start redis, encoder, router, region and gateway here; wait until they answer\n"
    "  tpo ask FILE \"sentence\"        text, and boxes where the sentence asks for them\n"
    "  tpo chat FILE                  several turns about one file\n"
    "  tpo down                       end what `tpo up` started\n"
    "\n"
    "  tpo world                      draw scenes with known truth: media files, annotation files\n"
    "  tpo train RECIPE.yaml          train a model by a recipe\n"
    "  tpo eval                       score a model on held-out scenes\n"
    "  tpo model check|random|export  look at, make or write a model folder\n"
    "  tpo model export-peft|import-peft\n"
    "                                 the LoRA of a model folder as a PEFT adapter, or an adapter in its place\n"
    "\n"
    "Each answers --help. A file may be mp4, mov, webm, mkv, png, jpeg or gif.\n";

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {{"up", tpo_cmd_up},         {"down", tpo_cmd_down},     {"ask", tpo_cmd_ask},      {"chat", tpo_cmd_chat},
                {"world", tpo_cmd_trainer}, {"train", tpo_cmd_trainer}, {"eval", tpo_cmd_trainer}, {"model", tpo_cmd_trainer}};

int tpo_cmd_trainer(int argc, char **argv)
{
    char program[4096];
    char **words = calloc((size_t)argc + 2, sizeof(*words));
    if (words == NULL) return 2;
    tpo_beside(program, sizeof(program), "tpo-trainer");
    words[0] = program;
    for (int i = 0; i < argc; i++) words[i + 1] = argv[i];
    execv(program, words);
    perror(program);
    free(words);
    return 2;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    int help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0);
    if (argc > 1 && !help) fprintf(stderr, "tpo %s: no such command\n\n", argv[1]);
    fputs(usage, help ? stdout : stderr);
    return help ? 0 : 2;
}
