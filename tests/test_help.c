/* Proves that every command explains itself: --help says its flags and succeeds, what nobody knows is refused with status 2. */
#include "tests/support/test.h"

#include <sys/wait.h>

static const char *const commands[] = {"tpo",           "tpo ask",          "tpo chat",        "tpo up",           "tpo down",
                                       "tpo world",     "tpo train",        "tpo eval",        "tpo model",        "tpo model check",
                                       "tpo model random", "tpo model export", "tpo-encoder",  "tpo-router",       "tpo-region",
                                       "tpo-gateway"};

static int status_of(const char *command, const char *more)
{
    char text[4096];
    snprintf(text, sizeof(text), "%s/%s %s >out 2>err", tpo_test_build(), command, more);
    const int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void help_is_told_and_succeeds(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (status_of(commands[i], "--help") != 0) fail_msg("%s --help fails", commands[i]);
        if (system("test -s out && test ! -s err && grep -q -- '--\\|tpo ' out") != 0) fail_msg("%s --help teaches nothing", commands[i]);
    }
}

static void unknown_flags_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (status_of(commands[i], "--nonsense") != 2) fail_msg("%s --nonsense does not end with 2", commands[i]);
        if (system("test -s err") != 0) fail_msg("%s --nonsense says nothing", commands[i]);
    }
}

TPO_TESTS(cmocka_unit_test(help_is_told_and_succeeds), cmocka_unit_test(unknown_flags_are_refused))
