/* Samples: conversations with aids that point where they should, targets true to the pixels. */
#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"

static int fake_word_id(void *owner, const char *word)
{
    (void)owner;
    return (int)strlen(word) * 1000 + word[0];
}

static struct tpo_world *open_world(void)
{
    struct tpo_world *w = NULL;
    assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){TPO_WORLD_TRAIN, 11, 0}, NULL), TPO_OK);
    return w;
}

static struct tpo_world_draw full_draw(int n_frames)
{
    struct tpo_world_draw d;
    tpo_world_draw_default(&d, n_frames);
    d.dense = d.slots = true;
    d.word_id = fake_word_id;
    return d;
}

static const struct tpo_named_tensor *target(const struct tpo_sample *s, const char *name)
{
    for (int i = 0; i < s->n_targets; i++) {
        if (strcmp(s->targets[i].name, name) == 0) return &s->targets[i];
    }
    fail_msg("no %s", name);
    return NULL;
}

/* Mass on a slot only where its cell meets the box; all of it sums to 1. */
static void check_slots(const float *slots, int n_slots, const float box[4])
{
    const float high = 8 / (float)n_slots;
    float sum = 0;
    for (int q = 0; q < n_slots; q++) {
        float x = (float)(q % 8) / 8, y = (float)(q / 8) * high;
        sum += slots[q];
        assert_true(slots[q] >= 0);
        if (box != NULL && slots[q] > 0) assert_true(x < box[2] && x + .125f > box[0] && y < box[3] && y + high > box[1]);
    }
    assert_true(fabsf(sum - 1) < 1e-4f);
}

/* "a red ball moving up, an orange cup moving left and a red cup standing still.": each word but articles and "and"; 0 for other answers. */
static int words_told(const char *answer)
{
    char text[1024];
    int n = 0;
    snprintf(text, sizeof(text), "%s", answer);
    if (strchr(text, ' ') == NULL) return 0;
    for (char *save, *word = strtok_r(text, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save))
        n += strcmp(word, "a") != 0 && strcmp(word, "an") != 0 && strcmp(word, "and") != 0;
    return n;
}

static void check_attention(const struct tpo_conversation *c)
{
    const char *text = c->turns->question;
    int vectors = 0, answers = 0, letters = 0, chosen = 0, told = 0;
    float counted = 0, rest = 0;
    for (int i = 0; i < c->n_attention; i++) {
        const struct tpo_attention_target *a = &c->attention[i];
        assert_true(a->layer >= 0 && a->layer < 6 && a->head >= 0 && a->head < 4);
        if (a->to == TPO_AT_SLOTS) check_slots(a->slots, a->n_slots, a->from == TPO_AT_VECTOR ? c->boxes[0] : NULL);
        if (a->from == TPO_AT_VECTOR) {
            vectors++;
            assert_true(a->layer == 4 && a->head == 0 && a->weight == 1);
        } else if (a->to == TPO_AT_SLOTS && a->from == TPO_AT_WORD) {
            struct oracle_noun n;
            assert_true(a->layer == 2 && a->head == 0);
            const struct tpo_scene empty = {0};
            const char *end = oracle_read(text + a->from_offset, &empty, &n);
            assert_true(end != NULL && text[a->from_offset - 1] == ' ');
        } else if (a->to == TPO_AT_WORD && a->layer == 4) {
            /* A count's rest, on the noun; with what the objects get it makes one. */
            assert_true(a->from == TPO_AT_ANSWER && a->head == 1 && text[a->to_offset - 1] == ' ');
            rest += a->weight;
        } else if (a->to == TPO_AT_WORD && a->from == TPO_AT_WORD) {
            letters++;
            assert_true(text[a->to_offset] == '(' && a->from_offset == a->to_offset + 4);
        } else if (a->to == TPO_AT_WORD) {
            chosen++;
            assert_int_equal(text[a->to_offset - 3], c->turns->answer[1]); /* "(B) " before it */
        } else if (a->layer == 4 && a->head == 2) {
            /* A word of a description. */
            const char before = a->from_offset > 0 ? c->turns->answer[a->from_offset - 1] : 0;
            told++;
            assert_true(a->from == TPO_AT_ANSWER && a->weight == .5f && before == ' ');
        } else {
            answers++;
            assert_true(a->layer == 4 && a->head <= 1);
            if (a->head == 1) counted += a->weight;
        }
    }
    bool choice = strstr(text, "(A) ") != NULL;
    if (counted + rest > 0) assert_float_equal(counted + rest, 1, 1e-6f);
    if (c->turns->answer[0] >= '0' && c->turns->answer[0] <= '8') { /* the noun gets as much as four objects */
        const float n = (float)(c->turns->answer[0] - '0');
        assert_float_equal(counted, n / (n + 4), 1e-5f);
    }
    assert_int_equal(vectors, c->n_boxes);
    assert_int_equal(chosen, choice);
    assert_true(choice ? letters >= 2 : letters == 0);
    assert_true(answers <= 1);
    assert_int_equal(told, words_told(c->turns->answer));
}

static void aids_point_where_they_should(void **state)
{
    (void)state;
    struct tpo_world *w = open_world();
    for (int n_frames = 1; n_frames <= 4; n_frames += 3) {
        struct tpo_world_batch b = {0};
        struct tpo_world_draw d = full_draw(n_frames);
        if (n_frames > 1) d.n_slots = 64;
        assert_int_equal(tpo_world_batch_fill(&b, w, &d, 0, 150, 2, NULL), TPO_OK);
        int boxes = 0;
        for (int i = 0; i < b.n; i++) {
            assert_int_equal(b.samples[i].n_conversations, d.n_conversations);
            for (int c = 0; c < b.samples[i].n_conversations; c++) {
                const struct tpo_conversation *q = &b.samples[i].conversations[c];
                check_attention(q);
                boxes += q->n_boxes;
                assert_int_equal(q->n_boxes, strcmp(q->turns->answer, "<box_begin><boxes>") == 0);
                assert_true(q->weight_end == .2f && q->weight == (strlen(q->turns->answer) > 24 ? .5f : 1));
            }
        }
        assert_true(boxes > b.n);
        tpo_world_batch_free(&b);
    }
    tpo_world_close(w);
}

static void aids_and_kinds_can_be_left_out(void **state)
{
    (void)state;
    struct tpo_world *w = open_world();
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int keep = 0; keep < 3; keep++) {
        for (int aids = 0; aids < 3; aids++) {
            struct tpo_world_draw d;
            tpo_world_draw_default(&d, 1);
            tpo_world_mix_keep(d.mix, keep);
            d.aids = aids;
            int boxes = 0, text = 0, aided_boxes = 0, aided_text = 0;
            for (uint64_t i = 0; i < 40; i++) {
                struct tpo_sample s;
                tpo_arena_reset(&arena);
                assert_int_equal(tpo_world_sample(w, &arena, &d, i, &s, NULL), TPO_OK);
                assert_int_equal(s.n_targets, 0);
                for (int c = 0; c < s.n_conversations; c++) {
                    const struct tpo_conversation *q = &s.conversations[c];
                    boxes += q->n_boxes, text += !q->n_boxes;
                    *(q->n_boxes ? &aided_boxes : &aided_text) += q->n_attention > 0;
                }
            }
            assert_int_equal(boxes > 0, keep != TPO_WORLD_KEEP_TEXT);
            assert_int_equal(text > 0, keep != TPO_WORLD_KEEP_BOXES);
            assert_int_equal(aided_boxes, aids == TPO_WORLD_AIDS_ALL ? boxes : 0);
            assert_int_equal(aided_text > 0, aids != TPO_WORLD_AIDS_NONE && text > 0);
        }
    }
    struct tpo_world_draw bad = full_draw(1);
    struct tpo_sample s;
    bad.word_id = NULL;
    assert_int_equal(tpo_world_sample(w, &arena, &bad, 0, &s, NULL), TPO_INVALID_ARGUMENT);
    bad = full_draw(9);
    assert_int_equal(tpo_world_sample(w, &arena, &bad, 0, &s, NULL), TPO_INVALID_ARGUMENT);
    /* Query tokens that are no grid are refused where aids need one, and only there. */
    static const int no_grids[] = {0, 4, 36, 40 /* rows of 19.2 pixels */, 8 * 97};
    for (int i = 0; i < 5; i++) {
        bad = full_draw(1);
        bad.n_slots = no_grids[i];
        assert_int_equal(tpo_world_sample(w, &arena, &bad, 0, &s, NULL), TPO_INVALID_ARGUMENT);
        bad.aids = TPO_WORLD_AIDS_NONE;
        bad.slots = false;
        assert_int_equal(tpo_world_sample(w, &arena, &bad, 0, &s, NULL), TPO_OK);
    }
    tpo_arena_free(&arena);
    tpo_arena_init(&arena, 1 << 12, 1 << 16);
    bad = full_draw(4);
    assert_int_equal(tpo_world_sample(w, &arena, &bad, 0, &s, NULL), TPO_ENOMEM);
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static bool is_aid(const struct tpo_attention_target *a, enum tpo_world_aid aid)
{
    const bool slots = a->to == TPO_AT_SLOTS, noun = slots && a->from == TPO_AT_WORD, count = a->layer == 4 && a->head == 1;
    if (aid == TPO_WORLD_AID_NOUN) return noun;
    const bool told = a->layer == 4 && a->head == 2;
    if (aid == TPO_WORLD_AID_COUNT) return count;
    if (aid == TPO_WORLD_AID_TOLD) return told;
    return aid == TPO_WORLD_AID_CHOICE ? !slots && !count : slots && !noun && !count && !told;
}

static void each_aid_can_be_left_out_alone(void **state)
{
    (void)state;
    static const enum tpo_world_aid aids[] = {TPO_WORLD_AID_TARGET, TPO_WORLD_AID_NOUN, TPO_WORLD_AID_COUNT, TPO_WORLD_AID_CHOICE,
                                              TPO_WORLD_AID_TOLD};
    struct tpo_world *w = open_world();
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int without = 0; without < 5; without++) {
        struct tpo_world_draw d;
        int n[5] = {0};
        tpo_world_draw_default(&d, 1);
        d.without = aids[without];
        for (uint64_t i = 0; i < 40; i++) {
            struct tpo_sample s;
            tpo_arena_reset(&arena);
            assert_int_equal(tpo_world_sample(w, &arena, &d, i, &s, NULL), TPO_OK);
            for (int c = 0; c < s.n_conversations; c++)
                for (int t = 0; t < s.conversations[c].n_attention; t++)
                    for (int k = 0; k < 5; k++) n[k] += is_aid(&s.conversations[c].attention[t], aids[k]);
        }
        for (int k = 0; k < 5; k++) assert_int_equal(n[k] > 0, k != without);
    }
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static int hard_of(const struct tpo_world *w, float outermost, int *relations)
{
    struct tpo_view v;
    struct tpo_arena arena;
    int hard = 0;
    tpo_arena_init(&arena, 1 << 20, 0);
    assert_int_equal(tpo_view_alloc(&v, w, &arena, 1), TPO_OK);
    *relations = 0;
    for (uint64_t i = 0; i < 600; i++) {
        struct tpo_asked q;
        tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, 4);
        v.facts.outermost_kept = outermost;
        struct tpo_rng r = {tpo_rng_key(v.key, 3000)};
        if (!tpo_ask_expression(&q, &v.facts, &r, TPO_KIND_RELATION_BOX)) continue;
        (*relations)++;
        hard += q.hard;
    }
    tpo_arena_free(&arena);
    return hard;
}

static void fewer_outermost_targets_leave_more_hard_ones(void **state)
{
    (void)state;
    struct tpo_world *w = open_world();
    int few, many, none;
    const int hard_few = hard_of(w, .05f, &few), hard_many = hard_of(w, .2f, &many), hard_none = hard_of(w, 0, &none);
    printf("hard: %d of %d at .05, %d of %d at .2, %d of %d at 0\n", hard_few, few, hard_many, many, hard_none, none);
    assert_true(hard_few * many * 2 > hard_many * few * 3);
    assert_int_equal(hard_none, none);
    tpo_world_close(w);
}

/* Of `objects` the one with most labels in a rectangle, by counting; -1 below `least`. */
static int owner_of(const struct tpo_scene *s, int t, unsigned objects, int x0, int y0, int wide, int high, int least)
{
    int n[TPO_WORLD_OBJECTS_MAX] = {0}, best = -1;
    for (int y = y0; y < y0 + high; y++) {
        for (int x = x0; x < x0 + wide; x++) {
            int label = s->labels[((size_t)t * s->side + y) * s->side + x];
            if (label != TPO_SCENE_GROUND) n[label]++;
        }
    }
    for (int o = 0; o < TPO_WORLD_OBJECTS_MAX; o++) {
        if ((objects >> o & 1) && (best < 0 || n[o] > n[best])) best = o;
    }
    return best >= 0 && n[best] >= least ? best : -1;
}

/* The objects the middle of whose box lies in a rectangle of the first frame. */
static unsigned centred_in(const struct tpo_view *v, int x0, int y0, int wide, int high)
{
    unsigned objects = 0;
    for (int o = 0; o < v->scene.n_objects; o++) {
        const float x = (v->facts.box[o][0] + v->facts.box[o][2]) * 48, y = (v->facts.box[o][1] + v->facts.box[o][3]) * 48;
        if (x >= (float)x0 && x < (float)(x0 + wide) && y >= (float)y0 && y < (float)(y0 + high)) objects |= 1u << o;
    }
    return objects;
}

static void check_dense(const struct tpo_view *v, const struct tpo_sample *s, int A)
{
    const int32_t *attributes = target(s, "dense.attributes")->data;
    const float(*boxes)[4] = target(s, "dense.boxes")->data;
    assert_int_equal(target(s, "dense.attributes")->shape[0], s->n_frames * 64);
    assert_int_equal(target(s, "dense.attributes")->shape[1], A);
    for (int i = 0; i < s->n_frames * 64; i++) {
        int o = owner_of(&v->scene, i / 64, 0xff, i % 8 * 12, i % 64 / 8 * 12, 12, 12, 18);
        for (int a = 0; a < A; a++) assert_int_equal(attributes[i * A + a], o < 0 ? -100 : v->scene.objects[o].attributes[a]);
        float box[4] = {0};
        if (o >= 0) tpo_scene_box(&v->scene, o, i / 64, box);
        assert_memory_equal(box, boxes[i], sizeof(box));
    }
}

/* Returns how many slots tell of an object at their centre that another one covers. */
static int check_slot_targets(const struct tpo_view *v, const struct tpo_sample *s, int n_slots, int A)
{
    const int high = 8 * 96 / n_slots;
    const int32_t *words = target(s, "slot.words")->data;
    const float(*boxes)[4] = target(s, "slot.boxes")->data, (*centres)[2] = target(s, "slot.centres")->data;
    float small_and_large[2] = {0};
    int covered = 0;
    assert_int_equal(target(s, "slot.words")->shape[0], n_slots);
    for (int q = 0; q < n_slots; q++) {
        const int x = q % 8 * 12, y = q / 8 * high, owner = owner_of(&v->scene, 0, 0xff, x, y, 12, high, high);
        const unsigned centred = centred_in(v, x, y, 12, high);
        const int o = centred != 0 ? owner_of(&v->scene, 0, centred, x, y, 12, high, 0) : owner;
        covered += o != owner;
        for (int a = 0; a < A; a++) {
            assert_int_equal(words[q * A + a],
                             o < 0 ? -100 : fake_word_id(NULL, tpo_world_word(a, v->scene.objects[o].attributes[a])));
        }
        if (o >= 0) assert_memory_equal(boxes[q], v->facts.box[o], sizeof(boxes[q]));
        for (int i = 0; i < 2; i++) small_and_large[i] += centres[q][i];
    }
    for (int o = 0; o < v->scene.n_objects; o++) small_and_large[v->scene.objects[o].attributes[TPO_WORLD_SIZE]] -= 1;
    assert_true(small_and_large[0] == 0 && small_and_large[1] == 0);
    return covered;
}

/* Each colour and shape of a description is looked for in the cell at whose object it is true. Returns how many there were. */
static int check_told(const struct tpo_view *v, const struct tpo_conversation *c, int n_slots)
{
    const int high = 8 * 96 / n_slots;
    int n = 0;
    for (int i = 0; i < c->n_attention; i++) {
        const struct tpo_attention_target *a = &c->attention[i];
        if (a->layer != 4 || a->head != 2) continue;
        int slot = 0;
        while (slot < n_slots && a->slots[slot] < 1) slot++;
        assert_true(slot < n_slots);
        const unsigned centred = centred_in(v, slot % 8 * 12, slot / 8 * high, 12, high);
        bool known = false, found = false;
        for (int o = 0; o < v->scene.n_objects; o++) {
            for (int k = TPO_WORLD_SHAPE; k <= TPO_WORLD_COLOUR; k++) {
                const char *word = tpo_world_word(k, v->scene.objects[o].attributes[k]), *said = c->turns->answer + a->from_offset;
                const bool is = strncmp(said, word, strlen(word)) == 0;
                known |= is;
                found |= is && (centred >> o & 1);
            }
        }
        assert_true(found || !known); /* a motion's words are no colour and no shape */
        n += known;
    }
    return n;
}

static void targets_are_the_pixels(void **state)
{
    (void)state;
    struct tpo_world *w = open_world();
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    int covered = 0, told = 0;
    for (int round = 0; round < 4; round++) {
        const int n_frames = round % 2 ? 4 : 1;
        struct tpo_world_draw d = full_draw(n_frames);
        d.n_slots = round / 2 ? 64 : 32;
        for (uint64_t i = 0; i < 40; i++) {
            struct tpo_sample s;
            struct tpo_view v;
            tpo_arena_reset(&arena);
            assert_int_equal(tpo_world_sample(w, &arena, &d, i, &s, NULL), TPO_OK);
            assert_int_equal(tpo_view_alloc(&v, w, &arena, n_frames), TPO_OK);
            tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, d.min_objects);
            assert_memory_equal(v.scene.pixels, s.pixels, (size_t)n_frames * 96 * 96 * 3);
            check_dense(&v, &s, n_frames > 1 ? 5 : 4);
            covered += check_slot_targets(&v, &s, d.n_slots, n_frames > 1 ? 5 : 4);
            for (int c = 0; c < s.n_conversations; c++) told += check_told(&v, &s.conversations[c], d.n_slots);
        }
    }
    assert_true(covered > 0 && told > 100);
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

TPO_TESTS(cmocka_unit_test(aids_point_where_they_should), cmocka_unit_test(aids_and_kinds_can_be_left_out),
          cmocka_unit_test(each_aid_can_be_left_out_alone), cmocka_unit_test(fewer_outermost_targets_leave_more_hard_ones),
          cmocka_unit_test(targets_are_the_pixels))
