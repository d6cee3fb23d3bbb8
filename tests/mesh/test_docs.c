/* Proves that docs/rest.md, docs/grpc.md and docs/deploy.md are true of the programs: their commands run, their client speaks with the mesh,
 * every metric is on the page, and every setting that a page names exists. */
#include "tests/support/test.h"

#include <sys/wait.h>
#include <unistd.h>

/* A script, run in the case's own directory with $S (the checkout) and $B (the build folder); what it says goes to the test's log. */
static int script(const char *text)
{
    setenv("S", tpo_test_source(), 1);
    setenv("B", tpo_test_build(), 1);
    FILE *f = fopen("script.sh", "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    int status = system("/bin/sh -e script.sh 2>&1");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* `block KIND FILE`: the lines of a page's blocks of that kind, with the addresses of this mesh for the usual ones. */
#define BLOCK                                                                                                                      \
    "block() { awk -v kind=\"$1\" '/^```/ { on = on ? 0 : $0 == \"```\" kind; next } on' \"$S/docs/$2\" |"                         \
    " sed \"s/127.0.0.1:8420/$(cat run/http)/g; s/127.0.0.1:8421/$(cat run/grpc)/g\"; }\n"                                         \
    "has() { grep -qF -- \"$1\" out || { echo \"not in the output: $1\"; cat out; exit 1; }; }\n"

static int up(void **state)
{
    (void)state;
    return script("ln -s $S/models models; ln -s $S/proto proto\n"
                  "$B/tpo up --any-port --run-dir run --model models/small >up.log || { cat up.log; exit 1; }\n");
}

static int down(void **state)
{
    (void)state;
    return script("$B/tpo down --run-dir run >down.log\n");
}

static void commands_of_the_rest_page_run(void **state)
{
    (void)state;
    assert_int_equal(script(BLOCK
                            "block sh rest.md >page.sh\n"
                            "sh -e page.sh >out\n"
                            "has '\"sizeBytes\":\"31908\"'\n"
                            "has '\"calls\":[{\"task\":\"region\",\"textOffset\":0}]'\n"
                            "has 'event: text'; has 'event: done'; has '\"finishReason\":\"length\"'\n"
                            "has '\"reason\":\"turns\"'; has '{\"status\":\"ok\"}'; has '\"ready\":true'; has 'tpo_peer_up{'\n"),
                     0);
}

static void every_metric_is_on_the_rest_page(void **state)
{
    (void)state;
    /* A question first: some metrics begin with it. */
    assert_int_equal(
        script(
            BLOCK
            "block sh rest.md >page.sh\n"
            "sh -e page.sh >out\n"
            "sed -n 's/^# TYPE \\(tpo_[a-z_]*\\) .*/\\1/p' out | sort -u >names\n"
            "test $(wc -l <names) -gt 15\n"
            "while read name; do grep -qF \"\\`$name\\`\" $S/docs/rest.md || { echo \"not told: $name\"; exit 1; }; done <names\n"),
        0);
}

/* The rules of the text format that a strict parser checks: one TYPE per family, no family named like a sample of another one, and every sample in
 * the block of its family. */
static void metrics_are_a_valid_exposition(void **state)
{
    (void)state;
    assert_int_equal(script(BLOCK
                            "block sh rest.md >page.sh; sh -e page.sh >/dev/null\n"
                            "curl -sf http://$(cat run/http)/metrics >out\n"
                            "has 'tpo_request_duration_seconds_count{stage=\"router\"'\n"
                            "cat >check.awk <<'END'\n"
                            "function bad(why) { print why \": \" $0; failed = 1; exit 1 }\n"
                            "function base(name) { return sub(/_(bucket|sum|count)$/, \"\", name) ? name : \"\" }\n"
                            "/^# TYPE / { if ($3 in kind) bad(\"a second TYPE\"); kind[$3] = $4; now = $3; next }\n"
                            "/^#/ { next }\n"
                            "{ name = $1; sub(/[{].*/, \"\", name)\n"
                            "  if (kind[now] == \"histogram\" ? base(name) != now : name != now) bad(\"not of \" now)\n"
                            "  if ($0 in seen || $NF !~ /^[-+0-9.eEInf]+$/) bad(\"no sample\"); seen[$0] = 1 }\n"
                            "END { if (failed) exit 1\n"
                            "  for (k in kind) if (base(k) in kind) { print k \" is named like a sample of \" base(k); exit 1 } }\n"
                            "END\n"
                            "awk -f check.awk out\n"),
                     0);
}

static void python_client_of_the_grpc_page_runs(void **state)
{
    (void)state;
    assert_int_equal(script(BLOCK "block sh grpc.md >page.sh; block python grpc.md >client.py\n"
                                  "timeout 60 sh -e page.sh >out\n"
                                  "has 'serving: True'; has 'doc-1: box ('; has ' done'\n"
                                  "has 'NOT_FOUND no media of this id is here; send it again'; has 'media_unknown tpomesh {}'\n"),
                     0);
}

static void settings_of_the_pages_are_in_help(void **state)
{
    (void)state;
    assert_int_equal(
        script("for p in gateway encoder router region; do $B/tpo-$p --help; done >help; $B/tpo-trainer train --help >>help\n"
               "grep -oh '`--[a-z-]*' $S/docs/rest.md $S/docs/grpc.md $S/docs/deploy.md | tr -d '`' | sort -u >flags\n"
               "test $(wc -l <flags) -gt 12\n"
               "while read flag; do sed 's/\\[no-\\]//' help | grep -q -- \"^  $flag\\( \\|$\\)\" || { echo \"no such "
               "setting: $flag\"; exit 1; }; done <flags\n"),
        0);
}

TPO_TESTS(cmocka_unit_test_setup_teardown(commands_of_the_rest_page_run, up, down),
          cmocka_unit_test_setup_teardown(every_metric_is_on_the_rest_page, up, down),
          cmocka_unit_test_setup_teardown(metrics_are_a_valid_exposition, up, down),
          cmocka_unit_test_setup_teardown(python_client_of_the_grpc_page_runs, up, down),
          cmocka_unit_test(settings_of_the_pages_are_in_help))
