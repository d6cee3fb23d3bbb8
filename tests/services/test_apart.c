/* Proves that callers of the kernels never touch what belongs to a device: everything that trains and answers runs on one whose memory the host
 * cannot read, to the CPU's bits. */
#include "tests/support/test.h"

#include <unistd.h>

#include "common/sha256.h"
#include "services/encoder/encoder.h"
#include "services/host/learner.h"
#include "tests/support/apart.h"
#include "tests/support/training.h"
#include "trainer/eval/asker.h"
#include "trainer/steps/train.h"

static struct tpo_stream *cpu, *apart;

static void open_both(void)
{
    struct tpo_error err = {0};
    if (tpo_stream_open(&cpu, "cpu", 2, &err) != TPO_OK || tpo_apart_open(&apart, 2, &err) != TPO_OK) fail_msg("%s", err.message);
}

/* Every loss and aid, both optimisers, adapters and dropout, two steps at the small model's size. */
static void recipe_write(void)
{
    char target[4096];
    FILE *f = fopen("all.yaml", "w");
    snprintf(target, sizeof(target), "%s/trainer/recipes/lora", tpo_test_source());
    assert_int_equal(symlink(target, "lora"), 0);
    assert_non_null(f);
    fputs("name: test\nseed: 3\nmodel: lora\nstages:\n"
          "  - name: all\n    steps: 2\n    warmup: 1\n    micro_batches: 2\n"
          "    data:\n      - {frames: 2, samples: 1, conversations: 4, aids: all, dense: true, slots: true}\n"
          "    losses: {language: 1, region: 1, attention: 1, dense: .3, slot: .3}\n    groups:\n"
          "      - {name: qkv, optimiser: muon, rate: 1e-3, momentum: .9, split: 3, tensors: "
          "[\"vision_encoder.*.attn.qkv.weight\"]}\n"
          "      - {name: rest, optimiser: adamw, rate: 1e-3, tensors: [\"*\"]}\n",
          f);
    fclose(f);
}

static void train_on(struct tpo_stream *s, const char *out)
{
    struct tpo_error err = {0};
    const struct tpo_train_options o = {.recipe = "all.yaml",
                                        .out = out,
                                        .model = "",
                                        .data = "",
                                        .mesh = "",
                                        .stream = s,
                                        .threads = 2,
                                        .checkpoint_every = 1,
                                        .log_every = 1,
                                        .quiet = true};
    if (tpo_train(&o, &err) != TPO_OK) fail_msg("%s", err.message);
}

static void training_stays_on_the_device(void **state)
{
    (void)state;
    open_both();
    recipe_write();
    train_on(cpu, "host");
    train_on(apart, "device");
    training_same_model("host", "device", "1-all");
    tpo_stream_close(cpu);
    tpo_stream_close(apart);
}

static void answers_come_from_the_device(void **state)
{
    (void)state;
    enum { N = 6 };
    struct tpo_error err = {0};
    struct tpo_arena arena;
    struct tpo_world *w = NULL;
    struct tpo_asker *askers[2] = {NULL};
    static struct tpo_world_item items[N];
    static struct tpo_asker_answer answers[2][N];
    char folder[4096];
    const struct tpo_world_options options = {.split = TPO_WORLD_HELD_OUT, .seed = tpo_world_first_seed(TPO_WORLD_HELD_OUT) + 3};
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    open_both();
    tpo_arena_init(&arena, 1 << 20, 0);
    assert_int_equal(tpo_world_open(&w, &options, &err), TPO_OK);
    for (int i = 0; i < N; i++)
        assert_int_equal(tpo_world_item(w, &arena, i, i % 2 == 0 ? 1 : 4, TPO_WORLD_ANY_PHRASING, (uint64_t)i, &items[i], &err),
                         TPO_OK);
    for (int k = 0; k < 2; k++) {
        if (tpo_asker_open(&askers[k], k == 0 ? cpu : apart, folder, &err) != TPO_OK) fail_msg("%s", err.message);
        assert_int_equal(tpo_asker_run(askers[k], items, N, answers[k], NULL, &err), TPO_OK);
    }
    for (int i = 0; i < N; i++) {
        assert_string_equal(answers[1][i].text, answers[0][i].text);
        assert_memory_equal(answers[1][i].box, answers[0][i].box, sizeof(answers[0][i].box));
    }
    for (int k = 0; k < 2; k++) tpo_asker_close(askers[k]);
    tpo_world_close(w);
    tpo_arena_free(&arena);
    tpo_stream_close(cpu);
    tpo_stream_close(apart);
}

/* What a learner says it holds is what lies on the device, also where that is bf16. */
static void bf16_weights_are_known_by_their_digest(void **state)
{
    (void)state;
    struct tpo_config config;
    struct tpo_error err = {0};
    struct tpo_encoder *plain, *half;
    struct tpo_learner l;
    struct tpo_begun begun;
    const struct tpo_plan plan = {.seed = 1, .lanes = 1, .micro_batches = 1};
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    open_both();
    if (tpo_config_load(&config, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(tpo_encoder_open(&plain, cpu, &config, folder, 0, 0, &err), TPO_OK);
    config.keep_bf16 = true;
    if (tpo_encoder_open(&half, apart, &config, folder, 0, 0, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(tpo_learner_open_direct(&l, tpo_encoder_model(half), apart, &err), TPO_OK);
    assert_int_equal(l.begin(l.self, "run", &plan, &begun, &err), TPO_OK);
    int n_half = 0;
    for (int i = 0; i < tpo_encoder_model(plain)->params->n; i++) {
        const struct tpo_param *p = tpo_encoder_model(plain)->params->items[i];
        struct tpo_chunk c = {.name = p->name, .part = "start", .n_dims = p->n_dims};
        uint8_t digest[TPO_SHA256_BYTES];
        bool held = false;
        if (p->ignored) continue;
        memcpy(c.shape, p->shape, sizeof(c.shape));
        tpo_sha256(digest, p->data, (size_t)p->size * sizeof(float));
        assert_int_equal(l.holds(l.self, &c, digest, &held, &err), TPO_OK);
        assert_true(held);
        digest[0] ^= 1;
        assert_int_equal(l.holds(l.self, &c, digest, &held, &err), TPO_OK);
        assert_false(held);
        n_half += tpo_encoder_model(half)->params->items[i]->half != NULL;
    }
    assert_true(n_half > 0);
    l.close(l.self);
    tpo_encoder_close(half);
    tpo_encoder_close(plain);
    tpo_stream_close(cpu);
    tpo_stream_close(apart);
}

TPO_TESTS(cmocka_unit_test(training_stays_on_the_device), cmocka_unit_test(answers_come_from_the_device),
          cmocka_unit_test(bf16_weights_are_known_by_their_digest))
