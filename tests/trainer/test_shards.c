/* Folders written piece by piece: their shards, their hashes, the list of the published checkpoint's tensors, and disks that run full. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/sha256.h"
#include "nn/config.h"
#include "nn/params.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/router.h"
#include "tests/support/test.h"
#include "trainer/model_folder.h"
#include "trainer/shards.h"
#include "trainer/tensor_list.h"

static void shell(const char *command)
{
    if (system(command) != 0) fail_msg("%s", command);
}

/* --- shards --------------------------------------------------------------------------------------------------------------------------------- */

/* Element k of tensor i. */
static uint16_t value(int i, int64_t k)
{
    return (uint16_t)(k * 7 + i * 1000 + k / 65536);
}

static int no_begin(void *owner, int i)
{
    (void)owner, (void)i;
    return TPO_OK;
}

static int make(void *owner, struct tpo_stream *s, void *out, int i, int64_t first, int64_t n)
{
    (void)owner, (void)s;
    for (int64_t k = 0; k < n; k++) ((uint16_t *)out)[k] = value(i, first + k);
    return TPO_OK;
}

static struct tpo_entry entry(const char *name, int64_t rows, int64_t cols)
{
    return (struct tpo_entry){.name = name,
                              .dtype = TPO_BF16,
                              .n_dims = 2,
                              .shape = {rows, cols},
                              .size = rows * cols,
                              .size_bytes = (size_t)(rows * cols) * sizeof(uint16_t)};
}

static void every_element_is_in_its_place(void **state)
{
    (void)state;
    /* More than a piece, a grain and one, one; the second and third fill a shard to its last byte. */
    const struct tpo_entry tensors[] = {entry("a", 1, TPO_SHARDS_PIECE + TPO_SHARDS_GRAIN + 3), entry("b", 50, 20),
                                        entry("c", 1, 1), entry("d", 1, TPO_SHARDS_GRAIN + 1)};
    const struct tpo_shards x = {.tensors = tensors, .n = 4, .shard_bytes = 2002, .begin = no_begin, .make = make};
    struct tpo_safetensors *files;
    struct tpo_error err;
    mkdir("out", 0755);
    assert_int_equal(tpo_shards_write("out", &x, &err), TPO_OK);
    assert_int_equal(tpo_safetensors_open(&files, "out", &err), TPO_OK);
    assert_int_equal(files->n, 4);
    json_t *manifest = json_load_file("out/manifest.json", 0, NULL);
    static const char *const homes[] = {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"};
    for (int i = 0; i < 4; i++) {
        char text[TPO_SHA256_HEX];
        uint8_t digest[TPO_SHA256_BYTES];
        const struct tpo_entry *e = tpo_safetensors_find(files, tensors[i].name);
        assert_non_null(e);
        assert_int_equal(e->size, tensors[i].size);
        assert_string_equal(e->file, homes[i]);
        for (int64_t k = 0; k < e->size; k++)
            if (((const uint16_t *)e->data)[k] != value(i, k)) fail_msg("tensor %d, element %lld", i, (long long)k);
        tpo_sha256(digest, e->data, e->size_bytes);
        assert_string_equal(json_string_value(json_object_get(json_object_get(manifest, "tensors"), e->name)),
                            tpo_sha256_hex(text, digest));
    }
    json_decref(manifest);
    tpo_safetensors_close(files);
}

/* --- model folders ------------------------------------------------------------------------------------------------------------------------------ */

static const char tiny[] = "{\"model_config\":{\"vision_encoder\":{\"img_size\":16,\"patch_size\":4,\"encoder_embed_dim\":8,"
                           "\"encoder_depth\":3,\"encoder_num_heads\":2,"
                           "\"num_frames\":4,\"checkpoint_frames\":4,\"ext_position\":true},"
                           "\"bridge\":{\"num_query_token\":4,\"extra_num_query_token\":2,\"hidden_size\":8,\"num_hidden_layers\":"
                           "2,\"num_attention_heads\":2,\"intermediate_size\":16,"
                           "\"vocab_size\":5,\"max_position_embeddings\":6,\"ext_key_position\":true},"
                           "\"llm\":{\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":"
                           "1,\"intermediate_size\":24,\"vocab_size\":%d,"
                           "\"lora_r\":2},\"heads\":{\"region\":{\"hidden_size\":8}},\"box_encoder\":{\"hidden_size\":8}}}";

static void schemas(struct tpo_params owned[3], const char *folder)
{
    struct tpo_config c;
    struct tpo_error err;
    memset(owned, 0, 3 * sizeof(*owned));
    if (tpo_config_load(&c, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_encoder_schema(&owned[0], &c, 0);
    tpo_router_schema(&owned[1], &c, 0);
    tpo_region_schema(&owned[2], &c);
}

static void schemas_free(struct tpo_params owned[3])
{
    for (int k = 0; k < 3; k++) tpo_params_free(&owned[k], NULL);
}

/* ./from: that config, models/small's tokens. */
static void write_from(int vocabulary)
{
    char command[4600];
    mkdir("from", 0755);
    FILE *out = fopen("from/config.json", "w");
    fprintf(out, tiny, vocabulary);
    fclose(out);
    snprintf(command, sizeof(command), "cp %s/models/small/added_tokens.json %s/models/small/tokenizer.model from/",
             tpo_test_source(), tpo_test_source());
    shell(command);
}

/* ./from/tensors.txt: what the schemas ask for, and `more`. */
static void write_list(const char *more)
{
    struct tpo_params owned[3];
    schemas(owned, "from");
    FILE *out = fopen("from/tensors.txt", "w");
    fprintf(out, "# all\n");
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < owned[k].n; i++) {
            const struct tpo_param *p = owned[k].items[i];
            fprintf(out, "%s [", p->name);
            for (int d = 0; d < p->n_dims; d++) fprintf(out, d > 0 ? ",%lld" : "%lld", (long long)p->shape[d]);
            fprintf(out, "]\n");
        }
    fputs(more, out);
    fclose(out);
    schemas_free(owned);
}

/* Values do not depend on how they were written: those of the whole draw, orthogonal matrices among them. */
static void pieces_are_the_whole_draw(void **state)
{
    (void)state;
    struct tpo_params owned[3];
    struct tpo_safetensors *files;
    struct tpo_stream *s;
    struct tpo_error err;
    write_from(744);
    assert_int_equal(tpo_model_folder_write("out", "from", 1, 5, TPO_F32, &err), TPO_OK);
    assert_int_equal(tpo_stream_open(&s, "cpu", 1, &err), TPO_OK);
    assert_int_equal(tpo_safetensors_open(&files, "out", &err), TPO_OK);
    schemas(owned, "from");
    int kinds = 0;
    for (int k = 0; k < 3; k++) {
        assert_int_equal(tpo_params_random(&owned[k], s, 5, &err), TPO_OK);
        for (int i = 0; i < owned[k].n; i++) {
            const struct tpo_param *p = owned[k].items[i];
            const struct tpo_entry *e = tpo_safetensors_find(files, p->name);
            assert_non_null(e);
            kinds |= 1 << p->init;
            if (!p->ignored) assert_memory_equal(e->data, p->data, e->size_bytes);
        }
        tpo_params_free(&owned[k], s);
    }
    assert_true((kinds & (1 << TPO_INIT_ORTHOGONAL)) != 0 && (kinds & (1 << TPO_INIT_SINCOS_2D)) != 0 &&
                (kinds & (1 << TPO_INIT_NORMAL_LATER)) != 0);
    tpo_safetensors_close(files);
    tpo_stream_close(s);
}

static void what_the_list_adds_is_written_too(void **state)
{
    (void)state;
    char command[4400];
    struct tpo_safetensors *files;
    struct tpo_error err;
    write_from(744);
    write_list(
        "sam.neck.{0..2}.{weight,bias} [3,2] [3]\nsam.layers.{0,9}.norm.{weight,bias} [4] [4]\ncg_model.text.position_ids [1,3]\n");
    assert_int_equal(tpo_model_folder_write("out", "from", 1, 5, TPO_BF16, &err), TPO_OK);
    assert_int_equal(tpo_safetensors_open(&files, "out", &err), TPO_OK);
    const struct tpo_entry *w = tpo_safetensors_find(files, "sam.neck.2.weight"),
                           *b = tpo_safetensors_find(files, "sam.neck.1.bias"),
                           *norm = tpo_safetensors_find(files, "sam.layers.9.norm.weight"),
                           *ids = tpo_safetensors_find(files, "cg_model.text.position_ids");
    assert_true(w != NULL && b != NULL && norm != NULL && ids != NULL);
    assert_int_equal(w->n_dims, 2);
    assert_int_equal(b->shape[0], 3);
    for (int i = 0; i < 6; i++) assert_true(((const uint16_t *)w->data)[i] != 0);
    for (int i = 0; i < 3; i++) assert_int_equal(((const uint16_t *)b->data)[i], 0);
    for (int i = 0; i < 4; i++) assert_int_equal(((const uint16_t *)norm->data)[i], 0x3f80);
    assert_int_equal(ids->dtype, TPO_I64);
    tpo_safetensors_close(files);
    snprintf(command, sizeof(command), "%s/tpo-trainer model check out >check.log 2>&1", tpo_test_build());
    shell(command);
    shell("grep -q 'folder: mask: 10 tensors' check.log && grep -q 'every name has an owner' check.log");
}

static void bad_lists_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *more, *named;
    } lists[] = {
        {"sam.x\n", "sam.x"},
        {"sam.x 3\n", "sam.x"},
        {"sam.x [3\n", "sam.x"},
        {"sam.x [0]\n", "sam.x"},
        {"sam.x [1,2,3,4,5,6]\n", "sam.x"},
        {"sam.x [99999999999999999999]\n", "sam.x"},
        {"sam.{0..9 [3]\n", "sam.{0..9"},
        {"sam.{9..0} [3]\n", "sam.{9..0}"},
        {"sam.{0..2,9} [3]\n", "sam.{0..2,9}"},
        {"sam.{0..99999999} [3]\n", "sam.{0..99999999}"},
        {"sam.{weight,bias} [3]\n", "sam.bias"},
        {"sam.x [3]\nsam.x [3]\n", "sam.x comes twice"},
        {"elsewhere.x [3]\n", "elsewhere.x"},
        {"vision_layernorm.gamma [3]\n", "vision_layernorm.gamma"},
        {"loc_decoder.2.bias [5]\n", "loc_decoder.2.bias"},
    };
    struct tpo_error err;
    write_from(744);
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        write_list(lists[i].more);
        memset(&err, 0, sizeof(err));
        assert_int_equal(tpo_model_folder_write("out", "from", 1, 5, TPO_BF16, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "tensor_list");
        if (strstr(err.message, lists[i].named) == NULL) fail_msg("%s: %s", lists[i].more, err.message);
    }
    shell("echo 'sam.x [3]' >from/tensors.txt"); /* and nothing of the services */
    assert_int_equal(tpo_model_folder_write("out", "from", 1, 5, TPO_BF16, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(access("out", F_OK), -1);
}

static void the_published_list_is_what_the_config_asks_for(void **state)
{
    (void)state;
    char folder[4200];
    struct tpo_params owned[3], others = {0};
    struct tpo_error err;
    long long bytes = 0;
    int n = 0;
    snprintf(folder, sizeof(folder), "%s/models/published", tpo_test_source());
    schemas(owned, folder);
    if (tpo_tensor_list_read(&others, owned, 3, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    const struct tpo_params *all[] = {&owned[0], &owned[1], &owned[2], &others};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < all[k]->n; i++, n++) bytes += all[k]->items[i]->size * (tpo_param_is_integer(all[k]->items[i]) ? 8 : 2);
    assert_int_equal(n, 2594);
    assert_true(bytes == 16202736564LL);
    schemas_free(owned);
    tpo_params_free(&others, NULL);
}

/* --- no room -------------------------------------------------------------------------------------------------------------------------------------- */

static int count_files(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    while (d != NULL && readdir(d) != NULL) n++;
    if (d != NULL) closedir(d);
    return n - 2;
}

static void a_disk_that_runs_full_is_left_as_it_was(void **state)
{
    (void)state;
    struct rlimit before, small;
    struct tpo_error err;
    write_from(744);
    mkdir("mine", 0755);
    shell("echo kept >mine/config.json");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 32768; /* less than the weights take, more than what lies beside them */
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const int fresh = tpo_model_folder_write("out", "from", 1, 5, TPO_BF16, &err);
    const int there = tpo_model_folder_write("mine", "from", 1, 5, TPO_BF16, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(fresh, TPO_RESOURCE_EXHAUSTED);
    assert_int_equal(there, TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "disk_full");
    assert_int_equal(access("out", F_OK), -1);
    assert_int_equal(count_files("mine"), 1);
    shell("grep -q kept mine/config.json");
    assert_int_equal(tpo_model_folder_write("mine", "from", 1, 5, TPO_BF16, &err), TPO_OK); /* with room it is made */
}

/* Two matrices of 16 M x 64 K: no disk of this world holds them, and none is asked to. */
static void no_room_is_told_before_the_first_byte(void **state)
{
    (void)state;
    struct tpo_error err;
    write_from(1 << 24);
    shell("sed -i 's/\"hidden_size\":16,/\"hidden_size\":65536,\"head_dim\":8,/' from/config.json");
    assert_int_equal(tpo_model_folder_write("out", "from", 1, 5, TPO_BF16, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "disk_full");
    assert_non_null(strstr(err.message, "GB are free there"));
    assert_int_equal(access("out", F_OK), -1);
}

TPO_TESTS(cmocka_unit_test(every_element_is_in_its_place), cmocka_unit_test(pieces_are_the_whole_draw),
          cmocka_unit_test(what_the_list_adds_is_written_too), cmocka_unit_test(bad_lists_are_refused_by_name),
          cmocka_unit_test(the_published_list_is_what_the_config_asks_for),
          cmocka_unit_test(a_disk_that_runs_full_is_left_as_it_was), cmocka_unit_test(no_room_is_told_before_the_first_byte))
