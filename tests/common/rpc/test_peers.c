/* Which peer a call goes to, and what is known of each: ready, its versions, gone. */
#include "common/rpc/client_private.h"
#include "tests/common/rpc/heard.h"

static void health_is_told_and_watched(void **state)
{
    (void)state;
    struct echo e;
    echo_start(&e, (struct tpo_server_options){0});
    for (int i = 0; i < 500 && tpo_peers_ready(e.peers) == 0; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(tpo_peers_ready(e.peers), 1);
    tpo_server_serving(e.server, false);
    for (int i = 0; i < 500 && tpo_peers_ready(e.peers) == 1; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(tpo_peers_ready(e.peers), 0);
    tpo_server_serving(e.server, true);
    for (int i = 0; i < 500 && tpo_peers_ready(e.peers) == 0; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(tpo_peers_ready(e.peers), 1);
    echo_stop(&e);
}

static void a_watch_that_ends_by_its_deadline_changes_nothing(void **state)
{
    (void)state;
    struct echo e;
    const uint64_t held = 7;
    uint64_t versions[TPO_PEER_VERSIONS_MAX];
    echo_start(&e, (struct tpo_server_options){0});
    wait_ready(&e, 1);
    struct peer *x = e.peers->peers[0];
    e.peers->watch_ms = 50;
    tpo_rpc_cancel(x->watch); /* the one of an hour */
    wait_ready(&e, 0);
    wait_ready(&e, 1);
    tpo_peers_set_versions(e.peers, x->id, &held, 1);
    for (int ends = 0, i = 0; ends < 3; i++) {
        const bool watched = x->watch != NULL;
        tpo_loop_wait(e.loop, 20);
        ends += watched && x->watch == NULL;
        assert_int_equal(tpo_peers_ready(e.peers), 1);
        assert_int_equal(tpo_peers_versions(e.peers, 0, versions), 1);
        assert_in_range(i, 0, 5000);
    }
    /* The next one still hears of a loss, told or seen. */
    tpo_server_serving(e.server, false);
    wait_ready(&e, 0);
    assert_int_equal(tpo_peers_versions(e.peers, 0, versions), -1);
    tpo_server_serving(e.server, true);
    wait_ready(&e, 1);
    tpo_server_drain(e.server, 0);
    wait_ready(&e, 0);
    echo_stop(&e);
}

static void a_dead_peer_costs_nothing_where_another_is(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    char digest[96], both[128];
    echo_start(&e, (struct tpo_server_options){0});
    struct tpo_server *second = echo_server((struct tpo_server_options){0});
    struct tpo_peers *pair;
    snprintf(both, sizeof(both), "127.0.0.1:%d,127.0.0.1:%d", tpo_server_port(second), tpo_server_port(e.server));
    assert_int_equal(tpo_peers_open(&pair, e.loop, "encoder", both, TPO_PICK_LEAST, &err), TPO_OK);
    for (int i = 0; i < 500 && tpo_peers_ready(pair) < 2; i++) tpo_loop_wait(e.loop, 20);
    tpo_server_close(second);
    for (int i = 0; i < 20; i++) assert_int_equal(echo_ask(pair, "hello", 5000, digest, &err), TPO_OK);
    tpo_peers_close(pair);
    echo_stop(&e);
}

static void equal_keys_meet_the_same_peer(void **state)
{
    (void)state;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    struct tpo_error err;
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct heard h = {0};
    struct tpo_rpc_events on = {.owner = &h, .on_message = on_message, .on_done = on_done};
    int uses[3] = {0};
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, &err), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "encoder", "127.0.0.1:1,127.0.0.2:1,127.0.0.3:1", TPO_PICK_HASH, &err), TPO_OK);
    for (int k = 0; k < 300; k++) {
        char key[16];
        snprintf(key, sizeof(key), "media-%d", k);
        struct tpo_rpc_start start = {.path = "/x/y", .reply = &tpo__v1__encode_reply__descriptor, .timeout_ms = 2000, .key = key};
        int first = tpo_rpc_peer_id(tpo_rpc_open(peers, &start, &q.base, NULL, &on, NULL));
        int second = tpo_rpc_peer_id(tpo_rpc_open(peers, &start, &q.base, NULL, &on, NULL));
        assert_int_equal(first, second);
        assert_in_range(first, 1, 3);
        uses[first - 1]++;
    }
    for (int i = 0; i < 3; i++) assert_in_range(uses[i], 60, 140);
    tpo_peers_close(peers);
    assert_int_equal(h.done, 600);
    assert_int_equal(h.n, 0);
    tpo_loop_close(loop);
}

/* Whom a call that must go to `id` goes to. */
static const char *taker(struct tpo_peers *p, struct heard *h, int id)
{
    const Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    const struct tpo_rpc_start start = {
        .path = "/x/y", .reply = &tpo__v1__encode_reply__descriptor, .timeout_ms = 2000, .peer = id};
    const struct tpo_rpc_events on = {.owner = h, .on_message = on_message, .on_done = on_done};
    struct tpo_rpc *r = tpo_rpc_open(p, &start, &q.base, NULL, &on, NULL);
    assert_non_null(r);
    return tpo_rpc_peer(r);
}

static void a_peer_stays_itself_when_others_go(void **state)
{
    (void)state;
    struct tpo_loop *loop;
    struct tpo_peers *p;
    struct heard h = {0};
    const struct peer_addresses two = {.n = 2, .address = {"127.0.0.2:1", "127.0.0.3:1"}};
    const struct peer_addresses other = {.n = 2, .address = {"127.0.0.2:1", "127.0.0.4:1"}};
    const uint64_t held = 7;
    uint64_t versions[TPO_PEER_VERSIONS_MAX];
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, NULL), TPO_OK);
    assert_int_equal(tpo_peers_open(&p, loop, "encoder", "127.0.0.1:1,127.0.0.2:1,127.0.0.3:1", TPO_PICK_LEAST, NULL), TPO_OK);
    const int second = tpo_peers_id(p, 1), third = tpo_peers_id(p, 2);
    assert_int_equal(tpo_peers_update(p, &two), TPO_OK);
    assert_int_equal(tpo_peers_count(p), 2);
    assert_string_equal(taker(p, &h, second), "127.0.0.2:1");
    assert_string_equal(taker(p, &h, third), "127.0.0.3:1");
    /* The third goes and one comes in its place, which is not taken for it; a call for the third goes to any. */
    assert_int_equal(tpo_peers_update(p, &other), TPO_OK);
    tpo_peers_set_versions(p, third, &held, 1);
    for (int i = 0; i < 2; i++) {
        assert_int_not_equal(tpo_peers_id(p, i), third);
        assert_int_equal(tpo_peers_versions(p, i, versions), -1);
        tpo_peers_set_versions(p, tpo_peers_id(p, i), &held, 1);
    }
    tpo_peers_drop_version(p, third, held);
    for (int i = 0; i < 2; i++) assert_int_equal(tpo_peers_versions(p, i, versions), 1);
    assert_non_null(taker(p, &h, third));
    tpo_peers_close(p);
    assert_int_equal(h.done, 3);
    tpo_loop_close(loop);
}

static void no_peer_is_an_error_at_once(void **state)
{
    (void)state;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    struct tpo_error err = {0};
    char digest[96];
    assert_int_equal(tpo_loop_open(&loop, NULL, NULL, &err), TPO_OK);
    assert_int_equal(tpo_peers_open(&peers, loop, "encoder", "", TPO_PICK_LEAST, &err), TPO_OK);
    assert_int_equal(echo_ask(peers, "x", 1000, digest, &err), TPO_UNAVAILABLE);
    assert_string_equal(err.reason, "peer_missing");
    assert_string_equal(err.stage, "encoder");
    tpo_peers_close(peers);
    assert_int_equal(tpo_peers_open(&peers, loop, "encoder", "127.0.0.1:1", TPO_PICK_LEAST, &err), TPO_OK);
    assert_int_equal(echo_ask(peers, "x", 1000, digest, &err), TPO_UNAVAILABLE);
    assert_string_equal(err.reason, "peer_unavailable");
    tpo_peers_close(peers);
    tpo_loop_close(loop);
}

TPO_TESTS(cmocka_unit_test(health_is_told_and_watched), cmocka_unit_test(a_watch_that_ends_by_its_deadline_changes_nothing),
          cmocka_unit_test(a_dead_peer_costs_nothing_where_another_is), cmocka_unit_test(equal_keys_meet_the_same_peer),
          cmocka_unit_test(a_peer_stays_itself_when_others_go), cmocka_unit_test(no_peer_is_an_error_at_once))
