/* Proves the safetensors reader and writer: round trips, shards, and files that lie. */
#include "common/safetensors.h"

#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/prefixes.h"
#include "tests/support/test.h"

static const float numbers[6] = {1, 2, 3, 4, 5, 6};
static const uint8_t bytes[3] = {7, 8, 9};

static void writes_what_it_reads(void **state)
{
    (void)state;
    const struct tpo_entry entries[] = {{.name = "b", .dtype = TPO_F32, .n_dims = 2, .shape = {2, 3}, .data = numbers},
                                        {.name = "a\"\\ \xc3\xa9", .dtype = TPO_U8, .n_dims = 1, .shape = {3}, .data = bytes},
                                        {.name = "scalar", .dtype = TPO_F32, .data = numbers + 4}};
    struct tpo_safetensors *s = NULL;
    struct tpo_error err;
    assert_int_equal(tpo_safetensors_write("model.safetensors", entries, 3, &err), TPO_OK);
    assert_int_not_equal(access("model.safetensors.part", F_OK), 0);
    if (tpo_safetensors_open(&s, ".", &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(s->n, 3);
    assert_string_equal(s->items[0].name, entries[1].name);
    const struct tpo_entry *b = tpo_safetensors_find(s, "b");
    assert_int_equal((uintptr_t)b->data % 64, 0);
    assert_int_equal(b->size, 6);
    assert_memory_equal(b->data, numbers, sizeof(numbers));
    assert_memory_equal(tpo_safetensors_find(s, "scalar")->data, numbers + 4, 4); /* where it lies no float may be read */
    assert_null(tpo_safetensors_find(s, "c"));
    tpo_safetensors_close(s);
}

static void half_a_file_is_never_seen(void **state)
{
    (void)state;
    const struct tpo_entry entry = {.name = "x", .dtype = TPO_F32, .n_dims = 1, .shape = {6}};
    struct tpo_safetensors_writer *w = NULL;
    assert_int_equal(tpo_safetensors_create(&w, "x.safetensors", &entry, 1, NULL), TPO_OK);
    assert_int_equal(tpo_safetensors_put(w, numbers, 8, NULL), TPO_OK);
    assert_int_equal(tpo_safetensors_put(w, numbers, 24, NULL), TPO_INVALID_ARGUMENT);
    assert_int_equal(tpo_safetensors_finish(w, NULL), TPO_INVALID_ARGUMENT);
    assert_int_not_equal(access("x.safetensors", F_OK), 0);
    assert_int_not_equal(access("x.safetensors.part", F_OK), 0);
    assert_int_not_equal(tpo_safetensors_create(&w, "no/such/folder/x.safetensors", &entry, 1, NULL), TPO_OK);
}

/* A header with `data_bytes` zero bytes behind it; n < 0: its true length. */
static int read_header(const char *header, int data_bytes, long long n, struct tpo_error *err)
{
    static unsigned char file[4096];
    struct tpo_safetensors *s = NULL;
    size_t length = strlen(header);
    unsigned long long told = n < 0 ? length : (unsigned long long)n;
    memset(file, 0, sizeof(file));
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(told >> (8 * i));
    memcpy(file + 8, header, length);
    int rc = tpo_safetensors_open_bytes(&s, file, 8 + length + (size_t)data_bytes, err);
    tpo_safetensors_close(s);
    return rc;
}

static void lies_are_told_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        int data_bytes;
        long long told;
        const char *says;
    } lies[] = {
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, -1, "t: data_offsets point past"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 12, -1, "belong to no tensor"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, -1, "t: data_offsets run backwards"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, -1, "t: shape and data_offsets"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, -1, "t: a dimension"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4611686018427387904],\"data_offsets\":[0,8]}}", 8, -1,
         "t: more elements"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, -1, "t: shape and data_offsets"},
        {"{\"t\":{\"dtype\":\"Q4\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, -1, "t: its dtype"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, -1, "t: a dimension"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, -1, "t: no shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, -1, "t: too many"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, -1, "t: data_offsets is not"},
        {"{\"t\":[1]}", 0, -1, "t: its description"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,"
         "6]}}",
         6, -1, "u: its bytes overlap"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,"
         "1]}}",
         1, -1, "t: the name occurs twice"},
        {"[]", 0, -1, "not a JSON object"},
        {"{\"t\":", 0, -1, "not JSON"},
        {"{}", 0, 0x7fffffffffffffffLL, "a header of"},
        {"{}", 0, 64, "a header of"},
    };
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct tpo_error err = {0};
        assert_int_equal(read_header(lies[i].header, lies[i].data_bytes, lies[i].told, &err), TPO_FAILED_PRECONDITION);
        if (strstr(err.message, lies[i].says) == NULL) fail_msg("%s: %s", lies[i].header, err.message);
    }
    struct tpo_error err;
    assert_int_equal(read_header("{\"__metadata__\":{\"format\":\"pt\"}}  ", 0, -1, &err), TPO_OK);
    assert_int_equal(read_header("", 0, 0, &err), TPO_FAILED_PRECONDITION);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void index_and_shards_agree(void **state)
{
    (void)state;
    const struct tpo_entry one = {.name = "one", .dtype = TPO_U8, .n_dims = 1, .shape = {3}, .data = bytes};
    const struct tpo_entry two = {.name = "two", .dtype = TPO_U8, .n_dims = 1, .shape = {3}, .data = bytes};
    static const struct {
        const char *index, *says;
    } wrong[] = {{"{\"weight_map\":{\"one\":\"b\",\"two\":\"a\"}}", "the index puts it into"},
                 {"{\"weight_map\":{\"one\":\"a\"},\"x\":1}", NULL},
                 {"{\"weight_map\":{\"one\":\"a\",\"two\":\"b\",\"three\":\"b\"}}", "three: missing"},
                 {"{\"weight_map\":{\"one\":\"a\",\"two\":\"c\"}}", "two: its shard c is missing"},
                 {"{\"weight_map\":{\"one\":\"a\",\"two\":\"../b\"}}", "two: its shard is not a file name"},
                 {"{\"weight_map\":{\"one\":\"a\",\"one\":\"b\"}}", "one: the name occurs twice"},
                 {"{\"weight_map\":[]}", "no weight_map"},
                 {"{\"weight_map\"", "not JSON"}};
    struct tpo_safetensors *s = NULL;
    struct tpo_error err;
    assert_int_equal(tpo_safetensors_write("a", &one, 1, NULL), TPO_OK);
    assert_int_equal(tpo_safetensors_write("b", &two, 1, NULL), TPO_OK);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        write_text("model.safetensors.index.json", wrong[i].index);
        int rc = tpo_safetensors_open(&s, ".", &err);
        assert_int_equal(rc, wrong[i].says != NULL ? TPO_FAILED_PRECONDITION : TPO_OK);
        if (wrong[i].says != NULL && strstr(err.message, wrong[i].says) == NULL) fail_msg("%s", err.message);
        if (rc == TPO_OK) tpo_safetensors_close(s);
        /* A survey reads on and lists what open stops at. */
        assert_int_equal(tpo_safetensors_survey(&s, ".", &err), TPO_OK);
        assert_int_equal(s->n_faults > 0, wrong[i].says != NULL);
        tpo_safetensors_close(s);
    }
    assert_int_equal(tpo_safetensors_open(&s, "nowhere", &err), TPO_NOT_FOUND);
}

static void opening_never_waits_nor_goes_on_for_ever(void **state)
{
    (void)state;
    enum { MANY = 4097 };
    struct tpo_safetensors *s = NULL;
    struct tpo_error err = {0};
    assert_int_equal(mkdir("hostile", 0755), 0);
    assert_int_equal(mkfifo("hostile/model.safetensors", 0600), 0);
    assert_int_equal(tpo_safetensors_open(&s, "hostile", &err), TPO_FAILED_PRECONDITION);
    assert_non_null(strstr(err.message, "not a file"));
    assert_int_equal(mkfifo("hostile/model.safetensors.index.json", 0600), 0);
    assert_int_equal(tpo_safetensors_open(&s, "hostile", &err), TPO_FAILED_PRECONDITION);
    assert_int_equal(unlink("hostile/model.safetensors.index.json"), 0);
    FILE *f = fopen("hostile/model.safetensors.index.json", "w");
    assert_non_null(f);
    for (int i = 0; i < MANY; i++) fprintf(f, "%s\"t%d\":\"s%d\"", i == 0 ? "{\"weight_map\":{" : ",", i, i);
    fputs("}}", f);
    fclose(f);
    assert_int_equal(tpo_safetensors_survey(&s, "hostile", &err), TPO_OK);
    assert_int_equal(s->n_faults, 4096);
    tpo_safetensors_close(s);
    for (int i = 0; i < MANY; i++) {
        char path[64];
        snprintf(path, sizeof(path), "hostile/s%d", i);
        const struct tpo_entry e = {.name = strrchr(path, 's'), .dtype = TPO_U8, .n_dims = 1, .shape = {3}, .data = bytes};
        if (i == 0)
            assert_int_equal(tpo_safetensors_write(path, &e, 1, NULL), TPO_OK);
        else
            assert_int_equal(symlink("s0", path), 0);
    }
    assert_int_equal(tpo_safetensors_survey(&s, "hostile", &err), TPO_OK);
    bool told = false;
    for (int i = 0; i < s->n_faults; i++) told = told || strstr(s->faults[i], "more than 4096 shards") != NULL;
    assert_true(told);
    tpo_safetensors_close(s);
}

static void a_service_opens_its_own_shards(void **state)
{
    (void)state;
    const struct tpo_entry region = {.name = "loc_decoder.0.bias", .dtype = TPO_U8, .n_dims = 1, .shape = {3}, .data = bytes};
    struct tpo_safetensors *s = NULL;
    struct tpo_error err;
    assert_int_equal(tpo_safetensors_write("a", &region, 1, NULL), TPO_OK);
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"loc_decoder.0.bias\":\"a\",\"lm.x\":\"b\"}}");
    if (tpo_safetensors_open_stage(&s, ".", "region", &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(s->n, 1);
    tpo_safetensors_close(s);
    assert_int_equal(tpo_safetensors_open_stage(&s, ".", "router", &err), TPO_FAILED_PRECONDITION);
    assert_non_null(strstr(err.message, "lm.x: its shard b is missing"));
    assert_int_equal(tpo_safetensors_open(&s, ".", &err), TPO_FAILED_PRECONDITION);
    /* A promise of its own shard is kept or told; a name that no service owns is looked for. */
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"loc_decoder.0.bias\":\"a\",\"lm.x\":\"a\"}}");
    assert_int_equal(tpo_safetensors_open_stage(&s, ".", "region", &err), TPO_FAILED_PRECONDITION);
    assert_non_null(strstr(err.message, "lm.x: missing"));
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"loc_decoder.0.bias\":\"a\",\"nobodys\":\"b\"}}");
    assert_int_equal(tpo_safetensors_open_stage(&s, ".", "region", &err), TPO_FAILED_PRECONDITION);
    assert_non_null(strstr(err.message, "nobodys: its shard b is missing"));
}

static void every_name_has_an_owner(void **state)
{
    (void)state;
    assert_string_equal(tpo_prefix_owner("vision_encoder.encoder.blocks.0.norm1.weight"), "encoder");
    assert_string_equal(tpo_prefix_owner("query_tokens"), "encoder");
    assert_null(tpo_prefix_owner("query_tokens.weight"));
    assert_string_equal(tpo_prefix_owner("track_embed_decode2.layers.0.weight"), "mask");
    assert_string_equal(tpo_prefix_owner("merge_proj.bias"), "dead");
    assert_string_equal(tpo_prefix_owner("ext.router.slot_position"), "router");
    assert_null(tpo_prefix_owner("ext.gateway.x"));
    assert_null(tpo_prefix_owner("lm."));
    assert_null(tpo_prefix_owner(""));
}

TPO_TESTS(cmocka_unit_test(opening_never_waits_nor_goes_on_for_ever), cmocka_unit_test(writes_what_it_reads),
          cmocka_unit_test(half_a_file_is_never_seen), cmocka_unit_test(lies_are_told_by_name),
          cmocka_unit_test(index_and_shards_agree), cmocka_unit_test(a_service_opens_its_own_shards),
          cmocka_unit_test(every_name_has_an_owner))
