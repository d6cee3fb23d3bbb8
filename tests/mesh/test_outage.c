/* Proves what the mesh does while a part of it is missing: at the start, in the middle of a request, one of two; and that services refuse models they
 * cannot serve. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/mesh.h"
#include "tests/support/test.h"

enum { ENCODER, ROUTER, REGION, SERVICES };
static const char *const names[SERVICES] = {"encoder", "router", "region"};

/* Where `tpo up` put a service. */
static void address_of(int service, char out[64])
{
    FILE *f = fopen("run/services", "r");
    char line[256];
    const size_t n = strlen(names[service]);
    assert_non_null(f);
    out[0] = '\0';
    while (fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, names[service], n) == 0 && line[n] == '=')
            snprintf(out, 64, "%.*s", (int)strcspn(line + n + 1, ",\n"), line + n + 1);
    fclose(f);
    assert_string_not_equal(out, "");
}

static void service_kill(int service)
{
    char name[32];
    snprintf(name, sizeof(name), "%s-0", names[service]);
    kill(mesh_pid(name), SIGKILL);
}

/* Anew, where it was, until the case ends. */
static void service_start(int service)
{
    char command[4096], address[64];
    address_of(service, address);
    snprintf(command, sizeof(command), "%s/tpo-%s --listen %s --model %s/models/small %s >>again.log 2>&1 & echo $! >>again.pids",
             tpo_test_build(), names[service], address, tpo_test_source(),
             service == ENCODER ? "--media-dir again --cache ''" : "");
    assert_int_equal(system(command), 0);
}

static int down(void **state)
{
    (void)!system("test ! -f again.pids || kill $(cat again.pids) 2>/dev/null");
    return mesh_down(state);
}

static void wait_until_ready(const char *run)
{
    long status = 0;
    while (status != 200) {
        struct http_answer a = http_send(run, "/readyz", NULL, 0, 0);
        status = a.status;
        http_free(&a);
        usleep(20000);
    }
}

static void asks_and_is_answered(const char *id)
{
    struct http_answer a = mesh_ask(id, "Where is the dotted ball?", "");
    json_t *root = mesh_json(&a);
    assert_int_equal(a.status, 200);
    assert_int_equal(json_array_size(json_object_get(root, "boxes")), 1);
    json_decref(root);
    http_free(&a);
}

/* A second gateway, ./late, that begins when none of its services is there. */
static void a_gateway_that_comes_first_finds_the_rest(void **state)
{
    (void)state;
    static const char question[] = "{\"turns\":[{\"role\":\"user\",\"text\":\"Hello?\"}]}";
    char command[4096], address[SERVICES][64], line[64], pair[2][16];
    for (int s = 0; s < SERVICES; s++) {
        address_of(s, address[s]);
        service_kill(s);
    }
    snprintf(command, sizeof(command),
             "mkdir late; %s/tpo-gateway --http 127.0.0.1:0 --grpc 127.0.0.1:0 --port-file late/ports --encoder %s --router %s "
             "--head region=%s --media-dir "
             "late/media >late/log 2>&1 & echo $! >>again.pids",
             tpo_test_build(), address[ENCODER], address[ROUTER], address[REGION]);
    assert_int_equal(system(command), 0);
    while (system("test -s late/ports") != 0) usleep(20000);
    FILE *f = fopen("late/ports", "r");
    assert_int_equal(fscanf(f, "%15s %15s", pair[0], pair[1]), 2);
    fclose(f);
    snprintf(line, sizeof(line), "echo 127.0.0.1:%s >late/http", pair[0]);
    assert_int_equal(system(line), 0);

    struct http_answer a = http_send("late", "/healthz", NULL, 0, 0);
    assert_int_equal(a.status, 200);
    http_free(&a);
    a = http_send("late", "/readyz", NULL, 0, 0);
    assert_int_equal(a.status, 503);
    http_free(&a);
    a = http_send("late", "/v1/perceive", question, strlen(question), 0);
    mesh_expect_error(&a, 503, "UNAVAILABLE", "");
    assert_non_null(strstr(a.body.data, "\"stage\":\"router\""));
    http_free(&a);
    for (int s = 0; s < SERVICES; s++) service_start(s);
    wait_until_ready("late");
    a = http_send("late", "/v1/perceive", question, strlen(question), 0);
    assert_int_equal(a.status, 200);
    http_free(&a);
}

static void a_router_that_dies_under_a_request(void **state)
{
    (void)state;
    struct mesh_asker k = {.sentence = "Where is the dotted ball?"};
    mesh_upload("crowd.png", 0, k.id);
    asks_and_is_answered(k.id);
    kill(mesh_pid("router-0"), SIGSTOP);
    pthread_create(&k.thread, NULL, mesh_asker_run, &k);
    while (mesh_metric("tpo_requests_running", "stage=\"gateway\"") < 1) usleep(10000);
    service_kill(ROUTER);
    pthread_join(k.thread, NULL);
    assert_int_equal(strncmp(k.text, "503", 3), 0);
    service_start(ROUTER);
    wait_until_ready("run");
    asks_and_is_answered(k.id);
}

static void *ask_whole(void *out)
{
    char id[65];
    mesh_upload("crowd.png", 0, id);
    *(struct http_answer *)out = mesh_ask(id, "Where is the dotted ball?", "");
    return NULL;
}

/* The head has its call when the router is done, and dies before it answers: the rest of the answer stands. */
static void a_head_that_dies_in_its_call(void **state)
{
    (void)state;
    struct http_answer a = {0};
    pthread_t thread;
    char id[65];
    mesh_upload("crowd.png", 0, id);
    asks_and_is_answered(id);
    kill(mesh_pid("region-0"), SIGSTOP);
    const double before = mesh_metric("tpo_generated_tokens_total", "router");
    pthread_create(&thread, NULL, ask_whole, &a);
    while (mesh_metric("tpo_generated_tokens_total", "router") == before) usleep(10000);
    service_kill(REGION);
    pthread_join(thread, NULL);
    assert_int_equal(a.status, 200);
    json_t *root = mesh_json(&a), *error = json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error");
    assert_string_equal(mesh_text(error, "code"), "UNAVAILABLE");
    assert_string_equal(mesh_text(error, "stage"), "region");
    assert_int_equal(json_array_size(json_object_get(root, "boxes")), 0);
    json_decref(root);
    http_free(&a);
    service_start(REGION);
    do {
        a = mesh_ask(id, "Where is the dotted ball?", "");
        root = mesh_json(&a);
        assert_int_equal(a.status, 200);
        error = json_object_get(json_array_get(json_object_get(root, "calls"), 0), "error");
        json_decref(root);
        http_free(&a);
        usleep(20000);
    } while (error != NULL);
    asks_and_is_answered(id);
}

static int up_twice(void **state)
{
    (void)state;
    return mesh_shell("%s/tpo up --any-port --run-dir run --replicas encoder=2 --model %s/models/small >up.log 2>&1",
                      tpo_test_build(), tpo_test_source());
}

static int encoders_serving(void)
{
    struct http_answer a = mesh_http("/readyz", NULL, 0);
    json_t *root = mesh_json(&a), *peer;
    size_t i;
    int n = 0;
    json_array_foreach(json_object_get(root, "peers"), i, peer) n +=
        strcmp(mesh_text(peer, "stage"), "encoder") == 0 && json_is_true(json_object_get(peer, "serving"));
    json_decref(root);
    http_free(&a);
    return n;
}

static void one_of_two_encoders_is_enough(void **state)
{
    (void)state;
    char ids[4][65];
    while (encoders_serving() != 2) usleep(20000); /* one is enough for `tpo up` to be done */
    for (int i = 0; i < 4; i++) {                  /* whichever of the two each picture belongs to */
        mesh_upload("crowd.png", i, ids[i]);
        asks_and_is_answered(ids[i]);
    }
    service_kill(ENCODER);
    for (int i = 0; i < 4; i++) asks_and_is_answered(ids[i]);
    while (encoders_serving() != 1) usleep(20000);
    for (int i = 0; i < 4; i++) asks_and_is_answered(ids[i]);
}

static int status_of(const char *format, const char *a, const char *b)
{
    const int status = mesh_shell(format, a, b);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void replicas_of_nothing_are_refused(void **state)
{
    (void)state;
    assert_int_equal(status_of("%s/tpo up --any-port --run-dir run --replicas %s >up.log 2>&1", tpo_test_build(), "nope=2"), 2);
    assert_int_equal(status_of("%s/tpo up --any-port --run-dir run --replicas %s >up.log 2>&1", tpo_test_build(), "encoder=0"), 2);
    assert_int_equal(access("run/gateway.pid", F_OK), -1);
}

/* Each service with a folder it cannot serve: it ends by itself, not with 0, and says why. */
static void refuse(const char *folder, const char *const *why)
{
    for (int s = 0; s < SERVICES; s++) {
        char command[4096];
        snprintf(command, sizeof(command),
                 "timeout 60 %s/tpo-%s --listen 127.0.0.1:0 --model %s --media-dir files --cache '' >refused.log 2>&1",
                 tpo_test_build(), names[s], folder);
        if (s != ENCODER) *strstr(command, "--media-dir") = '\0', strcat(command, ">refused.log 2>&1");
        assert_int_equal(status_of("%s%s", command, ""), 1);
        if (status_of("grep -q 'event=open_failed.*%s' %s", why[s], "refused.log") != 0) {
            (void)!system("cat refused.log");
            fail_msg("%s does not name %s", names[s], why[s]);
        }
    }
}

static void models_that_cannot_be_served_are_refused_at_start(void **state)
{
    (void)state;
    static const char *const cut[] = {"past the end of the file", "past the end of the file", "past the end of the file"},
                             *const shapes[] = {"patch_embed.proj.weight has the wrong shape",
                                                "embed_tokens.weight has the wrong shape",
                                                "loc_decoder.0.weight has the wrong shape"},
                             *const keys[] = {"bridgee is not a key", "bridgee is not a key", "bridgee is not a key"};
    assert_int_equal(
        status_of("cp -rL %s/models/small cut && cp -r cut odd && cp -r cut key && truncate -s -4096 cut/model.safetensors%s",
                  tpo_test_source(), ""),
        0);
    assert_int_equal(system("sed -i 's/\"hidden_size\": 128/\"hidden_size\": 96/; s/\"encoder_embed_dim\": "
                            "128/\"encoder_embed_dim\": 160/' odd/config.json"),
                     0);
    assert_int_equal(system("sed -i 's/\"bridge\"/\"bridgee\"/' key/config.json"), 0);
    refuse("cut", cut);
    refuse("odd", shapes);
    refuse("key", keys);
}

TPO_TESTS(cmocka_unit_test_setup_teardown(a_gateway_that_comes_first_finds_the_rest, mesh_up, down),
          cmocka_unit_test_setup_teardown(a_router_that_dies_under_a_request, mesh_up, down),
          cmocka_unit_test_setup_teardown(a_head_that_dies_in_its_call, mesh_up, down),
          cmocka_unit_test_setup_teardown(one_of_two_encoders_is_enough, up_twice, down),
          cmocka_unit_test(replicas_of_nothing_are_refused), cmocka_unit_test(models_that_cannot_be_served_are_refused_at_start))
