/* Proves common/message: everything a message points to is counted, on messages that protobuf-c unpacked. */
#include "tests/support/test.h"

#include "common/message.h"
#include "gateway.pb-c.h"

static Tpo__V1__PerceiveRequest *unpack(const uint8_t *bytes, size_t n)
{
    Tpo__V1__PerceiveRequest *q = tpo__v1__perceive_request__unpack(NULL, n, bytes);
    assert_non_null(q);
    return q;
}

static void all_that_hangs_on_a_message_is_counted(void **state)
{
    (void)state;
    static uint8_t data[5000], packed[16384];
    char text[3001] = {0};
    memset(text, 'a', sizeof(text) - 1);
    Tpo__V1__PerceiveRequest plain = TPO__V1__PERCEIVE_REQUEST__INIT, q = plain;
    Tpo__V1__MediaSource medium = TPO__V1__MEDIA_SOURCE__INIT, *media[] = {&medium};
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn, &turn};
    medium.data = (ProtobufCBinaryData){sizeof(data), data};
    turn.text = text;
    q.media = media;
    q.n_media = 1;
    q.turns = turns;
    q.n_turns = 2;
    Tpo__V1__PerceiveRequest *back = unpack(packed, tpo__v1__perceive_request__pack(&q, packed));
    size_t bytes = tpo_message_bytes(&back->base), bare = tpo_message_bytes(&plain.base);
    assert_true(bare >= sizeof(plain) && bare < sizeof(plain) + 100);
    assert_true(bytes > bare + 5000 + 2 * 3000 + sizeof(medium) + 2 * sizeof(turn));
    assert_true(bytes < bare + 5000 + 2 * 3000 + sizeof(medium) + 2 * sizeof(turn) + 400);
    tpo__v1__perceive_request__free_unpacked(back, NULL);
}

/* Three bytes each on the wire, and far more once unpacked. */
static void fields_of_a_later_version_are_counted(void **state)
{
    (void)state;
    uint8_t bytes[300];
    for (size_t i = 0; i < sizeof(bytes); i += 3) {
        bytes[i] = 0xa0; /* field 500, a varint */
        bytes[i + 1] = 0x1f;
        bytes[i + 2] = 1;
    }
    Tpo__V1__PerceiveRequest *q = unpack(bytes, sizeof(bytes));
    assert_int_equal(q->base.n_unknown_fields, 100);
    assert_true(tpo_message_bytes(&q->base) > 100 * sizeof(ProtobufCMessageUnknownField));
    tpo__v1__perceive_request__free_unpacked(q, NULL);
}

TPO_TESTS(cmocka_unit_test(all_that_hangs_on_a_message_is_counted), cmocka_unit_test(fields_of_a_later_version_are_counted))
