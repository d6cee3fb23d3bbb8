/* files.h -- what several programs do with files, the same way. Any thread. */
#ifndef TPO_COMMON_FILES_H
#define TPO_COMMON_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "common/sha256.h"
#include "common/status.h"

/* Opens a regular file for reading, and nothing else: a fifo would keep its reader waiting, a device could have effects. NULL: errno tells why,
 * EINVAL for what is no file. */
FILE *tpo_open_file(const char *path);

/* Reads a regular file to its end. False: errno tells why. */
bool tpo_file_sha256(uint8_t digest[TPO_SHA256_BYTES], const char *path);

bool tpo_write_all(int fd, const void *data, size_t bytes); /* false: errno tells why, and some of it may be written */

/* Whether errno's value `why` of a write says that there is no room: on the disk, in a quota, or under a limit on files. */
bool tpo_disk_full(int why);
/* For a write that failed, errno telling why: RESOURCE_EXHAUSTED "disk_full", else FAILED_PRECONDITION "write". Returns the code. */
int tpo_fail_write(struct tpo_error *err, const char *path);

/* The path of `name` beside the running program; beside the working directory where /proc does not tell what runs. Cut at `size`. */
void tpo_beside(char *out, size_t size, const char *name);

#endif
