/* mesh.h -- the processes of a mesh on this machine, by the files in its run directory.
 *
 * RUN/NAME.pid and RUN/NAME.log belong to one process each ("redis", "encoder-0", "gateway"); RUN/http and RUN/grpc hold the gateway's addresses,
 * RUN/asked what was asked for (asked.h). */
#ifndef TPO_CLI_MESH_H
#define TPO_CLI_MESH_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/status.h"

#define TPO_MESH_PATH 1024

/* Starts argv in a session of its own with stdin from nowhere, output in RUN/NAME.log, and no other descriptor of ours; writes RUN/NAME.pid. */
int tpo_mesh_start(const char *run_dir, const char *name, char *const argv[], struct tpo_error *err);

/* The process that RUN/NAME.pid tells, when it is alive and still that program; else 0. */
pid_t tpo_mesh_pid(const char *run_dir, const char *name);

/* Calls on_name for every NAME with a pid file, in the order gateway, services, redis (the order to stop them in). */
void tpo_mesh_each(const char *run_dir, void (*on_name)(void *owner, const char *name), void *owner);

/* SIGTERM, up to grace_ms of waiting, SIGKILL. False when nothing was running. The pid file goes. A wait of over a second is told on stdout, so that
 * nobody takes it for a hang. */
bool tpo_mesh_stop(const char *run_dir, const char *name, int grace_ms);

/* The last lines of RUN/NAME.log, on stderr, for a person who wonders why it did not start. */
void tpo_mesh_print_log(const char *run_dir, const char *name, int lines);

#endif
