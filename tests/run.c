/* run.c -- starts one process per test case, each with a time limit and a directory of its own, some at a time, and counts.
 *
 *   run [--only TEXT,...] [--jobs N] [--seconds S] TEST_PROGRAM...
 *
 * A line per case as it ends; the output of failed cases; `N passed, N failed` last. The exit status is the verdict.
 *
 * A case fails, too, where a sanitizer has something to say of any process that it started: reports go into files of the case's directory
 * (log_path), since services write to logs that nobody reads.
 *
 * Cases get TPO_TEST_TIMES, how many times the usual limit theirs is, for the limits inside them.
 *
 * Whatever a case left running ends with it, also what has a session of its own (the services of `tpo up`): all that a case starts carries
 * TPO_TEST_CASE=its directory in its environment, or works there. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

#define MARK    "TPO_TEST_CASE"
#define REPORT  "sanitizer" /* .PID */
#define USUAL_S 300.0

struct job {
    const char *program;
    char name[128];
    pid_t pid;
    double started;
    char dir[64];
};

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

/* Whether one of the words, parted by commas, is in a or in b. */
static int named(const char *words, const char *a, const char *b)
{
    char word[256];
    for (const char *at = words; *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        snprintf(word, sizeof(word), "%.*s", (int)strcspn(at, ","), at);
        if (word[0] != '\0' && (strstr(a, word) != NULL || strstr(b, word) != NULL)) return 1;
    }
    return 0;
}

static int list_cases(const char *program, const char *only, struct job **jobs, int n)
{
    char command[PATH_MAX + 16], line[128];
    snprintf(command, sizeof(command), "%s --list", program);
    FILE *list = popen(command, "r");
    while (list != NULL && fgets(line, sizeof(line), list) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (only != NULL && !named(only, program, line)) continue;
        *jobs = realloc(*jobs, (size_t)(n + 1) * sizeof(**jobs));
        (*jobs)[n] = (struct job){.program = program};
        snprintf((*jobs)[n].name, sizeof((*jobs)[n].name), "%s", line);
        n++;
    }
    if (list == NULL || pclose(list) != 0) {
        fprintf(stderr, "run: %s --list failed\n", program);
        exit(2);
    }
    return n;
}

/* Adds to what the environment says already. */
static void set_report(const char *variable, const char *dir)
{
    const char *now = getenv(variable);
    char value[512];
    snprintf(value, sizeof(value), "%s%slog_path=%s/" REPORT, now != NULL ? now : "", now != NULL ? ":" : "", dir);
    setenv(variable, value, 1);
}

static void start(struct job *j)
{
    char path[PATH_MAX];
    if (realpath(j->program, path) == NULL) exit(2);
    snprintf(j->dir, sizeof(j->dir), "/tmp/tpo-test-XXXXXX");
    if (mkdtemp(j->dir) == NULL) exit(2);
    j->started = tpo_now_s();
    fflush(stdout);
    j->pid = fork();
    if (j->pid != 0) return;
    /* A group of its own, so that a time-out ends at once what the case started. */
    setpgid(0, 0);
    if (chdir(j->dir) != 0 || setenv(MARK, j->dir, 1) != 0) _exit(2);
    set_report("ASAN_OPTIONS", j->dir), set_report("UBSAN_OPTIONS", j->dir), set_report("TSAN_OPTIONS", j->dir);
    int out = open("output.log", O_CREAT | O_WRONLY | O_TRUNC, 0644);
    dup2(out, 1);
    dup2(out, 2);
    execl(path, path, j->name, (char *)NULL);
    _exit(127);
}

static void print_log(const struct job *j, const char *name)
{
    char path[PATH_MAX], line[4096];
    snprintf(path, sizeof(path), "%s/%s", j->dir, name);
    FILE *log = fopen(path, "r");
    while (log != NULL && fgets(line, sizeof(line), log) != NULL) printf("    %s", line);
    if (log != NULL) fclose(log);
}

/* Whether process `pid` began with MARK=dir, or works below dir: redis-server writes its title over its environment. What belongs to others cannot be
 * read, hence is not ours. */
static int belongs(long pid, const char *dir)
{
    char path[64], *line = NULL, mark[128], cwd[PATH_MAX] = "";
    size_t room = 0, length = strlen(dir);
    snprintf(path, sizeof(path), "/proc/%ld/cwd", pid);
    if (readlink(path, cwd, sizeof(cwd) - 1) > 0 && strncmp(cwd, dir, length) == 0 && strchr("/ ", cwd[length]) != NULL) return 1;
    int found = 0;
    snprintf(path, sizeof(path), "/proc/%ld/environ", pid);
    snprintf(mark, sizeof(mark), "%s=%s", MARK, dir);
    FILE *f = fopen(path, "r");
    while (f != NULL && !found && getdelim(&line, &room, '\0', f) > 0) found = strcmp(line, mark) == 0;
    if (f != NULL) fclose(f);
    free(line);
    return found;
}

/* Kills what the case left behind; how many there were. */
static int kill_left(const struct job *j)
{
    int n = 0;
    DIR *all = opendir("/proc");
    for (struct dirent *e; all != NULL && (e = readdir(all)) != NULL;) {
        const long pid = atol(e->d_name);
        if (pid > 1 && pid != (long)getpid() && belongs(pid, j->dir)) n += kill((pid_t)pid, SIGKILL) == 0;
    }
    if (all != NULL) closedir(all);
    return n;
}

/* How many processes a sanitizer has reported of; prints what it said, or only counts. */
static int reports(const struct job *j, int print)
{
    int n = 0;
    DIR *all = opendir(j->dir);
    for (struct dirent *e; all != NULL && (e = readdir(all)) != NULL;) {
        if (strncmp(e->d_name, REPORT ".", sizeof(REPORT)) != 0) continue;
        if (print) print_log(j, e->d_name);
        n++;
    }
    if (all != NULL) closedir(all);
    return n;
}

static int finish(struct job *j, int status, int timed_out)
{
    int ok = !timed_out && WIFEXITED(status) && WEXITSTATUS(status) == 0 && reports(j, 0) == 0;
    const char *base = strrchr(j->program, '/');
    printf("%-6s %s %s (%.2f s)%s\n", ok ? "ok" : "FAILED", base != NULL ? base + 1 : j->program, j->name, tpo_now_s() - j->started,
           timed_out ? " time limit" : "");
    if (!ok) print_log(j, "output.log");
    if (!ok) reports(j, 1);
    kill(-j->pid, SIGKILL);
    for (int rounds = 0; rounds < 10 && kill_left(j) > 0; rounds++)
        usleep(10000); /* again: one may have started another meanwhile */
    nftw(j->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return ok;
}

int main(int argc, char **argv)
{
    const char *only = NULL;
    int n_parallel = (int)sysconf(_SC_NPROCESSORS_ONLN), n = 0, i = 1;
    double limit_s = USUAL_S;
    struct job *jobs = NULL;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--only") == 0) only = argv[i + 1];
        if (strcmp(argv[i], "--jobs") == 0) n_parallel = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--seconds") == 0) limit_s = atof(argv[i + 1]);
    }
    char cwd[PATH_MAX], build[PATH_MAX], times[32];
    snprintf(times, sizeof(times), "%g", limit_s / USUAL_S);
    setenv("TPO_TEST_TIMES", times, 1);
    if (getcwd(cwd, sizeof(cwd)) == NULL) return 2;
    setenv("TPO_SOURCE", cwd, 1);
    if (realpath(getenv("TPO_BUILD") != NULL ? getenv("TPO_BUILD") : "build", build) != NULL) setenv("TPO_BUILD", build, 1);
    for (; i < argc; i++) n = list_cases(argv[i], only, &jobs, n);

    int next = 0, running = 0, passed = 0, failed = 0;
    while (next < n || running > 0) {
        while (running < n_parallel && next < n) start(&jobs[next++]), running++;
        usleep(5000);
        for (int k = 0; k < next; k++) {
            int status = 0, timed_out = 0;
            if (jobs[k].pid == 0) continue;
            if (waitpid(jobs[k].pid, &status, WNOHANG) == 0) {
                if (tpo_now_s() - jobs[k].started < limit_s) continue;
                kill(-jobs[k].pid, SIGKILL);
                waitpid(jobs[k].pid, &status, 0);
                timed_out = 1;
            }
            if (finish(&jobs[k], status, timed_out))
                passed++;
            else
                failed++;
            jobs[k].pid = 0;
            running--;
        }
    }
    free(jobs);
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}
