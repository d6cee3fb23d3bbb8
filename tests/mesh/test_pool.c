/* Proves what the size of the router's pool of keys and values (--kv-bytes) means for those who ask: a pool too small for any picture doesn't
 * start, a request too large for it is told so for good, and one that waits for room is not read again before every token of the others. */
#include <stdlib.h>

#include "tests/support/mesh.h"
#include "tests/support/test.h"

#define ASKERS 8

/* The small model takes 6 KiB a token. */
static void up(const char *kv_bytes)
{
    setenv("TPO_KV_BYTES", kv_bytes, 1);
    assert_int_equal(mesh_up(NULL), 0);
}

static void a_pool_too_small_for_a_picture_does_not_start(void **state)
{
    (void)state;
    setenv("TPO_KV_BYTES", "1M", 1);
    assert_int_not_equal(mesh_up(NULL), 0);
    assert_int_equal(system("grep -q 'reason=kv_bytes' run/router-0.log"), 0);
}

static void what_never_fits_is_not_to_be_tried_again(void **state)
{
    (void)state;
    char id[65];
    up("3M");
    mesh_upload("crowd.png", 0, id);
    struct http_answer a = mesh_ask(id, "Where is the dotted ball?", ",\"maxNewTokens\":1000");
    mesh_expect_error(&a, 400, "INVALID_ARGUMENT", "kv_full");
    http_free(&a);
    a = mesh_ask(id, "Where is the dotted ball?", "");
    assert_int_equal(a.status, 200);
    http_free(&a);
    assert_int_equal(mesh_down(NULL), 0);
}

/* Room for one answer at a time: seven wait, each while some others' answers are written token by token. */
static void a_prompt_that_waits_is_read_twice_at_most(void **state)
{
    (void)state;
    static struct mesh_asker askers[ASKERS];
    char id[65];
    up("2M");
    mesh_upload("crowd.png", 0, id);
    for (int i = 0; i < ASKERS; i++) {
        snprintf(askers[i].id, sizeof(askers[i].id), "%s", id);
        askers[i].sentence = "Describe the picture.";
        assert_int_equal(pthread_create(&askers[i].thread, NULL, mesh_asker_run, &askers[i]), 0);
    }
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(askers[i].thread, NULL);
        assert_string_equal(askers[i].text, askers[0].text);
    }
    assert_int_equal(strncmp(askers[0].text, "200 ", 4), 0);
    /* One more is the warm-up's. */
    const double read = mesh_metric("tpo_prompts_read_total", "router");
    if (read < ASKERS || read > 2 * ASKERS + 1) fail_msg("%d prompts were read %.0f times", ASKERS, read);
    assert_int_equal(mesh_down(NULL), 0);
}

TPO_TESTS(cmocka_unit_test(a_pool_too_small_for_a_picture_does_not_start),
          cmocka_unit_test(what_never_fits_is_not_to_be_tried_again), cmocka_unit_test(a_prompt_that_waits_is_read_twice_at_most))
