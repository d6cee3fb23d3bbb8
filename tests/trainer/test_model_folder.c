/* `tpo model check` on a sparse file set with the published checkpoint's full header: 2,594 names in 4 shards and an index. It is
 * sound as it stands, and each way of damaging it is refused by the name of the tensor. No byte of data exists, so none can be read. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_SHARDS 4
#define N_NAMES  2594

struct row {
    char name[128], dtype[8], shape[64];
    long long begin, end;   /* in its shard's data */
    int shard, index_shard; /* index_shard 0: not in the index */
    bool written;           /* in the shard's header */
    int times;
};

struct folder {
    struct row rows[N_NAMES + 8];
    int n;
    long long data_bytes[N_SHARDS + 1];
    long long cut_bytes[N_SHARDS + 1];              /* taken off the file's end */
    unsigned long long header_length[N_SHARDS + 1]; /* instead of the true one when not 0 */
    const char *header_tail;                        /* of shard 4, instead of "}" */
};

static struct folder f;

/* The published shards are cut by size in module order; what matters here is that layers 9 and 20 straddle two. */
static int shard_of(const char *name)
{
    int layer;
    if (sscanf(name, "lm.base_model.model.model.layers.%d.", &layer) == 1) {
        bool early = strstr(name, "self_attn") != NULL || strstr(name, "gate_proj") != NULL ||
                     (layer == 20 && strstr(name, "up_proj") != NULL);
        if (layer == 9) return early ? 1 : 2;
        if (layer == 20) return early ? 2 : 3;
        return layer < 9 ? 1 : layer < 20 ? 2 : 3;
    }
    if (strcmp(name, "lm.base_model.model.model.norm.weight") == 0) return 3;
    if (strncmp(name, "vision_", 7) == 0 || strstr(name, "query_tokens") != NULL || strstr(name, "embed_tokens") != NULL) return 1;
    return strstr(name, "_token") != NULL && strchr(name, '.') == NULL ? 1 : 4;
}

static long long elements(const char *shape)
{
    long long n = 1;
    for (const char *p = shape + 1; *p != '\0' && *p != ']'; p++) {
        n *= strtoll(p, (char **)&p, 10);
        if (*p == ']') break;
    }
    return n;
}

static void add_row(const char *name, const char *shape)
{
    struct row *r = &f.rows[f.n++];
    memset(r, 0, sizeof(*r));
    snprintf(r->name, sizeof(r->name), "%s", name);
    snprintf(r->shape, sizeof(r->shape), "%s", shape);
    snprintf(r->dtype, sizeof(r->dtype), "%s", strstr(name, "position_ids") != NULL ? "I64" : "BF16");
    r->shard = r->index_shard = shard_of(name);
    r->written = true;
    r->times = 1;
    r->begin = f.data_bytes[r->shard];
    r->end = f.data_bytes[r->shard] = r->begin + elements(shape) * (r->dtype[0] == 'I' ? 8 : 2);
}

/* Replaces the first {...} of `pattern` by each of its choices in turn. */
static void expand(const char *pattern, const char *shapes)
{
    const char *open = strchr(pattern, '{');
    if (open == NULL) {
        char shape[64];
        snprintf(shape, sizeof(shape), "%.*s", (int)strcspn(shapes, " \n"), shapes);
        add_row(pattern, shape);
        return;
    }
    char list[64], name[128];
    const char *close = strchr(open, '}');
    int first, last;
    snprintf(list, sizeof(list), "%.*s", (int)(close - open - 1), open + 1);
    if (sscanf(list, "%d..%d", &first, &last) == 2) {
        for (int i = first; i <= last; i++) {
            snprintf(name, sizeof(name), "%.*s%d%s", (int)(open - pattern), pattern, i, close + 1);
            expand(name, shapes);
        }
        return;
    }
    for (char *save = NULL, *word = strtok_r(list, ",", &save); word != NULL; word = strtok_r(NULL, ",", &save)) {
        snprintf(name, sizeof(name), "%.*s%s%s", (int)(open - pattern), pattern, word, close + 1);
        expand(name, strcmp(word, "bias") == 0 ? strchr(shapes, ' ') + 1 : shapes);
    }
}

static void publish(void)
{
    char path[4096], line[512];
    memset(&f, 0, sizeof(f));
    snprintf(path, sizeof(path), "%s/models/published/tensors.txt", tpo_test_source());
    FILE *schema = fopen(path, "r");
    assert_non_null(schema);
    while (fgets(line, sizeof(line), schema) != NULL) {
        if (line[0] == '#') continue;
        char *space = strchr(line, ' ');
        *space = '\0';
        expand(line, space + 1);
    }
    fclose(schema);
    assert_int_equal(f.n, N_NAMES);
}

static void write_text(const char *path, const char *text)
{
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static void write_shard(int shard)
{
    char path[64];
    char *header = NULL;
    size_t length = 0;
    FILE *text = open_memstream(&header, &length);
    fprintf(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < f.n; i++)
        for (int k = 0; k < f.rows[i].times && f.rows[i].written && f.rows[i].shard == shard; k++)
            fprintf(text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%lld,%lld]}", f.rows[i].name, f.rows[i].dtype,
                    f.rows[i].shape, f.rows[i].begin, f.rows[i].end);
    fputs(shard == 4 && f.header_tail != NULL ? f.header_tail : "}", text);
    fclose(text);
    snprintf(path, sizeof(path), "published/model-%05d-of-00004.safetensors", shard);
    unlink(path);
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    assert_true(fd >= 0);
    unsigned long long told = f.header_length[shard] != 0 ? f.header_length[shard] : length;
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)(told >> (8 * i));
    assert_int_equal(write(fd, prefix, 8), 8);
    assert_int_equal(write(fd, header, length), (ssize_t)length);
    assert_int_equal(ftruncate(fd, (off_t)(8 + length) + f.data_bytes[shard] - f.cut_bytes[shard]), 0);
    close(fd);
    free(header);
}

static void write_folder(void)
{
    mkdir("published", 0755);
    write_text("published/config.json", "{\"model_config\":{}}");
    write_text("published/added_tokens.json",
               "{\"<box_begin>\":32000,\"<time_begin>\":32001,\"<temp>\":32002,\"<boxes>\":32003,\"<track_begin>\":32004,"
               "\"<tracking>\":32005,\"<track_box>\":32006}");
    for (int shard = 1; shard <= N_SHARDS; shard++) write_shard(shard);
    FILE *index = fopen("published/model.safetensors.index.json", "w");
    const char *comma = "";
    fprintf(index, "{\"metadata\":{\"total_size\":16202736564},\"weight_map\":{");
    for (int i = 0; i < f.n; i++) {
        if (f.rows[i].index_shard == 0) continue;
        fprintf(index, "%s\"%s\":\"model-%05d-of-00004.safetensors\"", comma, f.rows[i].name, f.rows[i].index_shard);
        comma = ",";
    }
    fprintf(index, "}}");
    fclose(index);
}

/* The exit status of `tpo-trainer model check published`; its output goes to `out`. */
static int check(char *out, size_t size)
{
    char command[4096];
    snprintf(command, sizeof(command), "%s/tpo-trainer model check published 2>&1", tpo_test_build());
    FILE *run = popen(command, "r");
    assert_non_null(run);
    size_t n = fread(out, 1, size - 1, run);
    out[n] = '\0';
    int status = pclose(run);
    assert_true(WIFEXITED(status)); /* refused, not crashed */
    return WEXITSTATUS(status);
}

static struct row *row(const char *name)
{
    for (int i = 0; i < f.n; i++)
        if (strcmp(f.rows[i].name, name) == 0) return &f.rows[i];
    fail_msg("no %s", name);
    return NULL;
}

static void the_published_header_is_sound(void **state)
{
    (void)state;
    static char out[65536];
    publish();
    long long total = 0;
    for (int s = 1; s <= N_SHARDS; s++) total += f.data_bytes[s];
    assert_true(total == 16202736564LL);
    write_folder();
    int rc = check(out, sizeof(out));
    if (rc != 0) printf("%s", out);
    assert_int_equal(rc, 0);
    assert_non_null(strstr(out, "encoder: sound"));
    assert_non_null(strstr(out, "router: sound"));
    assert_non_null(strstr(out, "region: sound"));
    assert_non_null(strstr(out, "folder: mask: "));
}

#define NORM   "vision_layernorm.weight"
#define KPROJ  "lm.base_model.model.model.layers.9.self_attn.k_proj.base_layer.weight"
#define REGION "loc_decoder.2.bias"
#define QUERY  "qformer.bert.encoder.layer.4.crossattention.self.query.weight"

static void gone(struct row *r)
{
    r->written = false;
    r->index_shard = 0;
    /* Its bytes must not become a hole: the next tensors move up. */
    long long bytes = r->end - r->begin;
    for (int i = 0; i < f.n; i++)
        if (f.rows[i].shard == r->shard && f.rows[i].begin >= r->end) f.rows[i].begin -= bytes, f.rows[i].end -= bytes;
    f.data_bytes[r->shard] -= bytes;
}
static void encoder_tensor_missing(void)
{
    gone(row(NORM));
}
static void router_tensor_missing(void)
{
    gone(row(KPROJ));
}
static void region_tensor_missing(void)
{
    gone(row(REGION));
}
static void extra_under_a_prefix_of_ours(void)
{
    add_row("vision_layernorm.gamma", "[1024]");
}
static void extra_under_no_prefix(void)
{
    add_row("optimizer.step", "[1]");
}
static void shape_transposed(void)
{
    strcpy(row("loc_encoder.0.weight")->shape, "[4,2048]");
}
static void rank_lost(void)
{
    strcpy(row("box_token")->shape, "[4096]");
}
static void dtype_of_another_kind(void)
{
    strcpy(row("project_up.bias")->dtype, "I32"), strcpy(row("project_up.bias")->shape, "[2048]");
}
static void dtype_unknown(void)
{
    strcpy(row(KPROJ)->dtype, "F8");
}
static void offsets_overlap(void)
{
    row(QUERY)->begin -= 2, row(QUERY)->end -= 2;
}
static void offsets_leave_a_hole(void)
{
    f.data_bytes[4] += 1024;
    add_row("ext.mask.after_the_hole", "[2]");
}
static void offsets_past_the_end(void)
{
    row("loc_encoder.2.bias")->begin += 1LL << 40, row("loc_encoder.2.bias")->end += 1LL << 40;
}
static void offsets_backwards(void)
{
    long long begin = row(KPROJ)->begin;
    row(KPROJ)->begin = row(KPROJ)->end, row(KPROJ)->end = begin;
}
static void shape_and_offsets_differ(void)
{
    strcpy(row(REGION)->shape, "[5]");
}
static void name_twice_in_a_header(void)
{
    row(REGION)->times = 2;
}
static void name_in_two_shards(void)
{
    add_row("track_token", "[1,1,4096]");
    struct row *r = &f.rows[f.n - 1];
    f.data_bytes[1] -= r->end - r->begin;
    r->end = f.data_bytes[4] + (r->end - r->begin), r->begin = f.data_bytes[4], f.data_bytes[4] = r->end;
    r->shard = 4;
}
static void index_names_the_wrong_shard(void)
{
    row(KPROJ)->index_shard = 2;
}
static void index_names_a_missing_shard(void)
{
    row(KPROJ)->index_shard = 7;
}
static void index_promises_too_much(void)
{
    gone(row(NORM)), row(NORM)->index_shard = 1;
}
static void index_forgets(void)
{
    row(NORM)->index_shard = 0;
}
static void dimension_negative(void)
{
    strcpy(row(REGION)->shape, "[-4]");
}
static void dimensions_overflow(void)
{
    strcpy(row(QUERY)->shape, "[4294967296,4294967296,4294967296]");
}
static void file_cut_short(void)
{
    f.cut_bytes[3] = 1;
}
static void header_longer_than_the_file(void)
{
    f.header_length[2] = 1ULL << 62;
}
static void header_not_json(void)
{
    f.header_tail = "";
}
static void header_deep(void)
{
    f.header_tail = ",\"deep\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[";
}

static const struct {
    const char *what;
    void (*damage)(void);
    const char *named; /* must stand in the report */
} mutations[] = {
    {"encoder tensor missing", encoder_tensor_missing, NORM},
    {"router tensor missing", router_tensor_missing, KPROJ},
    {"region tensor missing", region_tensor_missing, REGION},
    {"extra under a prefix of ours", extra_under_a_prefix_of_ours, "vision_layernorm.gamma"},
    {"extra under no prefix", extra_under_no_prefix, "optimizer.step"},
    {"shape transposed", shape_transposed, "loc_encoder.0.weight"},
    {"rank lost", rank_lost, "box_token"},
    {"dtype of another kind", dtype_of_another_kind, "project_up.bias"},
    {"dtype unknown", dtype_unknown, KPROJ},
    {"offsets overlap", offsets_overlap, QUERY},
    {"offsets leave a hole", offsets_leave_a_hole, "ext.mask.after_the_hole"},
    {"offsets past the end", offsets_past_the_end, "loc_encoder.2.bias"},
    {"offsets backwards", offsets_backwards, KPROJ},
    {"shape and offsets differ", shape_and_offsets_differ, REGION},
    {"name twice in a header", name_twice_in_a_header, REGION},
    {"name in two shards", name_in_two_shards, "track_token"},
    {"index names the wrong shard", index_names_the_wrong_shard, KPROJ},
    {"index names a missing shard", index_names_a_missing_shard, KPROJ},
    {"index promises too much", index_promises_too_much, NORM},
    {"index forgets", index_forgets, NORM},
    {"dimension negative", dimension_negative, REGION},
    {"dimensions overflow", dimensions_overflow, QUERY},
    {"file cut short", file_cut_short, "model-00003-of-00004.safetensors"},
    {"header longer than the file", header_longer_than_the_file, "model-00002-of-00004.safetensors"},
    {"header not JSON", header_not_json, "model-00004-of-00004.safetensors"},
    {"header deep", header_deep, "model-00004-of-00004.safetensors"},
};

static void every_damage_is_refused_by_name(void **state)
{
    (void)state;
    static char out[1 << 20];
    for (size_t i = 0; i < sizeof(mutations) / sizeof(mutations[0]); i++) {
        publish();
        mutations[i].damage();
        write_folder();
        int rc = check(out, sizeof(out));
        const char *fault = strstr(out, "fault: ");
        if (rc == 0 || fault == NULL || strstr(fault, mutations[i].named) == NULL) {
            out[4000] = '\0';
            fail_msg("%s: status %d, %s is not named in:\n%s", mutations[i].what, rc, mutations[i].named, out);
        }
    }
}

TPO_TESTS(cmocka_unit_test(the_published_header_is_sound), cmocka_unit_test(every_damage_is_refused_by_name))
