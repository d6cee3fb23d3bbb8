/* This file owns tpo-trainer's command line: which subcommand was meant. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "trainer/eval/eval.h"
#include "trainer/model_folder.h"
#include "trainer/steps/train.h"
#include "trainer/world/world.h"

static const char usage[] = "tpo-trainer -- what `tpo` runs for training; use it through `tpo`\n"
                            "\n"
                            "  tpo train RECIPE.yaml    train a model by a recipe\n"
                            "  tpo eval MODEL           scores on held-out scenes\n"
                            "  tpo world                draw scenes, annotation files, the tokenizer's text\n"
                            "  tpo model                check, make or export a model folder\n"
                            "each with --help\n";

int main(int argc, char **argv)
{
    tpo_log_open("trainer", TPO_LOG_INFO);
    if (argc > 1 && strcmp(argv[1], "train") == 0) return tpo_train_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "eval") == 0) return tpo_eval_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "world") == 0) return tpo_world_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "model") == 0) return tpo_model_main(argc - 1, argv + 1);
    const int help = argc > 1 && strcmp(argv[1], "--help") == 0;
    fputs(usage, help ? stdout : stderr);
    return help ? 0 : 2;
}
