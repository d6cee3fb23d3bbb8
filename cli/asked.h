/* asked.h -- what a mesh was asked to be: RUN/asked, a line NAME=VALUE for each setting of `tpo up` that makes a mesh another one. It is written
 * before anything starts; `tpo up` looks there when a mesh runs already, `tpo down` for how long it may drain. */
#ifndef TPO_CLI_ASKED_H
#define TPO_CLI_ASKED_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

#define TPO_ASKED_MAX   8
#define TPO_ASKED_VALUE 1024

struct tpo_asked {
    int n;
    struct {
        const char *name; /* of the flag; a constant */
        char value[TPO_ASKED_VALUE];
    } rows[TPO_ASKED_MAX];
};

void tpo_asked_add(struct tpo_asked *a, const char *name, const char *value);
int tpo_asked_write(const struct tpo_asked *a, const char *run_dir, struct tpo_error *err); /* FAILED_PRECONDITION "run_dir" */
/* The value of one; false where there is none. */
bool tpo_asked_read(const char *run_dir, const char *name, char *value, size_t size);
/* Adds to text, of what the file says otherwise: "--train is no, not yes; ". What it does not say is otherwise, too. */
void tpo_asked_compare(const struct tpo_asked *a, const char *run_dir, char *text, size_t size);
void tpo_asked_differs(const char *name, const char *is, const char *wanted, char *text, size_t size); /* one of these */

#endif
