/* This file owns the run directory: starting, finding and stopping processes. */
#include "cli/mesh.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TOLD_MS 1000

extern char **environ;

static void path_of(char *out, const char *run_dir, const char *name, const char *suffix)
{
    snprintf(out, TPO_MESH_PATH, "%s/%s%s", run_dir, name, suffix);
}

/* When a process started, in clock ticks since boot; 0 when there is none. A zombie is none. Of a pid file it tells whether the pid is still
 * whom we started. (The command line can't: it is empty for a moment while a program is being started.) */
static unsigned long long started(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *in = fopen(path, "r");
    if (in == NULL) return 0;
    size_t n = fread(text, 1, sizeof(text) - 1, in);
    fclose(in);
    text[n] = '\0';
    /* The name in brackets may hold anything, so fields are counted from its end: the state is the 3rd, the start the 22nd. */
    char *at = strrchr(text, ')');
    if (at == NULL || at[1] == '\0' || at[2] == 'Z' || at[2] == 'X') return 0;
    at += 2;
    for (int field = 3; field < 22 && at != NULL; field++) {
        at = strchr(at, ' ');
        if (at != NULL) at++;
    }
    return at != NULL ? strtoull(at, NULL, 10) : 0;
}

static int write_pid(const char *run_dir, const char *name, pid_t pid)
{
    char path[TPO_MESH_PATH];
    path_of(path, run_dir, name, ".pid");
    FILE *out = fopen(path, "w");
    if (out == NULL) return TPO_FAILED_PRECONDITION;
    fprintf(out, "%d %llu\n", (int)pid, started(pid));
    return fclose(out) == 0 ? TPO_OK : TPO_FAILED_PRECONDITION;
}

int tpo_mesh_start(const char *run_dir, const char *name, char *const argv[], struct tpo_error *err)
{
    char log[TPO_MESH_PATH];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid;
    path_of(log, run_dir, name, ".log");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    /* make's jobserver and a pipe behind `make run | cat` must not stay open in a daemon. */
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    int rc = posix_spawnp(&pid, argv[0], &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (rc != 0) return tpo_fail(err, TPO_UNAVAILABLE, "program", "%s: %s", argv[0], strerror(rc));
    if (write_pid(run_dir, name, pid) == TPO_OK) return TPO_OK;
    kill(pid, SIGTERM);
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s cannot be written", run_dir);
}

pid_t tpo_mesh_pid(const char *run_dir, const char *name)
{
    char path[TPO_MESH_PATH];
    int pid = 0;
    unsigned long long start = 0;
    path_of(path, run_dir, name, ".pid");
    FILE *in = fopen(path, "r");
    if (in == NULL) return 0;
    int n = fscanf(in, "%d %llu", &pid, &start);
    fclose(in);
    return n == 2 && pid > 1 && start != 0 && started(pid) == start ? pid : 0;
}

static int rank(const char *name)
{
    return strncmp(name, "gateway", 7) == 0 ? 0 : strncmp(name, "redis", 5) == 0 ? 2 : 1;
}

void tpo_mesh_each(const char *run_dir, void (*on_name)(void *owner, const char *name), void *owner)
{
    struct dirent **entries;
    int n = scandir(run_dir, &entries, NULL, alphasort);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < n; i++) {
            char name[256];
            size_t length = strlen(entries[i]->d_name);
            if (length < 5 || strcmp(entries[i]->d_name + length - 4, ".pid") != 0) continue;
            snprintf(name, sizeof(name), "%.*s", (int)(length - 4), entries[i]->d_name);
            if (rank(name) == r) on_name(owner, name);
        }
    for (int i = 0; i < n; i++) free(entries[i]);
    if (n >= 0) free(entries);
}

static bool wait_gone(const char *run_dir, const char *name, int ms)
{
    for (int waited = 0; waited <= ms; waited += 20) {
        if (tpo_mesh_pid(run_dir, name) == 0) return true;
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
    return false;
}

bool tpo_mesh_stop(const char *run_dir, const char *name, int grace_ms)
{
    char path[TPO_MESH_PATH];
    pid_t pid = tpo_mesh_pid(run_dir, name);
    if (pid > 0) {
        kill(pid, SIGTERM);
        bool gone = wait_gone(run_dir, name, grace_ms < TOLD_MS ? grace_ms : TOLD_MS);
        if (!gone && grace_ms > TOLD_MS) {
            printf("  waiting for %s to finish its calls, at most %d s\n", name, (grace_ms + 999) / 1000);
            gone = wait_gone(run_dir, name, grace_ms - TOLD_MS);
        }
        if (!gone) {
            printf("  %s took too long and is killed\n", name);
            kill(pid, SIGKILL);
            wait_gone(run_dir, name, 2000);
        }
    }
    path_of(path, run_dir, name, ".pid");
    unlink(path);
    return pid > 0;
}

void tpo_mesh_print_log(const char *run_dir, const char *name, int lines)
{
    char path[TPO_MESH_PATH], text[8192];
    path_of(path, run_dir, name, ".log");
    FILE *in = fopen(path, "r");
    if (in == NULL) return;
    fseek(in, 0, SEEK_END);
    long size = ftell(in);
    fseek(in, size > (long)sizeof(text) - 1 ? size - (long)sizeof(text) + 1 : 0, SEEK_SET);
    size_t n = fread(text, 1, sizeof(text) - 1, in);
    fclose(in);
    text[n] = '\0';
    char *at = text + n;
    for (int seen = -1; at > text && seen < lines; at--) seen += at[-1] == '\n';
    fprintf(stderr, "--- %s\n%s", path, at);
}
