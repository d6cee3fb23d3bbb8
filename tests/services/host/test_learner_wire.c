/* The learner's messages: what is packed, sent as bytes and unpacked is what was there; what a stranger could have written is refused. */
#include "tests/support/test.h"

#include "services/host/learner_wire.h"

static const float boxes[2][4] = {{.1f, .2f, .3f, .4f}, {0, 0, 1, 1}}, slots[6] = {0, .25f, .75f, 0, 0, 0};
static const struct tpo_turn turns[] = {{"Where is the {box}?", "<box_begin><boxes>"}, {"How many?", "3"}};
static const struct tpo_attention_target looks[] = {
    {.layer = 4, .head = 1, .weight = .5f, .from = TPO_AT_WORD, .from_offset = 4, .to = TPO_AT_SLOTS, .slots = slots, .n_slots = 6},
    {.layer = 1, .head = 0, .weight = 1, .from = TPO_AT_ANSWER, .to = TPO_AT_WORD, .to_offset = 3}};
static const int32_t words[4] = {1, -100, 7, 9};
static uint8_t pixels[2 * 3 * 4 * 3];

static struct tpo_sample sample_of(struct tpo_conversation *c, struct tpo_named_tensor *target)
{
    *c = (struct tpo_conversation){.system = "Be brief.",
                                   .n_turns = 2,
                                   .turns = turns,
                                   .n_user_boxes = 1,
                                   .user_boxes = boxes,
                                   .n_boxes = 2,
                                   .boxes = boxes,
                                   .weight = 1,
                                   .weight_end = .2f,
                                   .n_attention = 2,
                                   .attention = looks};
    *target = (struct tpo_named_tensor){.name = "slot.words", .dtype = TPO_I32, .n_dims = 2, .shape = {2, 2}, .data = words};
    for (size_t i = 0; i < sizeof(pixels); i++) pixels[i] = (uint8_t)(i * 7);
    return (struct tpo_sample){.n_frames = 2,
                               .height = 3,
                               .width = 4,
                               .pixels = pixels,
                               .next_media_id = "ab",
                               .n_conversations = 1,
                               .conversations = c,
                               .n_targets = 1,
                               .targets = target};
}

/* Through bytes, as on the wire. */
static Tpo__V1__ForwardRequest *sent(struct tpo_arena *a, const struct tpo_sample *s, bool with_pixels)
{
    Tpo__V1__ForwardRequest m = TPO__V1__FORWARD_REQUEST__INIT;
    m.n_samples = 1;
    m.samples = tpo_samples_pack(a, s, 1, with_pixels);
    assert_non_null(m.samples);
    const size_t n = protobuf_c_message_get_packed_size(&m.base);
    uint8_t *bytes = malloc(n);
    assert_int_equal(protobuf_c_message_pack(&m.base, bytes), n);
    Tpo__V1__ForwardRequest *back = tpo__v1__forward_request__unpack(NULL, n, bytes);
    assert_non_null(back);
    free(bytes);
    return back;
}

static int received(const struct tpo_sample **out, struct tpo_arena *a, Tpo__V1__ForwardRequest *m)
{
    struct tpo_error err = {0};
    const int rc = tpo_samples_unpack(out, a, m->samples, m->n_samples, &err);
    if (rc != TPO_OK) assert_string_equal(err.reason, "learner");
    return rc;
}

static void a_sample_survives(void **state)
{
    (void)state;
    struct tpo_arena a;
    struct tpo_conversation c;
    struct tpo_named_tensor target;
    const struct tpo_sample s = sample_of(&c, &target), *x;
    tpo_arena_init(&a, 4096, 0);
    for (int with_pixels = 0; with_pixels < 2; with_pixels++) {
        Tpo__V1__ForwardRequest *m = sent(&a, &s, with_pixels == 1);
        assert_int_equal(received(&x, &a, m), TPO_OK);
        assert_int_equal(x->n_frames, 2);
        if (with_pixels == 1) {
            assert_int_equal(x->height * 10 + x->width, 34);
            assert_memory_equal(x->pixels, pixels, sizeof(pixels));
        } else {
            assert_null(x->pixels);
        }
        assert_null(x->media_id);
        assert_string_equal(x->next_media_id, "ab");
        const struct tpo_conversation *y = &x->conversations[0];
        assert_string_equal(y->system, "Be brief.");
        assert_int_equal(y->n_turns, 2);
        assert_string_equal(y->turns[1].answer, "3");
        assert_memory_equal(y->user_boxes, boxes, sizeof(boxes[0]));
        assert_memory_equal(y->boxes, boxes, sizeof(boxes));
        assert_true(y->weight == 1 && y->weight_end == .2f);
        assert_int_equal(y->n_attention, 2);
        assert_memory_equal(y->attention[0].slots, slots, sizeof(slots));
        assert_int_equal(y->attention[0].n_slots, 6);
        assert_null(y->attention[1].slots);
        assert_int_equal(y->attention[1].to_offset, 3);
        assert_string_equal(x->targets[0].name, "slot.words");
        assert_memory_equal(x->targets[0].data, words, sizeof(words));
        assert_int_equal((uintptr_t)x->targets[0].data % 64, 0);
        tpo__v1__forward_request__free_unpacked(m, NULL);
    }
    tpo_arena_free(&a);
}

typedef void damage(Tpo__V1__Sample *s);
static void short_pixels(Tpo__V1__Sample *s)
{
    s->pixels->data.len--;
}
static void four_channels(Tpo__V1__Sample *s)
{
    s->pixels->shape[3] = 4, s->pixels->shape[2] = 3;
}
static void negative_shape(Tpo__V1__Sample *s)
{
    s->pixels->shape[0] = -2;
}
static void huge_shape(Tpo__V1__Sample *s)
{
    s->pixels->shape[0] = s->pixels->shape[1] = s->pixels->shape[2] = 1 << 30;
}
static void float_pixels(Tpo__V1__Sample *s)
{
    s->pixels->dtype = TPO__V1__DTYPE__DTYPE_F32;
}
static void unknown_type(Tpo__V1__Sample *s)
{
    s->targets[0]->tensor->dtype = 99;
}
static void box_outside(Tpo__V1__Sample *s)
{
    s->conversations[0]->targets[0]->x1 = 1.5f;
}
static void box_of_nothing(Tpo__V1__Sample *s)
{
    s->conversations[0]->boxes[0]->y0 = 0.0f / 0.0f;
}
static void no_turns(Tpo__V1__Sample *s)
{
    s->conversations[0]->n_turns = 0;
}
static void endless_weight(Tpo__V1__Sample *s)
{
    s->conversations[0]->weight = 1.0f / 0.0f;
}
static void word_past_the_end(Tpo__V1__Sample *s)
{
    s->conversations[0]->attention[0]->from_offset = 1000;
}
static void word_past_the_answer(Tpo__V1__Sample *s)
{
    s->conversations[0]->attention[1]->from_offset = 1000;
}
static void unknown_place(Tpo__V1__Sample *s)
{
    s->conversations[0]->attention[0]->to = 17;
}
static void augmented(Tpo__V1__Sample *s)
{
    s->augmentation = (char *)"flip";
}
static void negative_slot(Tpo__V1__Sample *s)
{
    s->conversations[0]->attention[0]->slots[2] = -1;
}

static void what_a_stranger_writes_is_refused(void **state)
{
    (void)state;
    static damage *const damages[] = {short_pixels,      four_channels,        negative_shape, huge_shape, float_pixels,
                                      unknown_type,      box_outside,          box_of_nothing, no_turns,   endless_weight,
                                      word_past_the_end, word_past_the_answer, unknown_place,  augmented,  negative_slot};
    struct tpo_arena a;
    struct tpo_conversation c;
    struct tpo_named_tensor target;
    const struct tpo_sample s = sample_of(&c, &target), *x;
    tpo_arena_init(&a, 4096, 0);
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        Tpo__V1__ForwardRequest *m = sent(&a, &s, true);
        const size_t length = m->samples[0]->pixels->data.len, n_turns = m->samples[0]->conversations[0]->n_turns;
        damages[i](m->samples[0]);
        if (received(&x, &a, m) != TPO_INVALID_ARGUMENT) fail_msg("damage %zu was taken", i);
        m->samples[0]->pixels->data.len = length;
        m->samples[0]->augmentation = (char *)protobuf_c_empty_string;
        m->samples[0]->conversations[0]->n_turns = n_turns;
        tpo__v1__forward_request__free_unpacked(m, NULL);
    }
    tpo_arena_free(&a);
}

static void a_plan_survives(void **state)
{
    (void)state;
    static const char *const patterns[] = {"a.*", "b"};
    const struct tpo_group groups[] = {
        {.name = "one",
         .patterns = patterns,
         .n_patterns = 2,
         .optimiser = TPO_MUON,
         .beta1 = .95f,
         .weight_decay = .05f,
         .split = 3},
        {.name = "two", .patterns = patterns, .n_patterns = 1, .beta1 = .9f, .beta2 = .98f, .eps = 1e-8f, .clipped = true}};
    const struct tpo_loss_weight losses[] = {{"region", 1.5f}};
    const struct tpo_plan plan = {.seed = 1ULL << 60,
                                  .lanes = 4,
                                  .micro_batches = 8,
                                  .first_lane = 2,
                                  .own_lanes = 2,
                                  .groups = groups,
                                  .n_groups = 2,
                                  .losses = losses,
                                  .n_losses = 1};
    struct tpo_arena a;
    struct tpo_plan back;
    struct tpo_error err = {0};
    tpo_arena_init(&a, 4096, 0);
    Tpo__V1__Plan *m = tpo_plan_pack(&a, &plan);
    assert_int_equal(tpo_plan_unpack(&back, &a, m, &err), TPO_OK);
    assert_true(back.seed == plan.seed && back.lanes == 4 && back.micro_batches == 8 && back.first_lane == 2 &&
                back.own_lanes == 2);
    assert_int_equal(back.groups[0].optimiser, TPO_MUON);
    assert_int_equal(back.groups[0].split, 3);
    assert_string_equal(back.groups[0].patterns[1], "b");
    assert_true(back.groups[1].clipped && back.groups[1].eps == 1e-8f);
    assert_true(back.losses[0].weight == 1.5f);
    m->groups[1]->beta2 = 1;
    assert_int_equal(tpo_plan_unpack(&back, &a, m, &err), TPO_INVALID_ARGUMENT);
    m->groups[1]->beta2 = .9f;
    m->groups[0]->optimiser = "sgd";
    assert_int_equal(tpo_plan_unpack(&back, &a, m, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(tpo_plan_unpack(&back, &a, NULL, &err), TPO_INVALID_ARGUMENT);
    tpo_arena_free(&a);
}

TPO_TESTS(cmocka_unit_test(a_sample_survives), cmocka_unit_test(what_a_stranger_writes_is_refused),
          cmocka_unit_test(a_plan_survives))
