/* Proves nn/params and nn/config: random starts, loading with conversions, strictness. */
#include "nn/params.h"

#include <math.h>
#include <sys/stat.h>

#include "common/safetensors.h"
#include "nn/config.h"
#include "nn/tokenizer.h"
#include "tests/support/test.h"

static struct tpo_stream *open_stream(void)
{
    struct tpo_stream *s = NULL;
    assert_int_equal(tpo_stream_open(&s, "cpu", 1, NULL), TPO_OK);
    return s;
}

static void a_value_depends_on_seed_and_name(void **state)
{
    (void)state;
    struct tpo_stream *s = open_stream();
    struct tpo_params a = {0}, b = {0};
    struct tpo_param *x = tpo_params_declare(&a, TPO_INIT_NORMAL, 2, TPO_SHAPE(64, 64), "box_token");
    tpo_params_declare(&b, TPO_INIT_ZERO, 0, TPO_SHAPE(3), "first");
    struct tpo_param *y = tpo_params_declare(&b, TPO_INIT_NORMAL, 2, TPO_SHAPE(64, 64), "box_token");
    struct tpo_param *z = tpo_params_declare(&b, TPO_INIT_NORMAL, 2, TPO_SHAPE(64, 64), "other");
    assert_int_equal(tpo_params_random(&a, s, 5, NULL), TPO_OK);
    assert_int_equal(tpo_params_random(&b, s, 5, NULL), TPO_OK);
    assert_memory_equal(x->data, y->data, 64 * 64 * 4);
    assert_memory_not_equal(x->data, z->data, 64 * 64 * 4);
    double sum = 0, squares = 0;
    for (int i = 0; i < 4096; i++) sum += x->data[i], squares += x->data[i] * x->data[i];
    assert_float_equal(sum / 4096, 0, 0.15);
    assert_float_equal(sqrt(squares / 4096), 2, 0.1);
    tpo_params_free(&a, s);
    tpo_params_free(&b, s);
    tpo_stream_close(s);
}

static void orthogonal_starts_are(void **state)
{
    (void)state;
    struct tpo_stream *s = open_stream();
    struct tpo_params p = {0};
    struct tpo_param *wide = tpo_params_declare(&p, TPO_INIT_ORTHOGONAL, 1.5F, TPO_SHAPE(5, 9), "wide");
    struct tpo_param *tall = tpo_params_declare(&p, TPO_INIT_ORTHOGONAL, 1, TPO_SHAPE(9, 5), "tall");
    struct tpo_param *turned = tpo_params_declare(&p, TPO_INIT_ORTHOGONAL, 3, TPO_SHAPE(9, 5), "turned");
    turned->like = wide;
    turned->like_transposed = true;
    assert_int_equal(tpo_params_random(&p, s, 1, NULL), TPO_OK);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            float rows = 0, cols = 0;
            for (int k = 0; k < 9; k++) {
                rows += wide->data[i * 9 + k] * wide->data[j * 9 + k];
                cols += tall->data[k * 5 + i] * tall->data[k * 5 + j];
            }
            assert_float_equal(rows, i == j ? 2.25F : 0, 1e-5);
            assert_float_equal(cols, i == j ? 1 : 0, 1e-5);
        }
    for (int i = 0; i < 9; i++)
        for (int j = 0; j < 5; j++) assert_float_equal(turned->data[i * 5 + j], 2 * wide->data[j * 9 + i], 1e-5);
    tpo_params_free(&p, s);
    tpo_stream_close(s);
}

static int load(struct tpo_params *p, struct tpo_stream *s, const struct tpo_entry *entries, int n, struct tpo_error *err)
{
    assert_int_equal(tpo_safetensors_write("model.safetensors", entries, n, err), TPO_OK);
    return tpo_params_load(p, s, ".", "region", err);
}

static void loads_and_converts(void **state)
{
    (void)state;
    static const float f32[2] = {1.5F, -2};
    static const uint16_t bf16[2] = {0x3fc0, 0xc000}, f16[2] = {0x3e00, 0xc000};
    const struct tpo_entry entries[] = {{.name = "loc_decoder.a", .dtype = TPO_BF16, .n_dims = 1, .shape = {2}, .data = bf16},
                                        {.name = "loc_decoder.b", .dtype = TPO_F16, .n_dims = 1, .shape = {2}, .data = f16},
                                        {.name = "loc_decoder.c", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = f32},
                                        {.name = "lm.of.another.service", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = f32},
                                        {.name = "merge_proj.weight", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = f32}};
    struct tpo_stream *s = open_stream();
    struct tpo_params p = {0};
    struct tpo_error err = {0};
    for (int i = 0; i < 3; i++) tpo_params_declare(&p, TPO_INIT_ZERO, 0, TPO_SHAPE(2), "loc_decoder.%c", "abc"[i]);
    if (load(&p, s, entries, 5, &err) != TPO_OK) fail_msg("%s", err.message);
    for (int i = 0; i < 3; i++) assert_memory_equal(p.items[i]->data, f32, 8);
    tpo_params_free(&p, s);
    tpo_stream_close(s);
}

static void refuses_by_name(void **state)
{
    (void)state;
    static const int64_t data[4];
    const struct {
        struct tpo_entry entries[3];
        int n;
        const char *says;
    } cases[] = {
        {{{.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}}, 1, "loc_decoder.b is missing"},
        {{{.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 1, .shape = {3}, .data = data},
          {.name = "loc_decoder.b", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}},
         2,
         "loc_decoder.a has the wrong shape"},
        {{{.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 2, .shape = {1, 2}, .data = data},
          {.name = "loc_decoder.b", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}},
         2,
         "loc_decoder.a has the wrong shape"},
        {{{.name = "loc_decoder.a", .dtype = TPO_I64, .n_dims = 1, .shape = {2}, .data = data},
          {.name = "loc_decoder.b", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}},
         2,
         "loc_decoder.a has the wrong dtype"},
        {{{.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data},
          {.name = "loc_decoder.b", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data},
          {.name = "loc_decoder.z", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}},
         3,
         "loc_decoder.z is extra"},
        {{{.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data},
          {.name = "loc_decoder.b", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data},
          {.name = "optimizer.z", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}},
         3,
         "optimizer.z is extra"}};
    struct tpo_stream *s = open_stream();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_params p = {0};
        struct tpo_error err = {0};
        tpo_params_declare(&p, TPO_INIT_ZERO, 0, TPO_SHAPE(2), "loc_decoder.a");
        tpo_params_declare(&p, TPO_INIT_ZERO, 0, TPO_SHAPE(2), "loc_decoder.b");
        assert_int_equal(load(&p, s, cases[i].entries, cases[i].n, &err), TPO_FAILED_PRECONDITION);
        if (strstr(err.message, cases[i].says) == NULL) fail_msg("%s", err.message);
        tpo_params_free(&p, s);
    }
    tpo_stream_close(s);
}

static void digest_tells_weights_apart(void **state)
{
    (void)state;
    static float data[2] = {1, 2};
    const struct tpo_entry entries[] = {
        {.name = "loc_decoder.a", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data},
        {.name = "lm.of.another.service", .dtype = TPO_F32, .n_dims = 1, .shape = {2}, .data = data}};
    char one[72], two[72], header[72], told[72];
    assert_int_equal(tpo_safetensors_write("model.safetensors", entries, 1, NULL), TPO_OK);
    assert_int_equal(tpo_params_digest(one, ".", "region", false, NULL), TPO_OK);
    assert_int_equal(tpo_params_digest(header, ".", "region", true, NULL), TPO_OK);
    assert_int_equal(strncmp(header, "header:", 7), 0);
    assert_int_equal(tpo_safetensors_write("model.safetensors", entries, 2, NULL), TPO_OK);
    assert_int_equal(tpo_params_digest(two, ".", "region", false, NULL), TPO_OK);
    assert_string_equal(one, two); /* what others own does not count */
    data[1] = 3;
    assert_int_equal(tpo_safetensors_write("model.safetensors", entries, 2, NULL), TPO_OK);
    assert_int_equal(tpo_params_digest(two, ".", "region", false, NULL), TPO_OK);
    assert_string_not_equal(one, two);
    /* With the manifest of the first data nothing is read. */
    FILE *f = fopen("manifest.json", "w");
    fputs("{\"tensors\":{\"loc_decoder.a\":\"7caa8e99ded4a7a8c3bd8e2ea4c4d7c9b3ad3f7b5bcb5fd5be1fa71e4d7a1c11\"}}", f);
    fclose(f);
    assert_int_equal(tpo_params_digest(told, ".", "region", true, NULL), TPO_OK);
    assert_int_equal(strlen(told), 64);
    assert_string_not_equal(told, two);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void config_is_strict(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says; /* NULL: fine */
    } cases[] = {
        {"{}", NULL},
        {"{\"model_config\":{\"llm\":{\"name\":\"mistral_7b\",\"hidden_size\":256,\"num_attention_heads\":8}},\"torch_dtype\":"
         "\"float32\"}",
         NULL},
        {"{\"model_config\":{\"llm\":{\"hidden_size\":\"256\"}}}", "llm.hidden_size"},
        {"{\"model_config\":{\"llm\":{\"hidden_size\":0}}}", "llm.hidden_size"},
        {"{\"model_config\":{\"llm\":{\"hidden_size\":1e3}}}", "llm.hidden_size"},
        {"{\"model_config\":{\"llm\":{\"hidden_width\":256}}}", "llm.hidden_width"},
        {"{\"model_config\":{\"llm\":{\"use_lora\":1}}}", "llm.use_lora"},
        {"{\"model_config\":{\"llm\":{\"hidden_size\":64,\"hidden_size\":64}}}", "duplicate"},
        {"{\"model_config\":{\"vision_encoder\":{\"img_size\":225}}}", "patch_size"},
        {"{\"model_config\":{\"vision_encoder\":{\"img_size\":4096,\"patch_size\":1,\"num_frames\":257}}}", "more patches"},
        {"{\"model_config\":{\"vision_encoder\":{\"img_size\":1024,\"patch_size\":1,\"num_frames\":1,\"checkpoint_frames\":2}}}",
         "more patches"},
        {"{\"model_config\":{\"vision_encoder\":{\"img_size\":1024,\"patch_size\":1,\"num_frames\":1,\"checkpoint_frames\":1}}}",
         NULL},
        {"{\"model_config\":{\"vision_encoder\":{\"encoder_depth\":1}}}", "return_index"},
        {"{\"model_config\":{\"bridge\":{\"num_attention_heads\":7}}}", "bridge.num_attention_heads"},
        {"{\"model_config\":{\"bridge\":[]}}", "bridge"},
        {"{\"model_config\":{\"heads\":{\"region\":{\"hidden_size\":-1}}}}", "heads.region.hidden_size"},
        {"{\"model_config\":{\"head_context\":\"none\"}}", "head_context"},
        {"{\"model_config\":{\"image_std\":[0,0,0]}}", "image_std"},
        {"{\"model_config\":{\"tasks\":[{\"name\":\"region\"}]}}", "tasks"},
        {"{\"model_config\":{\"tasks\":[{\"name\":\"region\",\"trigger\":\"<x>\",\"slot\":\"<boxes>\",\"vector\":\"box_token\"}]}}",
         "<x> has no id"},
        {"{\"model_config\":{\"lm\":{}}}", "model_config.lm"},
        {"[]", "not an object"},
        {"{", "line 1"},
    };
    struct tpo_config c;
    write_text("added_tokens.json", "{\"<box_begin>\":32000,\"<boxes>\":32003,\"<temp>\":32002,\"<time_begin>\":32001,\"<track_"
                                    "begin>\":32004,\"<track_box>\":32006,\"<tracking>\":32005}");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_error err = {0};
        write_text("config.json", cases[i].text);
        int rc = tpo_config_load(&c, ".", &err);
        assert_int_equal(rc, cases[i].says != NULL ? TPO_INVALID_ARGUMENT : TPO_OK);
        if (cases[i].says != NULL && strstr(err.message, cases[i].says) == NULL) fail_msg("%s: %s", cases[i].text, err.message);
    }
    write_text("config.json", cases[1].text);
    assert_int_equal(tpo_config_load(&c, ".", NULL), TPO_OK);
    assert_int_equal(c.llm.head_dim, 32);
    assert_int_equal(c.bridge.hidden_size, 768);
    assert_int_equal(tpo_config_vit_blocks(&c), 23);
    assert_int_equal(tpo_config_patches(&c), 196);
    assert_int_equal(c.tasks[0].trigger_id, 32000);
    assert_int_equal(tpo_config_load(&c, "nowhere", NULL), TPO_NOT_FOUND);
}

/* A fifo in the place of a file would make an open wait for a writer that never comes. */
static void a_fifo_is_no_file(void **state)
{
    (void)state;
    char hex[TPO_SHA256_HEX], digest[72];
    struct tpo_config c;
    struct tpo_tokenizer *t = NULL;
    struct tpo_error err = {0};
    const float one = 1;
    const struct tpo_entry e = {.name = "box_token", .dtype = TPO_F32, .n_dims = 1, .shape = {1}, .data = &one};
    assert_int_equal(mkfifo("config.json", 0600), 0);
    assert_int_equal(mkfifo("added_tokens.json", 0600), 0);
    assert_int_equal(mkfifo("manifest.json", 0600), 0);
    assert_int_equal(mkfifo("tokenizer.model", 0600), 0);
    assert_int_not_equal(tpo_config_load(&c, ".", &err), TPO_OK);
    assert_int_not_equal(tpo_config_hash(hex, ".", &err), TPO_OK);
    tpo_config_tokens_hash(hex, ".");
    assert_string_equal(hex, "");
    assert_int_not_equal(tpo_tokenizer_open(&t, ".", &err), TPO_OK);
    assert_int_not_equal(tpo_tokenizer_open_model(&t, "tokenizer.model", NULL, 0, &err), TPO_OK);
    assert_int_equal(tpo_safetensors_write("model.safetensors", &e, 1, &err), TPO_OK);
    assert_int_equal(tpo_params_digest(digest, ".", "region", false, &err), TPO_OK); /* as without a manifest */
}

TPO_TESTS(cmocka_unit_test(a_fifo_is_no_file), cmocka_unit_test(a_value_depends_on_seed_and_name),
          cmocka_unit_test(orthogonal_starts_are), cmocka_unit_test(loads_and_converts), cmocka_unit_test(refuses_by_name),
          cmocka_unit_test(digest_tells_weights_apart), cmocka_unit_test(config_is_strict))
