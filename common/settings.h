/* settings.h -- what a person may set: one table per program, from which come flags, environment, --help and the table printed at start.
 *
 *   static struct { const char *listen; int64_t queue; bool train; } set;
 *   static const struct tpo_setting rows[] = {
 *       {"listen", TPO_SET_TEXT, &set.listen, "127.0.0.1:8430", .what = "ADDRESS", .help = "where to listen; port 0 takes a free one"},
 *       {"queue", TPO_SET_INT, &set.queue, "64", .min = 1, .max = 65536, .help = "requests that may wait; one more is refused at once"},
 *       {"train", TPO_SET_BOOL, &set.train, "no", .help = "offer the Learner service"},
 *   };
 *
 * A flag beats the environment, which beats the default: `--queue 8`, `--queue=8`, TPO_QUEUE=8 (the name in capitals, '-' as '_'). A bool takes
 * `--train`, `--no-train`, `--train=no`. There is no configuration file. Text stays in argv, the environment or the table: never freed. */
#ifndef TPO_COMMON_SETTINGS_H
#define TPO_COMMON_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/status.h"

enum tpo_setting_type {
    TPO_SET_TEXT,  /* const char * */
    TPO_SET_INT,   /* int64_t, min..max */
    TPO_SET_REAL,  /* double, min..max */
    TPO_SET_BOOL,  /* bool: yes/no, true/false, on/off, 1/0 */
    TPO_SET_BYTES, /* int64_t, min..max; takes K, M, G (powers of 1024) */
    TPO_SET_MS,    /* int64_t milliseconds, min..max; takes ms, s, m, h; a bare number is ms */
    TPO_SET_LIST,  /* struct tpo_setting_list: the flag may be repeated; in the environment items are parted by ';' */
};

#define TPO_SETTING_LIST_MAX 32
struct tpo_setting_list {
    int n;
    const char *items[TPO_SETTING_LIST_MAX];
};

struct tpo_setting {
    const char *name; /* "max-message-bytes" */
    enum tpo_setting_type type;
    void *value;         /* where it goes; see the type */
    const char *preset;  /* the default, as a person would write it; NULL: empty, 0, no */
    double min, max;     /* both 0: unbounded */
    const char *choices; /* text only: "f32|bf16" */
    const char *what;    /* what the value is called in --help: "DIR"; NULL: by type */
    const char *help;    /* one sentence; may be long, it is wrapped */
    bool secret;         /* printed as *** */
};

struct tpo_settings {
    const char *program;                   /* "tpo-router", "tpo ask" */
    const char *arguments;                 /* what stands beside flags: "FILE \"SENTENCE\""; NULL: nothing may */
    const char *about;                     /* what the program does, why one would start it; --help's first paragraph */
    const char *examples;                  /* lines of --help, indented by us; NULL: none */
    const struct tpo_setting *rows, *more; /* two tables, so that a service adds to the host's */
    int n_rows, n_more;
};

/* Fills every value. On TPO_OK argv[1] .. argv[*argc - 1] hold the arguments that are no flags (all after a `--`). TPO_CANCELLED: --help was
 * asked for and printed on stdout, exit 0. TPO_INVALID_ARGUMENT: err->message is the sentence to print, "--queue 0: must be 1 .. 65536" (an
 * unknown flag names its nearest neighbour). */
int tpo_settings_read(const struct tpo_settings *s, int *argc, char **argv, struct tpo_error *err);
void tpo_settings_help(const struct tpo_settings *s, FILE *out);
/* One log line per setting, event=setting, with where it came from. */
void tpo_settings_log(const struct tpo_settings *s);

#endif
