/* Digests against FIPS 180-4's and RFC 4231's examples. */
#include "common/sha256.h"
#include "tests/support/test.h"

static void hashes_the_standards_examples(void **state)
{
    (void)state;
    uint8_t d[32];
    char hex[TPO_SHA256_HEX];
    tpo_sha256(d, "abc", 3);
    assert_string_equal(tpo_sha256_hex(hex, d), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    tpo_sha256(d, "", 0);
    assert_string_equal(tpo_sha256_hex(hex, d), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    tpo_hmac_sha256(d, "Jefe", 4, "what do ya want for nothing?", 28);
    assert_string_equal(tpo_sha256_hex(hex, d), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

static void a_stream_hashes_as_the_whole(void **state)
{
    (void)state;
    uint8_t data[1000], one[32], two[32];
    for (int i = 0; i < 1000; i++) data[i] = (uint8_t)(i * 7);
    tpo_sha256(one, data, sizeof(data));
    tpo_sha256_t *h = tpo_sha256_open();
    for (int round = 0; round < 2; round++) { /* the second round shows that end() starts anew */
        for (size_t at = 0, step = 1; at < sizeof(data); at += step, step = step * 2 % 37 + 1)
            tpo_sha256_add(h, data + at, step < sizeof(data) - at ? step : sizeof(data) - at);
        tpo_sha256_end(h, two);
        assert_memory_equal(one, two, 32);
    }
    tpo_sha256_close(h);
    tpo_sha256_close(NULL);
}

static void knows_an_id(void **state)
{
    (void)state;
    char id[80];
    memset(id, 'a', sizeof(id));
    id[64] = '\0';
    assert_int_equal(tpo_sha256_is_hex(id), 1);
    id[3] = 'A';
    assert_int_equal(tpo_sha256_is_hex(id), 0);
    id[3] = '/';
    assert_int_equal(tpo_sha256_is_hex(id), 0);
    id[3] = 'f', id[64] = '0', id[65] = '\0';
    assert_int_equal(tpo_sha256_is_hex(id), 0);
    assert_int_equal(tpo_sha256_is_hex(""), 0);
    assert_int_equal(tpo_sha256_is_hex(NULL), 0);
}

TPO_TESTS(cmocka_unit_test(hashes_the_standards_examples), cmocka_unit_test(a_stream_hashes_as_the_whole),
          cmocka_unit_test(knows_an_id))
