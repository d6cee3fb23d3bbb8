/* From a list of names to addresses, and what stays when a name cannot be resolved for once. */
#include "common/rpc/client_private.h"
#include "tests/support/test.h"

#define FAILS "a..b" /* no name server is asked for what is no name */

static const struct peer_addresses none;

static void addresses_stay_as_they_are(void **state)
{
    (void)state;
    struct peer_addresses out;
    tpo_resolve("10.0.0.5:8430,[::1]:8431,unix:/run/x,10.0.0.5:8430,no-port,:1,h:123456789", &none, &out);
    assert_int_equal(out.n, 4);
    assert_string_equal(out.address[0], "10.0.0.5:8430");
    assert_string_equal(out.address[1], "[::1]:8431");
    assert_string_equal(out.address[2], "unix:/run/x");
    assert_string_equal(out.address[3], "10.0.0.5:8430");
    for (int i = 0; i < 4; i++) assert_int_equal(out.name[i], i);
}

static void a_name_that_fails_keeps_its_own_addresses(void **state)
{
    (void)state;
    struct peer_addresses last = {.n = 4,
                                  .address = {"10.0.0.4:8430", "10.0.0.6:8430", "10.0.0.7:8430", "10.0.0.8:8430"},
                                  .name = {0, 1, 1, 2}},
                          out;
    tpo_resolve("10.0.0.5:8430," FAILS ":8430", &last, &out);
    assert_int_equal(out.n, 3);
    assert_string_equal(out.address[0], "10.0.0.5:8430"); /* this one moved, and the third is not in the list */
    assert_string_equal(out.address[1], "10.0.0.6:8430");
    assert_string_equal(out.address[2], "10.0.0.7:8430");
    /* And again, from what was kept. */
    last = out;
    tpo_resolve("10.0.0.5:8430," FAILS ":8430", &last, &out);
    assert_int_equal(out.n, 3);
    tpo_resolve("10.0.0.5:8430," FAILS ":8430", &none, &out);
    assert_int_equal(out.n, 1);
}

/* Whatever else the hosts file says of it. */
static void localhost_is_where_services_listen(void **state)
{
    (void)state;
    struct peer_addresses out;
    tpo_resolve("localhost:8430", &none, &out);
    assert_int_equal(out.n, 1);
    assert_string_equal(out.address[0], "127.0.0.1:8430");
}

static void an_address_of_two_names_is_one_peer(void **state)
{
    (void)state;
    struct tpo_loop *loop;
    struct tpo_peers *p;
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&p, loop, "encoder", "127.0.0.1:1,localhost:1,127.0.0.1:1," FAILS ":1", TPO_PICK_LEAST, NULL),
                     TPO_OK);
    assert_int_equal(tpo_peers_count(p), 1);
    assert_string_equal(tpo_peers_address(p, 0, NULL), "127.0.0.1:1");
    tpo_peers_close(p);
    tpo_loop_close(loop);
}

TPO_TESTS(cmocka_unit_test(addresses_stay_as_they_are), cmocka_unit_test(a_name_that_fails_keeps_its_own_addresses),
          cmocka_unit_test(localhost_is_where_services_listen), cmocka_unit_test(an_address_of_two_names_is_one_peer))
