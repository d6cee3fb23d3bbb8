/* Proves that a mesh stops working for a reader who has gone: sockets closed in the middle of a prompt and of an answer, counters read afterwards. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/support/mesh.h"
#include "tests/support/test.h"

/* One row of a prompt a step: a long prompt takes long enough to be left in its middle. */
static int up_slow(void **state)
{
    setenv("TPO_PREFILL_TOKENS", "1", 1);
    return mesh_up(state);
}

/* The sum of a metric's samples over all programs that count it. */
static double metric(const char *name)
{
    return mesh_metric(name, "");
}

/* Sends a request and leaves its answer to be read from the socket. */
static int begin(const char *body)
{
    struct tpo_text request = {0};
    struct sockaddr_in to = {.sin_family = AF_INET};
    char address[128], host[64], head[512];
    int port;
    mesh_line("run/http", address, sizeof(address));
    assert_int_equal(sscanf(address, "%63[^:]:%d", host, &port), 2);
    to.sin_port = htons((uint16_t)port);
    assert_int_equal(inet_pton(AF_INET, host, &to.sin_addr), 1);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    snprintf(head, sizeof(head),
             "POST /v1/perceive HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", address,
             strlen(body));
    tpo_text_puts(&request, head);
    tpo_text_puts(&request, body);
    assert_int_equal(send(fd, request.data, request.size, MSG_NOSIGNAL), (ssize_t)request.size);
    tpo_text_free(&request);
    return fd;
}

static void read_until(int fd, const char *word)
{
    struct tpo_text got = {0};
    char piece[1024];
    do {
        ssize_t n = recv(fd, piece, sizeof(piece), 0);
        if (n <= 0) fail_msg("the answer ended before %s", word);
        tpo_text_add(&got, piece, (size_t)n);
        tpo_text_add(&got, "", 0);
    } while (strstr(got.data, word) == NULL);
    tpo_text_free(&got);
}

/* Nothing runs any more, anywhere, and what was counted stays. The harness limits the wait. */
static void all_is_still(void)
{
    while (metric("tpo_sequences_running") > 0 || metric("tpo_requests_running") > 0) usleep(10000);
    double generated = metric("tpo_generated_tokens_total"), passes = metric("tpo_requests_total");
    usleep(300000);
    assert_true(metric("tpo_generated_tokens_total") == generated);
    assert_true(metric("tpo_requests_total") == passes);
    assert_true(metric("tpo_sequences_running") == 0);
}

/* Read to its end, the request has many tokens; left after the first text, it has fewer. Some seeds end soon, by chance: others are tried. */
static void an_answer_that_is_left_ends(void **state)
{
    (void)state;
    char ask[256];
    double before = 0, whole = 0;
    int fd = -1;
    for (int seed = 1; whole < 200; seed++) {
        assert_true(seed < 50);
        snprintf(ask, sizeof(ask),
                 "{\"turns\":[{\"role\":\"user\",\"text\":\"Tell me a "
                 "story.\"}],\"task\":\"none\",\"maxNewTokens\":1000,\"temperature\":100,\"seed\":%d,"
                 "\"stream\":true}",
                 seed);
        before = metric("tpo_generated_tokens_total");
        fd = begin(ask);
        read_until(fd, "event: done");
        close(fd);
        all_is_still();
        whole = metric("tpo_generated_tokens_total") - before;
    }
    fd = begin(ask);
    read_until(fd, "event: text");
    close(fd);
    all_is_still();
    double left = metric("tpo_generated_tokens_total") - before - whole;
    assert_true(left >= 1 && left < whole);
}

/* No event is due while a prompt is read, so that sending one cannot be what notices. */
static void a_prompt_that_is_left_ends(void **state)
{
    (void)state;
    struct tpo_text ask = {0};
    tpo_text_puts(&ask, "{\"turns\":[{\"role\":\"user\",\"text\":\"");
    for (int i = 0; i < 1000; i++) tpo_text_puts(&ask, "a cup ");
    tpo_text_puts(&ask, "\"}],\"task\":\"none\",\"maxNewTokens\":20,\"stream\":true}");
    tpo_text_add(&ask, "", 0);
    double generated = metric("tpo_generated_tokens_total"), prompts = metric("tpo_prompt_tokens_total");
    int fd = begin(ask.data);
    while (metric("tpo_sequences_running") < 1) usleep(1000);
    close(fd);
    all_is_still();
    assert_true(metric("tpo_prompt_tokens_total") > prompts + 1000);
    assert_true(metric("tpo_generated_tokens_total") == generated);
    tpo_text_free(&ask);
}

TPO_TESTS(cmocka_unit_test_setup_teardown(an_answer_that_is_left_ends, mesh_up, mesh_down),
          cmocka_unit_test_setup_teardown(a_prompt_that_is_left_ends, up_slow, mesh_down))
