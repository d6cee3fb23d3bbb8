/* process.h -- one tpo-media process, its socket and its ring. Private to common/media; media.h is what others use.
 *
 * One thread at a time owns a process. A call that fails for the process's sake (died, timed out, spoke nonsense) has killed it:
 * `pid` is 0 then and tpo_process_start makes a new one. */
#ifndef TPO_COMMON_MEDIA_PROCESS_H
#define TPO_COMMON_MEDIA_PROCESS_H

#include <stddef.h>
#include <sys/types.h>

#include "common/media/wire.h"
#include "common/status.h"

struct tpo_process {
    pid_t pid; /* 0: none */
    int socket;
    uint8_t *ring;
    size_t ring_bytes;
    uint32_t last_id;
};

int tpo_process_start(struct tpo_process *p, const char *program, size_t ring_bytes, struct tpo_error *err);
void tpo_process_kill(struct tpo_process *p); /* also for one that is not running */

/* `fd` goes along where it is not -1. until_us is a time of tpo_now_us. TPO_OK, or what became of the process. */
int tpo_process_send(struct tpo_process *p, struct tpo_media_request *q, int fd, int64_t until_us, struct tpo_error *err);
/* The next reply, which must be to request `id`; a reply that carries an error is TPO_OK here. */
int tpo_process_receive(struct tpo_process *p, struct tpo_media_reply *r, uint32_t id, int64_t until_us, struct tpo_error *err);

#endif
