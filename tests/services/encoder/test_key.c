/* The cache's key: whatever would change a bit of the value changes it. */
#include "services/encoder/key.h"

#include <sys/stat.h>

#include "tests/support/test.h"

#define MEDIUM "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

/* The key for a folder whose config.json is `text`. */
static struct tpo_cache_key key_rounded(const char *text, const struct tpo_config *c, const char *device, bool rounds,
                                        const char *id, const char *digest)
{
    struct tpo_encoder_how how;
    struct tpo_cache_key key;
    struct tpo_error err = {0};
    mkdir("folder", 0755);
    FILE *f = fopen("folder/config.json", "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    if (tpo_encoder_how_make(&how, c, "folder", device, rounds, &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_encoder_key(&key, &how, id, digest);
    return key;
}

static struct tpo_cache_key key_of(const char *text, const struct tpo_config *c, const char *device, const char *id,
                                   const char *digest)
{
    return key_rounded(text, c, device, false, id, digest);
}

static void each_part_counts(void **state)
{
    (void)state;
    struct tpo_config c, half, longer;
    tpo_config_default(&c);
    half = longer = c;
    half.keep_bf16 = true;
    longer.vision_encoder.num_frames++;
    const struct tpo_cache_key first = key_of("{\"image_mean\": 1}", &c, "cpu", MEDIUM, "d"),
                               again = key_of("{\"image_mean\": 1}", &c, "cpu", MEDIUM, "d");
    assert_memory_equal(&first, &again, sizeof(first));
    const struct tpo_cache_key others[] = {
        key_of("{\"image_mean\": 2}", &c, "cpu", MEDIUM, "d"), /* changes no tensor */
        key_of("{\"image_mean\": 1}", &half, "cpu", MEDIUM, "d"), key_of("{\"image_mean\": 1}", &longer, "cpu", MEDIUM, "d"),
        key_of("{\"image_mean\": 1}", &c, "cuda", MEDIUM, "d"),   key_of("{\"image_mean\": 1}", &c, "cpu", "c" MEDIUM, "d"),
        key_of("{\"image_mean\": 1}", &c, "cpu", MEDIUM, "e"),
    };
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) assert_memory_not_equal(&first, &others[i], sizeof(first));
    const struct tpo_cache_key rounded = key_rounded("{\"image_mean\": 1}", &half, "cpu", true, MEDIUM, "d");
    assert_memory_not_equal(&rounded, &others[1], sizeof(rounded));
}

static void a_folder_without_a_config_is_an_error(void **state)
{
    (void)state;
    struct tpo_encoder_how how;
    struct tpo_config c;
    struct tpo_error err = {0};
    tpo_config_default(&c);
    assert_int_not_equal(tpo_encoder_how_make(&how, &c, "nowhere", "cpu", false, &err), TPO_OK);
    assert_true(err.message[0] != '\0');
}

TPO_TESTS(cmocka_unit_test(each_part_counts), cmocka_unit_test(a_folder_without_a_config_is_an_error))
