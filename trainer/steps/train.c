/* This file owns the command line of `tpo train`. */
#include "trainer/steps/train.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/settings.h"
#include "services/host/fault.h"
#include "trainer/steps/run_log.h"

static struct {
    const char *out, *model, *data, *mesh, *device, *fault;
    int64_t threads, checkpoint_every, log_every, publish_every, stop_after, lease_ms, call_ms, wait_ms;
    bool status, quiet;
} set;

static const struct tpo_setting rows[] = {
    {"out", TPO_SET_TEXT, &set.out, "run", .what = "DIR", .help = "checkpoints and models; a run that was stopped goes on here"},
    {"model", TPO_SET_TEXT, &set.model, NULL, .what = "DIR",
     .help = "begin with this model folder instead of the recipe's: its weights, or random ones where it holds none"},
    {"data", TPO_SET_TEXT, &set.data, NULL, .what = "DIR",
     .help = "where a recipe's relative paths of annotations and media start; nothing: the recipe's folder"},
    {"mesh", TPO_SET_TEXT, &set.mesh, NULL, .what = "WHERE",
     .help = "train the services of a mesh: encoder=ADDR[,ADDR],router=ADDR,region=ADDR, or ADDR,... (each is asked what it is), "
             "or the run directory of `tpo up "
             "--train`; nothing: in this process"},
    {"device", TPO_SET_TEXT, &set.device, "auto", .choices = "cpu|cuda|auto", .help = "where to compute, without --mesh"},
    {"threads", TPO_SET_INT, &set.threads, "2", .min = 1, .max = 256, .what = "N", .help = "of the compute team, without --mesh"},
    {"checkpoint-every", TPO_SET_INT, &set.checkpoint_every, "500", .min = 0, .max = 1 << 30, .what = "N",
     .help = "steps; 0: at the end of a stage only"},
    {"log-every", TPO_SET_INT, &set.log_every, "1", .min = 1, .max = 1 << 30, .what = "N", .help = "steps per printed line"},
    {"publish-every", TPO_SET_INT, &set.publish_every, "0", .min = 0, .max = 1 << 30, .what = "N",
     .help = "steps: what is learned goes into the mesh that serves, and at the end of each stage; 0: never"},
    {"stop-after", TPO_SET_INT, &set.stop_after, "0", .min = 0, .max = TPO_STAGES_MAX, .what = "N", .help = "stages; 0: all"},
    {"status", TPO_SET_BOOL, &set.status, "no", .help = "print what the run in --out is doing, and leave it alone"},
    {"wait", TPO_SET_MS, &set.wait_ms, "10m", .min = 0, .max = 86400000,
     .help = "how long a service that comes late or went away is waited for"},
    {"lease", TPO_SET_MS, &set.lease_ms, "60s", .min = 100, .max = 3600000,
     .help = "how long services keep other trainers out after the last call"},
    {"call-timeout", TPO_SET_MS, &set.call_ms, "5m", .min = 100, .max = 86400000, .help = "deadline of each call"},
    {"quiet", TPO_SET_BOOL, &set.quiet, "no", .help = "no progress bar"},
    {"fault", TPO_SET_TEXT, &set.fault, NULL, .what = "POINT[:N[:stop]]",
     .help = "for tests: kill or stop this process when it reaches a named point of a training step"},
};

int tpo_train_main(int argc, char **argv)
{
    static const struct tpo_settings table = {
        .program = "tpo train",
        .arguments = "RECIPE.yaml",
        .about = "Trains a model by a recipe: each stage goes on from the newest sound checkpoint in its folder, and ends in a "
                 "model folder, OUT/N-STAGE/model. "
                 "Over a mesh the services that serve are trained, all of them or none of them at each step.",
        .examples = "tpo train trainer/recipes/joint.yaml --out run\n"
                    "tpo up --train && tpo train trainer/recipes/joint.yaml --mesh build/run\n"
                    "tpo train --status --out run",
        .rows = rows,
        .n_rows = sizeof(rows) / sizeof(rows[0])};
    struct tpo_error err = {0};
    int rc = tpo_settings_read(&table, &argc, argv, &err);
    if (rc == TPO_CANCELLED) return 0;
    if (rc == TPO_OK) rc = tpo_fault_set(set.fault, &err);
    if (rc == TPO_OK && set.status && argc > 1)
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "arguments", "--status takes no recipe: it tells of the run in --out");
    if (rc == TPO_OK && !set.status && argc != 2)
        rc = tpo_fail(&err, TPO_INVALID_ARGUMENT, "arguments", "one RECIPE.yaml is needed (see --help)");
    if (rc != TPO_OK) {
        fprintf(stderr, "tpo train: %s\n", err.message);
        return 2;
    }
    if (set.status) {
        rc = tpo_run_log_print(set.out, &err);
    } else {
        /* A file that may not grow is a full disk, an error like others. */
        signal(SIGXFSZ, SIG_IGN);
        struct tpo_stream *stream = NULL;
        const bool remote = set.mesh[0] != '\0';
        rc = tpo_stream_open(&stream, remote ? "cpu" : set.device, (int)set.threads, &err);
        const bool team = rc == TPO_OK && strcmp(tpo_stream_device_name(stream), "cpu") == 0;
        const struct tpo_train_options o = {.recipe = argv[1],
                                            .out = set.out,
                                            .model = set.model,
                                            .data = set.data,
                                            .mesh = set.mesh,
                                            .stream = stream,
                                            .threads = team ? (int)set.threads : 0,
                                            .checkpoint_every = (int)set.checkpoint_every,
                                            .log_every = (int)set.log_every,
                                            .publish_every = (int)set.publish_every,
                                            .stop_after = (int)set.stop_after,
                                            .lease_ms = (int)set.lease_ms,
                                            .call_ms = (int)set.call_ms,
                                            .wait_ms = (int)set.wait_ms,
                                            .quiet = set.quiet};
        if (rc == TPO_OK) rc = tpo_train(&o, &err);
        tpo_stream_close(stream);
    }
    if (rc == TPO_OK) return 0;
    fprintf(stderr, "tpo train: %s: %s\n", tpo_status_name(err.code), err.message);
    return 1;
}
