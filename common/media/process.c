/* This file owns starting, talking to and ending one decoding process. */
#include "common/media/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

#define START_MS 20000 /* a loaded machine may take its time over a hundred libraries */
#define GRACE_MS 5000  /* the worker's own alarm rings after ours */
#define FD_FLOOR 16    /* keeps our ends out of the way of the numbers the worker expects */

extern char **environ;

static int died(struct tpo_process *p, struct tpo_error *err)
{
    tpo_process_kill(p);
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "the decoder ended over this file");
}

static int late(struct tpo_process *p, struct tpo_error *err)
{
    tpo_process_kill(p);
    return tpo_fail(err, TPO_DEADLINE_EXCEEDED, "media_timeout", "decoding took too long");
}

static int above(int fd)
{
    if (fd < 0 || fd >= FD_FLOOR) return fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, FD_FLOOR);
    close(fd);
    return high;
}

static int make_ring(size_t bytes)
{
    int fd = above(memfd_create("tpo-media", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0) return -1;
    /* Sealed: the worker can neither shrink it under our feet nor grow it past our memory. */
    if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) return fd;
    close(fd);
    return -1;
}

/* posix_spawn and not fork: gRPC's threads do not survive a fork that goes on in C. */
static int spawn(pid_t *pid, const char *program, int socket, int ring)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char *argv[] = {(char *)program, NULL}, *nothing[] = {NULL}, **env = nothing;
    if (getenv("ASAN_OPTIONS") != NULL || getenv("TSAN_OPTIONS") != NULL) env = environ; /* a sanitizer's worker wants its own */
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&files, socket, TPO_MEDIA_SOCKET);
    posix_spawn_file_actions_adddup2(&files, ring, TPO_MEDIA_RING);
    posix_spawn_file_actions_addclosefrom_np(&files, TPO_MEDIA_RING + 1);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int rc = posix_spawn(pid, program, &files, &attributes, argv, env);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return rc;
}

int tpo_process_start(struct tpo_process *p, const char *program, size_t ring_bytes, struct tpo_error *err)
{
    int pair[2] = {-1, -1}, rc;
    memset(p, 0, sizeof(*p));
    p->socket = -1;
    int ring = make_ring(ring_bytes);
    p->ring = ring >= 0 ? mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0) : MAP_FAILED;
    if (p->ring == MAP_FAILED)
        p->ring = NULL;
    else
        p->ring_bytes = ring_bytes;
    if (p->ring == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "media_worker", "no memory or descriptors for a decoder: %s", strerror(errno));
        goto fail;
    }
    p->socket = pair[0];
    pair[1] = above(pair[1]);
    int failed = spawn(&p->pid, program, pair[1], ring);
    if (failed != 0) {
        p->pid = 0;
        rc = tpo_fail(err, TPO_UNAVAILABLE, "media_worker", "cannot start %s: %s", program, strerror(failed));
        goto fail;
    }
    close(pair[1]), close(ring);
    pair[1] = ring = -1;
    struct tpo_media_reply hello;
    rc = tpo_process_receive(p, &hello, 0, tpo_now_us() + START_MS * 1000, NULL);
    if (rc == TPO_OK) return TPO_OK;
    rc = tpo_fail(err, TPO_UNAVAILABLE, "media_worker", "%s does not come up", program);
fail:
    if (pair[1] >= 0) close(pair[1]);
    if (ring >= 0) close(ring);
    tpo_process_kill(p);
    return rc;
}

void tpo_process_kill(struct tpo_process *p)
{
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    if (p->socket >= 0 && p->ring != NULL) close(p->socket);
    if (p->ring != NULL) munmap(p->ring, p->ring_bytes);
    memset(p, 0, sizeof(*p));
    p->socket = -1;
}

/* TPO_OK when the socket is ready. */
static int wait_for(struct tpo_process *p, short events, int64_t until_us, struct tpo_error *err)
{
    for (;;) {
        int64_t left_us = until_us - tpo_now_us();
        struct pollfd fd = {.fd = p->socket, .events = events};
        if (left_us <= 0) return late(p, err);
        int n = poll(&fd, 1, left_us > 60000000 ? 60000 : (int)(left_us / 1000) + 1);
        if (n > 0) return TPO_OK; /* a hang-up too: the call that follows tells */
        if (n < 0 && errno != EINTR) return died(p, err);
    }
}

int tpo_process_send(struct tpo_process *p, struct tpo_media_request *q, int fd, int64_t until_us, struct tpo_error *err)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {q, sizeof(*q)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    int64_t left_us = until_us - tpo_now_us();
    q->id = ++p->last_id;
    q->timeout_ms = (int32_t)(left_us > 0 ? left_us / 1000 : 0) + GRACE_MS;
    if (fd >= 0) {
        m.msg_control = control;
        m.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    int rc = wait_for(p, POLLOUT, until_us, err);
    if (rc != TPO_OK) return rc;
    return sendmsg(p->socket, &m, MSG_NOSIGNAL) == (ssize_t)sizeof(*q) ? TPO_OK : died(p, err);
}

int tpo_process_receive(struct tpo_process *p, struct tpo_media_reply *r, uint32_t id, int64_t until_us, struct tpo_error *err)
{
    int rc = wait_for(p, POLLIN, until_us, err);
    if (rc != TPO_OK) return rc;
    if (recv(p->socket, r, sizeof(*r), 0) != (ssize_t)sizeof(*r) || r->id != id) return died(p, err);
    r->reason[sizeof(r->reason) - 1] = r->message[sizeof(r->message) - 1] = '\0';
    return TPO_OK;
}
