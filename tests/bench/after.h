/* after.h -- shell commands that run when a bench has ended, whatever ended it: return, exit, a signal.
 *
 *   after("rm -rf %s", dir);   after("kill -9 %d", pid);        the last named runs first, in the directory of the first call */
#ifndef TPO_TESTS_BENCH_AFTER_H
#define TPO_TESTS_BENCH_AFTER_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *after_script;

static inline void after_wait(void)
{
    pclose(after_script);
}

/* A shell reads the commands until its input ends, and it ends with this process. */
__attribute__((format(printf, 1, 2))) static inline void after(const char *format, ...)
{
    va_list list;
    if (after_script == NULL) {
        after_script = popen("trap '' HUP INT TERM; eval \"$(tac)\" >/dev/null 2>&1", "we");
        if (after_script == NULL || atexit(after_wait) != 0) {
            perror("after.h: no shell");
            exit(1);
        }
    }
    va_start(list, format);
    vfprintf(after_script, format, list);
    va_end(list);
    fputc('\n', after_script);
    fflush(after_script);
}

#endif
