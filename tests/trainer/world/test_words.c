/* Words: each is one piece of the small tokenizer, and what is asked in unseen phrasings is said in known words. */
#include <strings.h>

#include "nn/config.h"
#include "nn/tokenizer.h"
#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"

static struct tpo_tokenizer *open_tokenizer(void)
{
    struct tpo_tokenizer *t = NULL;
    struct tpo_error err = {0};
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    if (tpo_tokenizer_open(&t, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    return t;
}

static int pieces(const struct tpo_tokenizer *t, const char *text, size_t n, bool added)
{
    struct tpo_ids ids = {0};
    assert_int_equal(tpo_tokenizer_encode(t, &ids, text, n, added, NULL), TPO_OK);
    int count = ids.n;
    for (int i = 0; i < ids.n; i++) assert_int_not_equal(ids.ids[i], TPO_ID_UNK);
    tpo_ids_free(&ids);
    return count;
}

/* Words are what lies between spaces, without the signs at their end. */
static size_t word_length(const char *text)
{
    size_t n = strcspn(text, " ");
    while (n > 0 && strchr(".,?:", text[n - 1]) != NULL) n--;
    return n;
}

static void check_sentence(const struct tpo_tokenizer *t, const char *text)
{
    int words = 0;
    for (const char *at = text; *at != '\0';) {
        size_t n = word_length(at), whole = strcspn(at, " ");
        if (pieces(t, at, n, false) != 1) fail_msg("\"%.*s\" takes %d pieces", (int)n, at, pieces(t, at, n, false));
        words += 1 + (int)(whole - n);
        at += whole + (at[whole] == ' ');
    }
    assert_true(pieces(t, text, strlen(text), false) <= words); /* a digit may have joined its question mark */
}

static void every_word_is_one_piece(void **state)
{
    (void)state;
    struct tpo_tokenizer *t = open_tokenizer();
    struct tpo_world *w = NULL;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    assert_int_equal(
        tpo_world_open(&w, &(struct tpo_world_options){TPO_WORLD_HELD_OUT, tpo_world_first_seed(TPO_WORLD_HELD_OUT), 48}, NULL),
        TPO_OK);
    for (int kind = 0; kind < TPO_WORLD_KINDS; kind++) {
        for (uint64_t i = 0; i < 200; i++) {
            struct tpo_world_item item;
            tpo_arena_reset(&arena);
            int n_frames = i % 2 || kind == TPO_KIND_DIRECTION ? 2 : 1;
            assert_int_equal(tpo_world_item(w, &arena, kind, n_frames, (enum tpo_world_phrasing)(1 + i / 2 % 2), i, &item, NULL),
                             TPO_OK);
            check_sentence(t, item.question);
            if (!tpo_world_kind_boxes(kind)) check_sentence(t, item.answer);
        }
    }
    for (int a = 0; a < TPO_WORLD_ATTRIBUTES; a++) {
        for (int v = 0; v < tpo_world_values(a); v++) check_sentence(t, tpo_world_word(a, v));
    }
    tpo_world_close(w);
    tpo_arena_free(&arena);
    tpo_tokenizer_close(t);
}

static void phrasings_are_known_words(void **state)
{
    (void)state;
    struct tpo_tokenizer *t = open_tokenizer();
    struct tpo_phrases p;
    assert_int_equal(tpo_phrases_open(&p, NULL), TPO_OK);
    for (int kind = 0; kind < TPO_PHRASE_KINDS; kind++) {
        for (int unseen = 0; unseen < 2; unseen++) {
            for (int i = 0; i < p.lists[kind][unseen].n; i++) {
                for (const char *at = p.lists[kind][unseen].items[i]; *at != '\0';) {
                    size_t n = word_length(at), whole = strcspn(at, " ");
                    if (n > 0 && *at != '{' && pieces(t, at, n, false) != 1) fail_msg("\"%.*s\" is not one piece", (int)n, at);
                    at += whole + (at[whole] == ' ');
                }
            }
        }
    }
    tpo_phrases_close(&p);
    tpo_tokenizer_close(t);
}

static bool said(const struct tpo_phrases *p, const char *word, size_t n)
{
    for (int kind = 0; kind < TPO_PHRASE_KINDS; kind++) {
        for (int i = 0; i < p->lists[kind][0].n; i++) {
            for (const char *at = p->lists[kind][0].items[i]; *at != '\0';) {
                size_t whole = strcspn(at, " ");
                if (word_length(at) == n && strncasecmp(at, word, n) == 0) return true;
                at += whole + (at[whole] == ' ');
            }
        }
    }
    return false;
}

static void unseen_phrasings_are_new_but_their_words_are_not(void **state)
{
    (void)state;
    struct tpo_phrases p;
    assert_int_equal(tpo_phrases_open(&p, NULL), TPO_OK);
    for (int kind = 0; kind < TPO_PHRASE_KINDS; kind++) {
        const struct tpo_phrase_list *trained = &p.lists[kind][0], *unseen = &p.lists[kind][1];
        if (kind != TPO_PHRASE_OPENING) assert_true(unseen->n >= 4 && trained->n >= 12);
        for (int i = 0; i < unseen->n; i++) {
            for (int j = 0; j < trained->n; j++) assert_string_not_equal(unseen->items[i], trained->items[j]);
            for (const char *at = unseen->items[i]; *at != '\0';) {
                size_t n = word_length(at), whole = strcspn(at, " ");
                if (*at != '{' && !said(&p, at, n))
                    fail_msg("%s: \"%.*s\" is in no trained phrasing", unseen->items[i], (int)n, at);
                at += whole + (at[whole] == ' ');
            }
        }
    }
    tpo_phrases_close(&p);
}

/* A prompt's tags are cheap, the added tokens follow the vocabulary, and the configuration counts them. */
static void tags_and_tokens_fit_the_configuration(void **state)
{
    (void)state;
    struct tpo_tokenizer *t = open_tokenizer();
    struct tpo_config c;
    struct tpo_error err = {0};
    char folder[4096];
    static const char *const tags[] = {"[INST]", "<Video>", "</Video>", "<Image>", "</Image>", "[/INST]"};
    static const char *const tokens[] = {"<box_begin>",   "<time_begin>", "<temp>",     "<boxes>",
                                         "<track_begin>", "<tracking>",   "<track_box>"};
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) assert_int_equal(pieces(t, tags[i], strlen(tags[i]), false), 1);
    assert_int_equal(pieces(t, "[INST] <Video>", 14, false), 2);
    assert_int_equal(pieces(t, "</Video>[/INST]", 15, false), 2);
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        assert_int_equal(pieces(t, tokens[i], strlen(tokens[i]), true), 1);
        assert_true(pieces(t, tokens[i], strlen(tokens[i]), false) > 1);
    }
    snprintf(folder, sizeof(folder), "%s/models/small", tpo_test_source());
    if (tpo_config_load(&c, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(c.llm.vocab_size, tpo_tokenizer_vocabulary(t));
    assert_int_equal(c.track_box_id, c.llm.vocab_size - 1);
    assert_int_equal(tpo_config_queries(&c) % TPO_WORLD_SLOT_COLUMNS, 0);
    assert_int_equal(tpo_config_patches(&c), 64);
    assert_int_equal(tpo_config_vit_blocks(&c), 4);
    tpo_tokenizer_close(t);
}

TPO_TESTS(cmocka_unit_test(every_word_is_one_piece), cmocka_unit_test(phrasings_are_known_words),
          cmocka_unit_test(unseen_phrasings_are_new_but_their_words_are_not),
          cmocka_unit_test(tags_and_tokens_fit_the_configuration))
