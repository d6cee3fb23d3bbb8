/* What a service that was killed and has lost its versions does to a mesh that serves trained ones. */
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#include "tests/mesh/swap.h"

/* The one that `tpo up` started, or the one of the last restart. */
static void kill_service(const char *service, int how)
{
    char pid[32], name[64];
    snprintf(name, sizeof(name), "%s-0.pid", service);
    read_word("run", access("run/again.pid", R_OK) == 0 ? "again.pid" : name, pid, sizeof(pid));
    kill(atoi(pid), how);
}

/* A killed process lets its port go a moment after its connections. */
static void wait_until_free(const char *address)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1)),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (bool taken = true; taken; usleep(10000)) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        taken = bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0;
        close(fd);
    }
}

/* One service in a case. */
static void restart(const char *service)
{
    char address[256] = "";
    bool serving = false;
    struct tpo_peers *p = peers_of(service);
    snprintf(address, sizeof(address), "%s", tpo_peers_address(p, 0, &serving));
    kill_service(service, SIGKILL);
    while (tpo_peers_address(p, 0, &serving) != NULL && serving) tpo_loop_wait(loop, 20);
    wait_until_free(address);
    assert_int_equal(shell("%s/tpo-%s --train --listen %s --model %s/models/small >again.log 2>&1 & echo $! >run/again.pid",
                           tpo_test_build(), service, address, tpo_test_source()),
                     0);
    while (tpo_peers_address(p, 0, &serving) != NULL && !serving) tpo_loop_wait(loop, 20);
    tpo_peers_close(p);
}

/* Until the mesh is past the moments in which it finds out: the wanted version, or with -1 the typed error. */
static void expect(long version)
{
    struct heard h;
    do {
        h = ask("run", 0, false);
        if (h.status != 200 && h.status != 503) fail_msg("HTTP %ld %s", h.status, h.why);
        if (h.status == 200 && h.version < 0) fail_msg("two versions in one answer: %s", h.why);
    } while (version >= 0 ? h.status != 200 || h.version != version
                          : h.status != 503 || strstr(h.why, "\"reason\":\"version\"") == NULL);
}

static void a_service_that_lost_its_versions_gets_them_again(void **state)
{
    (void)state;
    char source[4096];
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    expect(0);
    for (int t = 0; t < TRAINED; t++) publish(t, 1);
    expect(1);
    restart("router"); /* it holds 0 alone, as the others still do */
    expect(0);
    publish(0, 1);
    expect(1);
    for (int t = 0; t < TRAINED; t++) publish(t, 2);
    expect(2);
    restart("router"); /* the others hold 2 and 1 */
    expect(-1);
    publish(0, 2);
    expect(2);
    let_go();
}

/* A question about the first picture, `more` further members with a comma before. */
static json_t *answer_about_the_ball(const char *more)
{
    char body[512];
    struct tpo_text out = {0};
    snprintf(body, sizeof(body), "{\"media\":[{\"id\":\"%s\"}],\"turns\":[{\"role\":\"user\",\"text\":\"%s\"}]%s}", ids[0],
             questions[0].text, more);
    const long status = http_post("run", "/v1/perceive", body, strlen(body), &out);
    if (status != 200) fail_msg("HTTP %ld %s", status, out.data);
    json_t *root = json_loads(out.data, 0, NULL);
    assert_non_null(root);
    tpo_text_free(&out);
    return root;
}

static void expect_stage(const json_t *root, const char *name, const char *version)
{
    size_t i;
    json_t *stage;
    json_array_foreach(json_object_get(root, "stages"), i, stage)
    {
        const char *said = json_string_value(json_object_get(stage, "name"));
        if (said == NULL || strcmp(said, name) != 0) continue;
        assert_string_equal(json_string_value(json_object_get(stage, "version")), version);
        return;
    }
    fail_msg("no stage %s", name);
}

/* "" where the first call went well. */
static const char *reason_of_call(const json_t *root)
{
    const char *reason =
        json_string_value(json_object_get(json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error"), "reason"));
    return reason != NULL ? reason : "";
}

static void a_head_that_lost_its_versions_costs_its_own_calls(void **state)
{
    (void)state;
    char source[4096], text[256];
    setenv("TPO_VERSION_HOLD", "0ms", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    for (int k = 1; k <= 2; k++)
        for (int t = 0; t < TRAINED; t++) publish(t, k);
    expect(2);
    json_t *root = answer_about_the_ball("");
    assert_int_equal(json_array_size(json_object_get(root, "calls")), 1);
    snprintf(text, sizeof(text), "%s", json_string_value(json_object_get(root, "text")));
    json_decref(root);
    restart("region"); /* it holds 0, the others 2 and 1 */
    for (int again = 0; again < 2; again++) {
        const json_t *error;
        root = answer_about_the_ball("");
        while (strcmp(reason_of_call(root), "peer_unavailable") == 0) { /* until the gateway has heard that it is back */
            json_decref(root);
            root = answer_about_the_ball("");
        }
        error = json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error");
        assert_string_equal(json_string_value(json_object_get(root, "text")), text);
        expect_stage(root, "router", "2");
        assert_string_equal(json_string_value(json_object_get(error, "code")), "UNAVAILABLE");
        assert_string_equal(json_string_value(json_object_get(error, "reason")), "version");
        assert_int_equal(json_array_size(json_object_get(root, "boxes")), 0);
        json_decref(root);
    }
    root = answer_about_the_ball(",\"task\":\"none\""); /* no head is asked */
    expect_stage(root, "router", "2");
    json_decref(root);
    const struct heard chat = ask("run", 1, false);
    assert_int_equal(chat.status, 200);
    assert_int_equal(chat.version, 2);
    publish(2, 2);
    while (ask("run", 0, false).version != 2) usleep(10000); /* until the gateway has heard of it */
    let_go();
}

TPO_TESTS(cmocka_unit_test_teardown(a_service_that_lost_its_versions_gets_them_again, tear_down),
          cmocka_unit_test_teardown(a_head_that_lost_its_versions_costs_its_own_calls, tear_down))
