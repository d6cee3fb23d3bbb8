/* This file owns checkpoints: shards first, the manifest last. */
#include "trainer/steps/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "services/host/fault.h"
#include "trainer/model_folder.h"
#include "trainer/steps/held.h"
#include "trainer/steps/shard.h"

/* --- files --------------------------------------------------------------------------------------------------------------------------- */

static int fail_file(struct tpo_error *err, const char *path)
{
    const bool full = tpo_disk_full(errno);
    return tpo_fail(err, full ? TPO_RESOURCE_EXHAUSTED : TPO_FAILED_PRECONDITION, full ? "disk_full" : "checkpoint", "%.180s: %s",
                    path, strerror(errno));
}

/* Removes a folder of plain files. */
static void folder_remove(const char *path)
{
    char file[4600];
    DIR *d = opendir(path);
    if (d == NULL) return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
        unlink(file);
    }
    closedir(d);
    rmdir(path);
}

static int file_hash(const char *path, char hex[TPO_SHA256_HEX], struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    if (!tpo_file_sha256(digest, path)) return fail_file(err, path);
    tpo_sha256_hex(hex, digest);
    return TPO_OK;
}

/* --- writing ------------------------------------------------------------------------------------------------------------------------- */

static json_t *threads_of(const struct tpo_checkpoint *c)
{
    bool equal = true;
    for (int p = 1; p < TPO_PARTS; p++) equal = equal && c->threads[p] == c->threads[0];
    if (equal) return json_integer(c->threads[0]);
    json_t *each = json_object();
    for (int p = 0; p < TPO_PARTS; p++) json_object_set_new(each, tpo_part_names[p], json_integer(c->threads[p]));
    return each;
}

static json_t *devices_of(const struct tpo_checkpoint *c)
{
    json_t *each = json_object();
    for (int p = 0; p < TPO_PARTS; p++)
        if (c->devices[p][0] != '\0') json_object_set_new(each, tpo_part_names[p], json_string(c->devices[p]));
    return each;
}

/* The generator is counter-based: its state is its seed and the step. */
static json_t *generator_of(const struct tpo_checkpoint *c, int step)
{
    return json_pack("{s:I s:i}", "seed", (json_int_t)c->recipe->stages[c->stage].plan.seed, "counter", step);
}

/* The data's cursor: how many samples each entry has given by then. */
static json_t *cursor_of(const struct tpo_checkpoint *c, int step)
{
    const struct tpo_recipe_stage *s = &c->recipe->stages[c->stage];
    uint64_t drawn[TPO_DATA_MAX];
    json_t *each = json_array();
    tpo_recipe_drawn(c->recipe, c->stage, step, drawn);
    for (int i = 0; i < s->n_data; i++)
        json_array_append_new(each, json_integer((json_int_t)(drawn[i] * (uint64_t)s->data[i].samples)));
    return each;
}

static int manifest_write(const char *dir, const struct tpo_checkpoint *c, json_t *files, struct tpo_error *err)
{
    char path[4300];
    json_t *j = json_pack("{s:i s:I s:I s:o s:o s:o s:o s:O}", "step", c->step, "version", (json_int_t)c->version, "aborted",
                          (json_int_t)c->aborted, "generator", generator_of(c, c->step), "threads", threads_of(c), "devices",
                          devices_of(c), "next_sample", cursor_of(c, c->step), "files", files);
    tpo_identity_put(j, &c->of);
    char *text = json_dumps(j, JSON_INDENT(2));
    snprintf(path, sizeof(path), "%s/manifest.json", dir);
    int rc = text != NULL ? tpo_small_file(path, text, err) : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a manifest");
    free(text);
    json_decref(j);
    return rc;
}

/* Names in a folder are on the disk only once the folder is. */
static int folder_sync(const char *path, struct tpo_error *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool ok = fd >= 0 && fsync(fd) == 0;
    int rc = ok ? TPO_OK : fail_file(err, path);
    if (fd >= 0) close(fd);
    return rc;
}

/* Removes every checkpoint before the two newest up to `step`. Those after it are another run's, or were refused: they are left alone. */
static void old_ones_remove(const char *stage_dir, int step)
{
    struct dirent **found;
    const int n = scandir(stage_dir, &found, NULL, alphasort);
    int kept = 0;
    for (int i = n - 1; i >= 0; i--) {
        char path[4600];
        snprintf(path, sizeof(path), "%s/%s", stage_dir, found[i]->d_name);
        if (strncmp(found[i]->d_name, "step-", 5) == 0 && atoi(found[i]->d_name + 5) <= step && ++kept > 2) folder_remove(path);
        free(found[i]);
    }
    if (n >= 0) free(found);
}

struct writing {
    const char *dir;
    char hash[TPO_PARTS][TPO_SHA256_HEX];
};

static int shard_of_part(struct tpo_crew *t, int part, int replica, void *arg, struct tpo_error *err)
{
    struct writing *w = arg;
    char path[4300];
    if (replica > 0 || t->trainable[part] == 0) return TPO_OK;
    snprintf(path, sizeof(path), "%s/%s.safetensors", w->dir, tpo_part_names[part]);
    int rc = tpo_shard_write(path, &t->replicas[part][0].learner, err);
    if (rc == TPO_OK) rc = file_hash(path, w->hash[part], err);
    if (rc == TPO_OK) tpo_fault_reach(TPO_FAULT_SHARD_WRITTEN);
    return rc;
}

static int all_write(const char *dir, struct tpo_crew *t, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    struct writing w = {.dir = dir};
    int rc = tpo_crew_each(t, shard_of_part, &w, err);
    if (rc != TPO_OK) return rc;
    json_t *files = json_object();
    for (int p = 0; p < TPO_PARTS; p++)
        if (w.hash[p][0] != '\0') json_object_set_new(files, tpo_part_names[p], json_string(w.hash[p]));
    tpo_fault_reach(TPO_FAULT_BEFORE_MANIFEST);
    rc = manifest_write(dir, c, files, err);
    json_decref(files);
    return rc == TPO_OK ? folder_sync(dir, err) : rc;
}

int tpo_checkpoint_write(const char *stage_dir, struct tpo_crew *t, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    char part[4096], final[4096];
    snprintf(part, sizeof(part), "%.4000s/part", stage_dir);
    snprintf(final, sizeof(final), "%.4000s/step-%08d", stage_dir, c->step);
    folder_remove(part);
    int rc = mkdir(part, 0755) == 0 ? all_write(part, t, c, err) : fail_file(err, part);
    if (rc != TPO_OK) {
        folder_remove(part);
        return rc;
    }
    /* One of the same step is not gone before this one stands in its place. */
    const bool swapped = renameat2(AT_FDCWD, part, AT_FDCWD, final, RENAME_EXCHANGE) == 0;
    folder_remove(swapped ? part : final);
    if (!swapped && rename(part, final) != 0) return fail_file(err, final);
    rc = folder_sync(stage_dir, err);
    if (rc != TPO_OK) return rc;
    tpo_fault_reach(TPO_FAULT_AFTER_MANIFEST);
    old_ones_remove(stage_dir, c->step);
    return TPO_OK;
}

/* --- reading ------------------------------------------------------------------------------------------------------------------------- */

static int number_of(const json_t *j, const char *key)
{
    return (int)json_integer_value(json_object_get(j, key));
}

static bool shards_sound(const char *dir, const json_t *manifest)
{
    char path[4800], hex[TPO_SHA256_HEX];
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(manifest, "files"), name, value)
    {
        snprintf(path, sizeof(path), "%s/%.32s.safetensors", dir, name);
        const char *expected = json_string_value(value);
        if (expected == NULL || file_hash(path, hex, NULL) != TPO_OK || strcmp(hex, expected) != 0) return false;
    }
    return true;
}

/* NULL unless the manifest is there and of this run. */
static json_t *manifest_read(const char *dir, const char *run)
{
    char path[4800];
    snprintf(path, sizeof(path), "%s/manifest.json", dir);
    json_t *j = json_load_file(path, 0, NULL);
    const char *named = json_string_value(json_object_get(j, "run"));
    if (named != NULL && strcmp(named, run) == 0) return j;
    json_decref(j);
    return NULL;
}

/* The newest checkpoint of this run and where it lies, NULL where there is none; `whole`: every shard of it has its hash, and what is passed over
 * is told. */
static json_t *newest(const char *stage_dir, const char *run, bool whole, char path[4600])
{
    struct dirent **found;
    char quoted[4700];
    json_t *j = NULL;
    const int n = scandir(stage_dir, &found, NULL, alphasort);
    for (int i = n - 1; i >= 0; i--) {
        if (j == NULL && strncmp(found[i]->d_name, "step-", 5) == 0) {
            snprintf(path, 4600, "%s/%s", stage_dir, found[i]->d_name);
            j = manifest_read(path, run);
            if (whole && j != NULL && !shards_sound(path, j)) {
                json_decref(j);
                j = NULL;
            }
            if (whole && j == NULL)
                tpo_log(TPO_LOG_WARN, "checkpoint_refused", "path=%s", tpo_log_quote(quoted, sizeof(quoted), path));
        }
        free(found[i]);
    }
    if (n >= 0) free(found);
    return j;
}

/* What only Begin tells of the services: who learns, with what team. */
static int crew_check(const char *dir, const json_t *j, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    const json_t *threads = json_object_get(j, "threads");
    for (int p = 0; p < TPO_PARTS; p++) {
        const int then = json_is_object(threads) ? number_of(threads, tpo_part_names[p]) : (int)json_integer_value(threads);
        if (then != c->threads[p])
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "checkpoint",
                            "%.80s was made with a team of %d threads for %s, which has %d now: go on with as many", dir, then,
                            tpo_part_names[p], c->threads[p]);
        const char *device = json_string_value(json_object_get(json_object_get(j, "devices"), tpo_part_names[p]));
        if (device != NULL && c->devices[p][0] != '\0' && strcmp(device, c->devices[p]) != 0)
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "checkpoint",
                            "%.80s was made with %s on %.15s, which is on %s now: go on with the same device", dir,
                            tpo_part_names[p], device, c->devices[p]);
        if (c->has[p] != c->trains[p])
            return tpo_fail(err, TPO_FAILED_PRECONDITION, "checkpoint", "%.80s %s a shard of %s, which %s in this stage", dir,
                            c->has[p] ? "has" : "lacks", tpo_part_names[p], c->trains[p] ? "learns" : "does not learn");
    }
    return TPO_OK;
}

static bool equal_take(json_t *expected, const json_t *said)
{
    const bool equal = json_equal(expected, said) == 1;
    json_decref(expected);
    return equal;
}

/* What is of this stage was drawn as this build draws: else what follows it would not be what was to follow. */
static int manifest_check(const char *dir, const json_t *j, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    const int rc = tpo_identity_check(&c->of, j, dir, "checkpoint", err), step = number_of(j, "step");
    if (rc != TPO_OK) return rc;
    if (equal_take(generator_of(c, step), json_object_get(j, "generator")) &&
        equal_take(cursor_of(c, step), json_object_get(j, "next_sample")))
        return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "checkpoint",
                    "%.80s: its generator or next_sample is not what the seed gives at step %d: another build drew its data", dir,
                    step);
}

int tpo_checkpoint_check(const char *stage_dir, const struct tpo_checkpoint *c, struct tpo_error *err)
{
    char path[4600];
    json_t *j = newest(stage_dir, c->of.run, false, path);
    const int rc = j != NULL ? manifest_check(path, j, c, err) : TPO_OK;
    json_decref(j);
    return rc;
}

int tpo_checkpoint_find(const char *stage_dir, struct tpo_checkpoint *c, struct tpo_error *err)
{
    char path[4600];
    json_t *j = newest(stage_dir, c->of.run, true, path);
    c->step = j != NULL ? number_of(j, "step") : 0;
    c->version = (uint64_t)json_integer_value(json_object_get(j, "version"));
    c->aborted = (uint64_t)json_integer_value(json_object_get(j, "aborted"));
    for (int p = 0; p < TPO_PARTS; p++) c->has[p] = json_object_get(json_object_get(j, "files"), tpo_part_names[p]) != NULL;
    if (j == NULL) return TPO_OK;
    snprintf(c->path, sizeof(c->path), "%.3900s", path);
    int rc = manifest_check(path, j, c, err);
    if (rc == TPO_OK) rc = crew_check(path, j, c, err);
    json_decref(j);
    return rc;
}

int tpo_checkpoint_send(const struct tpo_checkpoint *c, int part, struct tpo_learner *l, struct tpo_error *err)
{
    char path[4200];
    int rc = TPO_OK;
    snprintf(path, sizeof(path), "%s/%s.safetensors", c->path, tpo_part_names[part]);
    if (c->has[part]) rc = tpo_shard_read(path, l, c->version, err);
    return rc == TPO_OK ? l->import_state(l->self, c->version, NULL, err) : rc;
}

/* --- the end of a stage -------------------------------------------------------------------------------------------------------------- */

/* One tensor behind the others, by way of host memory. What no part of this build reads: position_ids are 0, 1, 2, ...; the rest is zero. */
static int param_write(struct tpo_safetensors_writer *w, struct tpo_stream *s, const struct tpo_param *p, size_t bytes,
                       struct tpo_error *err)
{
    void *host = calloc(1, bytes);
    int64_t *ids = tpo_param_is_integer(p) ? host : NULL;
    int rc = host != NULL ? TPO_OK : TPO_ENOMEM;
    for (int64_t at = 0; ids != NULL && at < p->size; at++) ids[at] = at;
    if (rc == TPO_OK && tpo_param_held(p)) rc = tpo_param_piece(p, s, 0, p->size, host);
    rc = rc == TPO_OK ? tpo_safetensors_put(w, host, bytes, err)
                      : tpo_fail(err, rc, "memory", "%s cannot be read from the device", p->name);
    free(host);
    return rc;
}

static int models_write(const char *path, struct tpo_stream *s, struct tpo_model *const *models, int n_models,
                        struct tpo_error *err)
{
    int total = 0, n = 0;
    for (int k = 0; k < n_models; k++) total += models[k]->params->n;
    struct tpo_entry *entries = calloc((size_t)total + 1, sizeof(*entries));
    struct tpo_safetensors_writer *w = NULL;
    int rc = entries != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    for (int k = 0; k < n_models && rc == TPO_OK; k++)
        for (int i = 0; i < models[k]->params->n; i++, n++) {
            const struct tpo_param *p = models[k]->params->items[i];
            const bool integer = tpo_param_is_integer(p);
            entries[n] =
                (struct tpo_entry){.name = p->name, .dtype = integer ? TPO_I64 : TPO_F32, .n_dims = p->n_dims, .size = p->size};
            memcpy(entries[n].shape, p->shape, sizeof(p->shape));
            entries[n].size_bytes = (integer ? sizeof(int64_t) : sizeof(float)) * (size_t)p->size;
        }
    if (rc == TPO_OK) rc = tpo_safetensors_create(&w, path, entries, n, err);
    n = 0;
    for (int k = 0; k < n_models && rc == TPO_OK; k++)
        for (int i = 0; i < models[k]->params->n && rc == TPO_OK; i++, n++)
            rc = param_write(w, s, models[k]->params->items[i], entries[n].size_bytes, err);
    free(entries);
    if (rc == TPO_OK) return tpo_safetensors_finish(w, err);
    tpo_safetensors_abandon(w);
    return rc;
}

int tpo_checkpoint_finish(const char *stage_dir, const struct tpo_identity *of, const char *from, struct tpo_stream *s,
                          struct tpo_model *const *models, int n_models, struct tpo_error *err)
{
    char part[4096], final[4096], path[4300], hash[TPO_SHA256_HEX];
    snprintf(part, sizeof(part), "%.4000s/model.part", stage_dir);
    snprintf(final, sizeof(final), "%.4000s/model", stage_dir);
    snprintf(path, sizeof(path), "%s/model.safetensors", part);
    folder_remove(part);
    if (mkdir(part, 0755) != 0) return fail_file(err, part);
    int rc = tpo_model_folder_companions(part, from, err);
    if (rc == TPO_OK) rc = models_write(path, s, models, n_models, err);
    if (rc == TPO_OK) rc = file_hash(path, hash, err);
    if (rc == TPO_OK) rc = tpo_identity_end(stage_dir, of, hash, err);
    if (rc == TPO_OK) folder_remove(final);
    if (rc == TPO_OK && rename(part, final) != 0) rc = fail_file(err, final);
    if (rc == TPO_OK) return folder_sync(stage_dir, err);
    folder_remove(part); /* a full disk must not stay full of it */
    return rc;
}
