/* tpo-media -- decodes strangers' files for one client, behind a system-call filter (wire.h is the protocol).
 *
 * Debian's FFmpeg is under the GPL, so this program alone links it. It holds nothing worth stealing: a socket, a ring, the file at hand. */
#include <libavutil/log.h>
#include <libavutil/mem.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/media/wire.h"
#include "common/media/worker/clip.h"
#include "common/media/worker/sandbox.h"
#include "common/status.h"

struct worker {
    uint8_t *ring;
    size_t ring_bytes;
    struct tpo_clip *clip;
};

/* FFmpeg's own callback asks the terminal for its size, which the filter answers with death. */
static void on_log(void *avcl, int level, const char *format, va_list args)
{
    (void)avcl, (void)level, (void)format, (void)args;
}

/* One packet and the descriptor it may carry (-1: none). 0 at the end of the socket or when it is not ours. */
static int receive(struct tpo_media_request *q, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {q, sizeof(*q)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(TPO_MEDIA_SOCKET, &m, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *fd = -1;
    if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(c), sizeof(*fd));
    return n == (ssize_t)sizeof(*q);
}

static int answer(const struct tpo_media_reply *r)
{
    return send(TPO_MEDIA_SOCKET, r, sizeof(*r), MSG_NOSIGNAL) == (ssize_t)sizeof(*r);
}

/* A client that died cannot kill us, and a hostile file may keep a decoder busy for hours. */
static void alarm_ms(int ms)
{
    struct itimerval t = {.it_value = {ms / 1000, ms % 1000 * 1000}};
    setitimer(ITIMER_REAL, &t, NULL);
}

static void serve(struct worker *w, const struct tpo_media_request *q, int fd, struct tpo_media_reply *r)
{
    if (q->kind == TPO_MEDIA_FRAME && w->clip != NULL && q->offset < w->ring_bytes) {
        tpo_clip_frame(w->clip, q->index, w->ring + q->offset, w->ring_bytes - q->offset, r);
        return;
    }
    tpo_clip_close(w->clip);
    w->clip = NULL;
    if (q->kind == TPO_MEDIA_OPEN && fd >= 0)
        tpo_clip_open(&w->clip, fd, q->max_pixels, q->max_frames, r);
    else if (q->kind != TPO_MEDIA_CLOSE)
        tpo_clip_fail(r, TPO_INTERNAL, "media_protocol", "a request that cannot be");
}

int main(void)
{
    struct worker w = {0};
    struct stat st;
    if (fstat(TPO_MEDIA_RING, &st) != 0 || st.st_size <= 0) {
        fprintf(stderr, "tpo-media decodes files for the other programs of tpomesh, which start it; it has no use by hand.\n");
        return 2;
    }
    w.ring_bytes = (size_t)st.st_size;
    w.ring = mmap(NULL, w.ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, TPO_MEDIA_RING, 0);
    if (w.ring == MAP_FAILED) return 1;
    close(TPO_MEDIA_RING);
    av_log_set_callback(on_log);
    if (tpo_sandbox_enter(w.ring_bytes) != 0) return 1;
    struct tpo_media_reply hello = {0};
    if (!answer(&hello)) return 1;
    for (;;) {
        struct tpo_media_request q;
        int fd;
        if (!receive(&q, &fd)) break;
        struct tpo_media_reply r = {.id = q.id};
        alarm_ms(q.timeout_ms);
        serve(&w, &q, fd, &r);
        alarm_ms(0);
        if (!answer(&r)) break;
    }
    tpo_clip_close(w.clip);
    _exit(0); /* no destructors of a hundred libraries behind the filter */
}
