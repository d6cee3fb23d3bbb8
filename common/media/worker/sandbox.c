/* This file owns the worker's resource limits and its system-call filter. */
#include "common/media/worker/sandbox.h"

#include <errno.h>
#include <seccomp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#if defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define MEMORY_BYTES ((rlim_t)1 << 30) /* code and heap; the ring comes on top */

static int compare_nothing(const void *a, const void *b)
{
    (void)a, (void)b;
    return 0;
}

/* glibc's first qsort over more than a KiB asks sysinfo how much memory there is, and remembers. */
static void ask_ahead(void)
{
    static char scratch[4096];
    qsort(scratch, sizeof(scratch) / 8, 8, compare_nothing);
}

static int limit(int what, rlim_t value)
{
    struct rlimit r = {value, value};
    return setrlimit(what, &r);
}

static int limit_all(size_t ring_bytes)
{
    /* A sanitizer's shadow takes terabytes of addresses and its report a file; the filter below stays. */
    if (!SANITIZED && limit(RLIMIT_AS, MEMORY_BYTES + (rlim_t)ring_bytes) != 0) return -1;
    if (!SANITIZED && limit(RLIMIT_FSIZE, 0) != 0) return -1;
    if (limit(RLIMIT_CORE, 0) != 0 || limit(RLIMIT_NPROC, 0) != 0) return -1;
    return limit(RLIMIT_NOFILE, 16);
}

int tpo_sandbox_enter(size_t ring_bytes)
{
    static const int allowed[] = {
        SCMP_SYS(pread64),
        SCMP_SYS(lseek),
        SCMP_SYS(recvmsg),
        SCMP_SYS(sendto),
        SCMP_SYS(close),
        SCMP_SYS(brk),
        SCMP_SYS(munmap),
        SCMP_SYS(mremap),
        SCMP_SYS(madvise),
        SCMP_SYS(futex),
        SCMP_SYS(setitimer),
        SCMP_SYS(clock_gettime),
        SCMP_SYS(exit_group),
#if SANITIZED
        SCMP_SYS(write),
        SCMP_SYS(getpid),
        SCMP_SYS(gettid),
        SCMP_SYS(sched_yield),
        SCMP_SYS(sigaltstack),
        SCMP_SYS(rt_sigprocmask),
        SCMP_SYS(mprotect),
        SCMP_SYS(rt_sigaction),
        SCMP_SYS(readlink),
        SCMP_SYS(openat),
        SCMP_SYS(read),
        SCMP_SYS(prctl),
#endif
    };
    ask_ahead();
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (filter == NULL || limit_all(ring_bytes) != 0) return -1;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof(allowed) / sizeof(allowed[0]); i++) {
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
        if (rc == -EDOM) rc = 0; /* this machine has no such call */
    }
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (rc == 0) rc = seccomp_load(filter);
    seccomp_release(filter);
    return rc == 0 ? 0 : -1;
}
