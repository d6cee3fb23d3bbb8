/* The encoder: serving and training agree, clips of any length, bad input, the dense aid's gradient. */
#include "tests/support/test.h"

#include <math.h>

#include "kernels/vector.h"
#include "services/encoder/encoder.h"
#include "services/host/learner_state.h"

#define SIDE    16
#define PATCHES 16
#define QUERIES 6
#define BRIDGE  24

static struct tpo_stream *stream;

static struct tpo_config small(bool extended)
{
    struct tpo_config c;
    tpo_config_default(&c);
    c.vision_encoder.img_size = SIDE;
    c.vision_encoder.patch_size = 4;
    c.vision_encoder.encoder_embed_dim = 32;
    c.vision_encoder.encoder_num_heads = 2;
    c.vision_encoder.encoder_depth = 3;
    c.vision_encoder.num_frames = 4;
    c.vision_encoder.ext_position = extended;
    c.bridge.num_query_token = QUERIES;
    c.bridge.extra_num_query_token = extended ? 0 : 2;
    c.bridge.hidden_size = BRIDGE;
    c.bridge.num_hidden_layers = 3;
    c.bridge.num_attention_heads = 2;
    c.bridge.intermediate_size = 40;
    c.bridge.vocab_size = c.bridge.max_position_embeddings = 4;
    c.bridge.ext_key_position = extended;
    c.bridge.dropout = 0;
    c.bridge.drop_path_rate = 0;
    return c;
}

static struct tpo_encoder *encoder_open(const struct tpo_config *c, int dense)
{
    struct tpo_encoder *e;
    struct tpo_error err = {0};
    if (stream == NULL) assert_int_equal(tpo_stream_open(&stream, "cpu", 1, NULL), TPO_OK);
    if (tpo_encoder_open(&e, stream, c, NULL, dense, 7, &err) != TPO_OK) fail_msg("%s", err.message);
    return e;
}

static uint8_t *pixels_of(int frames, uint64_t key)
{
    const size_t n = (size_t)frames * SIDE * SIDE * 3;
    uint8_t *pixels = malloc(n);
    for (size_t k = 0; k < n; k++) pixels[k] = (uint8_t)tpo_random_u64(key, k);
    return pixels;
}

static bool wants_all(void *plan, const char *name)
{
    (void)plan, (void)name;
    return true;
}

/* What a tubelet of two frames cannot cut is the asker's fault, not a lack of memory. */
static void tubelets_take_whole_ones(void **state)
{
    (void)state;
    struct tpo_config c = small(false);
    struct tpo_error err = {0};
    float visual[(QUERIES + 2) * BRIDGE];
    c.vision_encoder.tubelet_size = 2;
    struct tpo_encoder *e = encoder_open(&c, 0);
    uint8_t *pixels = pixels_of(4, 1);
    assert_int_equal(tpo_encoder_takes(&c, 4, &err), TPO_OK);
    assert_int_equal(tpo_encoder_run(e, visual, pixels, 4, &err), TPO_OK);
    for (int T = 1; T <= 3; T += 2) {
        assert_int_equal(tpo_encoder_takes(&c, T, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "frame_count");
        assert_int_equal(tpo_encoder_run(e, visual, pixels, T, &err), TPO_INVALID_ARGUMENT);
    }
    free(pixels);
    tpo_encoder_close(e);
}

/* A micro-batch of an image and two clips gives every sample the bits that serving gives it alone. */
static void training_equals_serving(void **state)
{
    (void)state;
    const struct tpo_config c = small(true);
    struct tpo_encoder *e = encoder_open(&c, 0);
    struct tpo_tape *t;
    const int frames[] = {1, 3, 3, 2};
    struct tpo_sample samples[4];
    for (int i = 0; i < 4; i++)
        samples[i] =
            (struct tpo_sample){.n_frames = frames[i], .height = SIDE, .width = SIDE, .pixels = pixels_of(frames[i], (uint64_t)i)};
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    struct tpo_forward f = {.samples = samples, .n_samples = 4};
    struct tpo_error err = {0};
    if (tpo_encoder_model(e)->forward(e, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(f.n_outputs, 1);
    assert_string_equal(f.outputs[0].name, "visual");
    const struct tpo_tensor *visual = f.outputs[0].tensor;
    assert_int_equal(visual->rows, 4 * QUERIES);
    assert_int_equal(visual->cols, BRIDGE);
    for (int i = 0; i < 4; i++) {
        float alone[QUERIES * BRIDGE];
        assert_int_equal(tpo_encoder_run(e, alone, samples[i].pixels, frames[i], &err), TPO_OK);
        assert_memory_equal(alone, visual->data + (size_t)i * QUERIES * BRIDGE, sizeof(alone));
        free((void *)samples[i].pixels);
    }
    tpo_tape_close(t);
    tpo_encoder_close(e);
}

/* A training pass where only the tensors of one pattern learn; whether its bits are those of serving. */
static bool runs_as_in_serving(const char *learns, float dropout, float drop_path)
{
    struct tpo_config c = small(true);
    c.bridge.dropout = dropout, c.bridge.drop_path_rate = drop_path;
    struct tpo_encoder *e = encoder_open(&c, 0);
    struct tpo_params *p = tpo_encoder_model(e)->params;
    struct tpo_tape *t;
    struct tpo_error err = {0};
    float served[QUERIES * BRIDGE];
    const struct tpo_sample sample = {.n_frames = 1, .height = SIDE, .width = SIDE, .pixels = pixels_of(1, 5)};
    struct tpo_forward f = {.samples = &sample, .n_samples = 1, .training = true, .noise = 3};
    int n = 0;
    assert_int_equal(tpo_encoder_run(e, served, sample.pixels, 1, &err), TPO_OK);
    for (int i = 0; i < p->n; i++) {
        if (!tpo_pattern_match(learns, p->items[i]->name) || p->items[i]->ignored) continue;
        p->items[i]->grad = calloc((size_t)p->items[i]->size, sizeof(float));
        n++;
    }
    assert_true(n > 0);
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    if (tpo_encoder_model(e)->forward(e, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    const bool equal = memcmp(served, f.outputs[0].tensor->data, sizeof(served)) == 0;
    for (int i = 0; i < p->n; i++) free(p->items[i]->grad);
    free((void *)sample.pixels);
    tpo_tape_close(t);
    tpo_encoder_close(e);
    return equal;
}

/* Dropout and stochastic depth are in what learns and nowhere else. (The first layer's depth is never stochastic.) */
static void frozen_parts_drop_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *learns;
        float dropout, drop_path;
        bool as_serving;
    } cases[] = {{"vision_*", .5F, .5F, true},
                 {"ext.encoder.key_position", .5F, .5F, true},
                 {"query_tokens", 0, .5F, true},
                 {"query_tokens", .5F, 0, false},
                 {"qformer.bert.encoder.layer.0.*", 0, .5F, true},
                 {"qformer.bert.encoder.layer.0.*", .5F, 0, false},
                 {"qformer.bert.encoder.layer.2.crossattention.self.query.bias", 0, .5F, false},
                 {"qformer.bert.encoder.layer.1.intermediate_query.*", 0, .5F, false},
                 {"qformer.*", 0, .5F, false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (runs_as_in_serving(cases[i].learns, cases[i].dropout, cases[i].drop_path) != cases[i].as_serving)
            fail_msg("where %s learns, dropout %g and drop path %g: %s", cases[i].learns, (double)cases[i].dropout,
                     (double)cases[i].drop_path, cases[i].as_serving ? "other bits than serving's" : "nothing is dropped");
}

/* The order of frames matters, and an image is not a clip of itself twice. */
static void frames_have_places(void **state)
{
    (void)state;
    const struct tpo_config c = small(true);
    struct tpo_encoder *e = encoder_open(&c, 0);
    const size_t frame = SIDE * SIDE * 3, bytes = QUERIES * BRIDGE * sizeof(float);
    uint8_t *clip = pixels_of(2, 3), turned[2 * SIDE * SIDE * 3];
    float a[QUERIES * BRIDGE], b[QUERIES * BRIDGE];
    memcpy(turned, clip + frame, frame);
    memcpy(turned + frame, clip, frame);
    assert_int_equal(tpo_encoder_run(e, a, clip, 2, NULL), TPO_OK);
    assert_int_equal(tpo_encoder_run(e, b, turned, 2, NULL), TPO_OK);
    assert_int_not_equal(memcmp(a, b, bytes), 0);
    assert_int_equal(tpo_encoder_run(e, b, clip, 2, NULL), TPO_OK);
    assert_memory_equal(a, b, bytes);
    free(clip);
    tpo_encoder_close(e);
}

static void frame_counts_are_checked(void **state)
{
    (void)state;
    uint8_t *clip = pixels_of(5, 3);
    float rows[(QUERIES + 2) * BRIDGE];
    for (int extended = 0; extended < 2; extended++) {
        const struct tpo_config c = small(extended != 0);
        struct tpo_encoder *e = encoder_open(&c, 0);
        for (int T = 0; T <= 5; T++) {
            const bool fine = T == 1 || T == 4 || (extended != 0 && (T == 2 || T == 3));
            struct tpo_error err = {0};
            assert_int_equal(tpo_encoder_run(e, rows, clip, T, &err), fine ? TPO_OK : TPO_INVALID_ARGUMENT);
            if (!fine) assert_string_equal(err.reason, "frame_count");
        }
        tpo_encoder_close(e);
    }
    free(clip);
}

static float dense_of(struct tpo_encoder *e, struct tpo_tape *t, const struct tpo_sample *samples, int n, bool record)
{
    struct tpo_error err = {0};
    struct tpo_forward f = {.samples = samples, .n_samples = n, .wants_loss = wants_all};
    tpo_tape_reset(t, record);
    if (tpo_encoder_model(e)->forward(e, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(f.n_losses, 1);
    const float value = tpo_value(t, f.losses[0].tensor);
    const struct tpo_tensor *visual = f.outputs[0].tensor;
    float upstream[2 * QUERIES * BRIDGE];
    double sum = 0;
    assert_int_equal(visual->rows * visual->cols, 2 * QUERIES * BRIDGE);
    for (int k = 0; k < 2 * QUERIES * BRIDGE; k++) {
        upstream[k] = 0.3F * sinf((float)k);
        sum += (double)upstream[k] * (double)visual->data[k];
    }
    if (record) {
        tpo_seed(t, f.losses[0].tensor, NULL, 1);
        tpo_seed(t, f.outputs[0].tensor, upstream, 1);
        assert_int_equal(tpo_tape_backward(t), TPO_OK);
    }
    return value + (float)sum;
}

/* An image and a clip with targets: the largest entry of every tensor's gradient against a difference quotient. */
static void dense_gradients(void **state)
{
    (void)state;
    const struct tpo_config c = small(true);
    struct tpo_encoder *e = encoder_open(&c, 1);
    struct tpo_params *p = tpo_encoder_model(e)->params;
    struct tpo_tape *t;
    int32_t labels[3 * PATCHES * TPO_DENSE_ATTRIBUTES];
    float boxes[3 * PATCHES * 4];
    for (int k = 0; k < 3 * PATCHES * TPO_DENSE_ATTRIBUTES; k++) labels[k] = k % 3 == 0 ? -100 : k % 7;
    for (int k = 0; k < 3 * PATCHES * 4; k++) boxes[k] = tpo_random(1, (uint64_t)k);
    const struct tpo_named_tensor image[] = {
        {.name = "dense.attributes", .dtype = TPO_I32, .n_dims = 2, .shape = {PATCHES, 4}, .data = labels},
        {.name = "dense.boxes", .dtype = TPO_F32, .n_dims = 2, .shape = {PATCHES, 4}, .data = boxes}};
    const struct tpo_named_tensor clip[] = {
        {.name = "dense.attributes", .dtype = TPO_I32, .n_dims = 2, .shape = {3 * PATCHES, 5}, .data = labels},
        {.name = "dense.boxes", .dtype = TPO_F32, .n_dims = 2, .shape = {3 * PATCHES, 4}, .data = boxes}};
    const struct tpo_sample samples[] = {
        {.n_frames = 1, .height = SIDE, .width = SIDE, .pixels = pixels_of(1, 1), .n_targets = 2, .targets = image},
        {.n_frames = 3, .height = SIDE, .width = SIDE, .pixels = pixels_of(3, 2), .n_targets = 2, .targets = clip}};
    for (int i = 0; i < p->n; i++)
        p->items[i]->grad = p->items[i]->ignored ? NULL : calloc((size_t)p->items[i]->size, sizeof(float));
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    dense_of(e, t, samples, 2, true);
    int checked = 0;
    for (int i = 0; i < p->n; i++) {
        struct tpo_param *x = p->items[i];
        if (x->grad == NULL) continue;
        int64_t at = 0;
        for (int64_t k = 1; k < x->size; k++)
            if (fabsf(x->grad[k]) > fabsf(x->grad[at])) at = k;
        if (fabsf(x->grad[at]) < 3e-3F) continue; /* key biases, whose gradient is none */
        const float kept = x->data[at], h = 4e-3F;
        x->data[at] = kept + h;
        const float high = dense_of(e, t, samples, 2, false);
        x->data[at] = kept - h;
        const float low = dense_of(e, t, samples, 2, false);
        x->data[at] = kept;
        const float expected = (high - low) / (2 * h);
        if (fabsf(expected - x->grad[at]) > 4e-3F + 0.05F * fabsf(x->grad[at]))
            fail_msg("%s[%lld]: difference quotient %g, gradient %g", x->name, (long long)at, (double)expected,
                     (double)x->grad[at]);
        checked++;
    }
    assert_true(checked > 50);
    for (int i = 0; i < p->n; i++) free(p->items[i]->grad);
    for (int i = 0; i < 2; i++) free((void *)samples[i].pixels);
    tpo_tape_close(t);
    tpo_encoder_close(e);
}

static void bad_samples_are_named(void **state)
{
    (void)state;
    const struct tpo_config c = small(true);
    struct tpo_encoder *e = encoder_open(&c, 1);
    struct tpo_tape *t;
    uint8_t *pixels = pixels_of(1, 1);
    int32_t labels[PATCHES * 4] = {0};
    const struct tpo_named_tensor misshapen = {
        .name = "dense.attributes", .dtype = TPO_I32, .n_dims = 2, .shape = {PATCHES - 1, 4}, .data = labels};
    const struct tpo_sample samples[] = {
        {.n_frames = 1, .height = SIDE, .width = SIDE, .pixels = pixels},
        {.n_frames = 1, .height = SIDE, .width = SIDE, .pixels = pixels, .n_targets = 1, .targets = &misshapen},
        {.n_frames = 1, .height = SIDE, .width = SIDE},
        {.n_frames = 1, .height = SIDE / 2, .width = SIDE, .pixels = pixels},
        {.n_frames = 9, .height = SIDE, .width = SIDE, .pixels = pixels}};
    const char *const reasons[] = {"dense_targets", "dense_targets", "sample_pixels", "sample_pixels", "frame_count"};
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    for (int i = 0; i < 5; i++) {
        struct tpo_forward f = {.samples = &samples[i], .n_samples = 1, .wants_loss = wants_all};
        struct tpo_error err = {0};
        tpo_tape_reset(t, true);
        assert_int_equal(tpo_encoder_model(e)->forward(e, t, &f, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, reasons[i]);
    }
    free(pixels);
    tpo_tape_close(t);
    tpo_encoder_close(e);
}

TPO_TESTS(cmocka_unit_test(tubelets_take_whole_ones), cmocka_unit_test(training_equals_serving),
          cmocka_unit_test(frozen_parts_drop_nothing), cmocka_unit_test(frames_have_places),
          cmocka_unit_test(frame_counts_are_checked), cmocka_unit_test(dense_gradients), cmocka_unit_test(bad_samples_are_named))
