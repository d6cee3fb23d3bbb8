/* `tpo ask` before a gateway that never answers, never ends or speaks of boxes that no picture has. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/test.h"

#define OK     "HTTP/1.1 200 OK\r\nConnection: close\r\n"
#define JSON   "Content-Type: application/json\r\n"
#define EVENTS "Content-Type: text/event-stream\r\n\r\n"
#define ID     "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* What the connections get, in order: `says`, then `endless` over and over where it is set. NULL: nothing, and the connection stays. */
struct reply {
    const char *says, *endless;
};
static const struct reply uploaded = {OK JSON "Content-Length: 73\r\n\r\n{\"id\":\"" ID "\"}", NULL};

static struct reply replies[2];
static int listener;
static pthread_t thread;

static int send_all(int fd, const char *text)
{
    size_t left = strlen(text);
    for (ssize_t n; left > 0; text += n, left -= (size_t)n)
        if ((n = send(fd, text, left, MSG_NOSIGNAL)) <= 0) return -1;
    return 0;
}

/* One connection: what it sends is read until it has come whole, as small as it is here. */
static void serve(int fd, const struct reply *r)
{
    char request[65536];
    size_t n = 0;
    while (n < sizeof(request) - 1) {
        ssize_t got = recv(fd, request + n, sizeof(request) - 1 - n, 0);
        if (got <= 0) return;
        n += (size_t)got;
        request[n] = '\0';
        const char *body = strstr(request, "\r\n\r\n"), *length = strstr(request, "Content-Length: ");
        if (body != NULL && length != NULL && request + n >= body + 4 + strtoul(length + 16, NULL, 10)) break;
    }
    if (r->says == NULL) {
        while (recv(fd, request, sizeof(request), 0) > 0) continue; /* until it is given up */
        return;
    }
    if (send_all(fd, r->says) != 0 || r->endless == NULL) return;
    while (send_all(fd, r->endless) == 0) continue;
}

static void *gateway(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2; i++) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return NULL;
        serve(fd, &replies[i]);
        shutdown(fd, SHUT_WR);
        close(fd);
    }
    return NULL;
}

/* The status of `tpo ask` with these replies; its output in out and err. */
static int ask(struct reply first, struct reply second, const char *flags)
{
    char command[4400];
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    replies[0] = first;
    replies[1] = second;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &n), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(pthread_create(&thread, NULL, gateway, NULL), 0);
    snprintf(command, sizeof(command), "timeout 120 %s/tpo ask --gateway 127.0.0.1:%d %s picture.png 'What is this?' >out 2>err",
             tpo_test_build(), ntohs(a.sin_port), flags);
    int status = system(command);
    shutdown(listener, SHUT_RDWR); /* a connection that never came */
    pthread_join(thread, NULL);
    close(listener);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void says(const char *file, const char *text)
{
    char command[512];
    snprintf(command, sizeof(command), "grep -qF -- '%s' %s", text, file);
    if (system(command) != 0) fail_msg("%s does not say: %s", file, text);
}

static void make_picture(void)
{
    assert_int_equal(system("ffmpeg -loglevel error -y -f lavfi -i testsrc2=size=64x48 -frames:v 1 picture.png"), 0);
}

static void a_gateway_that_never_answers_is_given_up(void **state)
{
    (void)state;
    make_picture();
    assert_int_equal(ask((struct reply){NULL, NULL}, uploaded, "--timeout 1ms"), 1);
    says("err", "DEADLINE_EXCEEDED");
    assert_int_equal(ask(uploaded, (struct reply){NULL, NULL}, "--timeout 1ms"), 1);
    says("err", "DEADLINE_EXCEEDED");
}

static void an_answer_without_end_is_given_up(void **state)
{
    (void)state;
    static char flood[65537];
    memset(flood, 'x', sizeof(flood) - 1);
    make_picture();
    assert_int_equal(ask((struct reply){OK JSON "\r\n", flood}, uploaded, ""), 1);
    says("err", "RESOURCE_EXHAUSTED");
    assert_int_equal(ask(uploaded, (struct reply){OK JSON "\r\n", flood}, ""), 1);
    says("err", "RESOURCE_EXHAUSTED");
    assert_int_equal(ask(uploaded, (struct reply){OK EVENTS "data: ", flood}, ""), 1);
    says("err", "RESOURCE_EXHAUSTED");
}

static struct reply done(const char *box, const char *frame)
{
    static char text[4096];
    snprintf(text, sizeof(text),
             OK EVENTS "event: done\ndata: {\"done\":{\"text\":\"\",\"boxes\":[{\"frame\":%s,\"pixels\":{%s}}],"
                       "\"media\":{\"frames\":[{\"index\":0,\"timeS\":0}]}}}\n\n",
             frame, box);
    return (struct reply){text, NULL};
}

static void boxes_outside_the_picture_are_drawn_at_its_edge(void **state)
{
    (void)state;
    static const char *const boxes[] = {"\"x0\":-5,\"y0\":-5,\"x1\":2147483648,\"y1\":2147483648",
                                        "\"x0\":-1e300,\"y0\":-2147483649,\"x1\":1e300,\"y1\":1e300",
                                        "\"x0\":1e300,\"y0\":1e300,\"x1\":-1e300,\"y1\":-1e300"};
    static const char *const frames[] = {"-1", "1e300", "7"};
    make_picture();
    for (size_t i = 0; i < sizeof(boxes) / sizeof(boxes[0]); i++) {
        unlink("boxed.png");
        assert_int_equal(ask(uploaded, done(boxes[i], "0"), "--out boxed.png"), 0);
        assert_int_equal(access("boxed.png", F_OK), 0);
    }
    unlink("boxed.png");
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
        ask(uploaded, done("\"x0\":1,\"y0\":1,\"x1\":9,\"y1\":9", frames[i]), "--out boxed.png");
    says("out", "picture boxed.png"); /* a frame that is not told counts as the first */
}

TPO_TESTS(cmocka_unit_test(a_gateway_that_never_answers_is_given_up), cmocka_unit_test(an_answer_without_end_is_given_up),
          cmocka_unit_test(boxes_outside_the_picture_are_drawn_at_its_edge))
