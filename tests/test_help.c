/* Proves that every command explains itself: --help names its flags and succeeds, what nobody knows is refused with status 2. */
#include "tests/support/test.h"

#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>

/* Of each what its help must tell, word by word. */
static const struct {
    const char *name, *tells;
} commands[] = {
    {"tpo", "up ask chat down world train eval model"},
    {"tpo ask", "--gateway --task --box --out --json --system --max-new-tokens --temperature --top-p --seed --timeout"},
    {"tpo chat", "--gateway --max-new-tokens"},
    {"tpo up", "--model --run-dir --replicas --http --grpc --dtype --wait --drain --log-level"},
    {"tpo down", "--run-dir"},
    {"tpo world", "--out --images --clips --seed --corpus --show"},
    {"tpo train", "--out --model --data --mesh --device --threads --checkpoint-every --log-every --publish-every --stop-after "
                  "--wait --lease --call-timeout"},
    {"tpo eval", "--n --threads --device --out --images --frames --kinds --split"},
    {"tpo model", "check random export export-peft import-peft --seed --dtype"},
    {"tpo model check", "check DIR"},
    {"tpo model random", "--seed --dtype"},
    {"tpo model export", "--dtype"},
    {"tpo model export-peft", "PEFT"},
    {"tpo model import-peft", "ADAPTER"},
    {"tpo-encoder", "--listen --model --device --threads --dtype --train --cache --media-dir --media-workers"},
    {"tpo-router", "--listen --model --kv-bytes --sequences --prefill-tokens --merge-lora"},
    {"tpo-region", "--listen --model --check"},
    {"tpo-gateway", "--http --grpc --encoder --router --head --timeout --drain"},
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int status_of(const char *command, const char *more)
{
    char text[4096];
    snprintf(text, sizeof(text), "%s/%s %s >out 2>err", tpo_test_build(), command, more);
    const int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static char *output(void)
{
    static char text[1 << 16];
    FILE *f = fopen("out", "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    fclose(f);
    return text;
}

/* "--[no-]json" says --json. */
static bool told(const char *help, const char *word)
{
    char either[64];
    snprintf(either, sizeof(either), "--[no-]%s", strncmp(word, "--", 2) == 0 ? word + 2 : word);
    return strstr(help, word) != NULL || strstr(help, either) != NULL;
}

static void help_names_the_flags(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        char words[512];
        if (status_of(commands[i].name, "--help") != 0) fail_msg("%s --help fails", commands[i].name);
        const char *help = output();
        snprintf(words, sizeof(words), "%s", commands[i].tells);
        for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " "))
            if (!told(help, word)) fail_msg("%s --help does not tell of %s", commands[i].name, word);
    }
}

static void what_nobody_knows_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (status_of(commands[i].name, "--nonsense") != 2) fail_msg("%s --nonsense does not end with 2", commands[i].name);
        if (system("test -s err") != 0) fail_msg("%s --nonsense says nothing", commands[i].name);
    }
}

/* Status 2 and the sentence that says why. */
static void refused(const char *command, const char *arguments, const char *why)
{
    char text[512];
    assert_int_equal(status_of(command, arguments), 2);
    snprintf(text, sizeof(text), "grep -qF -- '%s' err", why);
    if (system(text) != 0) fail_msg("%s %s does not say: %s", command, arguments, why);
}

static void eval_tells_what_is_wrong(void **state)
{
    (void)state;
    refused("tpo eval", "", "one MODEL folder is needed");
    refused("tpo eval", "nowhere elsewhere", "one MODEL folder is needed");
    refused("tpo eval", "nowhere --threads 4x", "--threads 4x: is not a number");
    refused("tpo eval", "nowhere --threads 0", "--threads 0: must be 1 .. 256");
    refused("tpo eval", "nowhere --n 1", "--n 1: must be 2 ..");
    refused("tpo eval", "nowhere --frames 1", "--frames 1: must be 2 ..");
    refused("tpo eval", "nowhere --frames 9", "--frames 9: must be 2 .. 8");
    refused("tpo eval", "nowhere --kinds direction --images", "none of these is asked");
    refused("tpo eval", "nowhere --kinds \"how many,how much\"", "no kind is named \"how much\"");
    assert_int_equal(status_of("tpo eval", "nowhere --kinds \"how many,is there\" --images"), 1);
}

static void model_tells_what_is_wrong(void **state)
{
    (void)state;
    refused("tpo model", "", "tpo model check DIR");
    refused("tpo model", "nonsense", "there is no nonsense");
    refused("tpo model check", "", "takes DIR");
    refused("tpo model check", "nowhere elsewhere", "takes DIR");
    refused("tpo model random", "from", "takes FROM DIR");
    refused("tpo model random", "from to --seed -1", "--seed -1: must be 0 ..");
    refused("tpo model random", "from to --dtype f16", "--dtype f16: must be one of f32|bf16");
    refused("tpo model export", "from to --seed 1", "--seed: no such flag");
    refused("tpo model import-peft", "model adapter", "takes MODEL ADAPTER DIR");
    refused("tpo model export", "nowhere to", "tpo model: NOT_FOUND");
}

TPO_TESTS(cmocka_unit_test(help_names_the_flags), cmocka_unit_test(what_nobody_knows_is_refused),
          cmocka_unit_test(eval_tells_what_is_wrong), cmocka_unit_test(model_tells_what_is_wrong))
