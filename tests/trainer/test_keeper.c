/* Proves that leases last as long as their keeper lives, each by itself, and no longer. */
#include "tests/services/host/toy_mesh.h"

#include "trainer/steps/keeper.h"

#define LEASE_MS 3000

/* One lease that a keeper is given. */
static void ward_add(struct tpo_mesh *m, struct mesh *w, const char *port_file)
{
    int rc, port = 0;
    Tpo__V1__BeginReply *reply = begin_share(w, "me", LEASE_MS, 0, 0, &rc);
    assert_int_equal(rc, TPO_OK);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    FILE *f = fopen(port_file, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &port), 1);
    fclose(f);
    const int r = m->n_replicas[TPO_PART_ENCODER]++;
    snprintf(m->addresses[TPO_PART_ENCODER][r], TPO_ADDRESS_MAX, "127.0.0.1:%d", port);
    m->leases[TPO_PART_ENCODER][r] = w->lease;
}

static int other_begins(struct mesh *w)
{
    int rc;
    Tpo__V1__BeginReply *reply = begin_share(w, "other", 60000, 0, 0, &rc);
    if (reply != NULL) protobuf_c_message_free_unpacked(&reply->base, NULL);
    return rc;
}

static void other_gets_in(struct mesh *w)
{
    for (int i = 0; i < 1000; i++, usleep(10000))
        if (other_begins(w) == TPO_OK) return;
    fail_msg("the lease does not end: %s", w->err.message);
}

/* Nobody calls for two leases' time; then the keeper goes. */
static void a_lease_lasts_while_its_keeper_lives(void **state)
{
    (void)state;
    static struct tpo_mesh m = {.lease_ms = LEASE_MS, .call_ms = 60000};
    struct tpo_keeper *k;
    struct mesh w;
    mesh_open(&w);
    ward_add(&m, &w, "port");
    assert_int_equal(tpo_keeper_open(&k, &m, &w.err), TPO_OK);
    usleep(2 * LEASE_MS * 1000);
    refused(&w, other_begins(&w), TPO_FAILED_PRECONDITION, "leased");
    tpo_keeper_close(k);
    other_gets_in(&w);
    mesh_close(&w);
}

/* One process stands still with a call in it; the other's lease is kept all the same. */
static void one_that_stands_still_costs_no_other_lease(void **state)
{
    (void)state;
    static struct tpo_mesh m = {.lease_ms = LEASE_MS, .call_ms = 60000};
    struct tpo_keeper *k;
    struct mesh still, w;
    const pid_t first = start("port", "--train", ""), second = start("port2", "--train", "");
    connect_to(&still, first, "port");
    connect_to(&w, second, "port2");
    ward_add(&m, &still, "port");
    ward_add(&m, &w, "port2");
    kill(first, SIGSTOP);
    assert_int_equal(tpo_keeper_open(&k, &m, &w.err), TPO_OK);
    usleep(2 * LEASE_MS * 1000);
    refused(&w, other_begins(&w), TPO_FAILED_PRECONDITION, "leased");
    kill(first, SIGCONT);
    tpo_keeper_close(k);
    mesh_close(&still);
    mesh_close(&w);
}

/* What has ended, by End or because another has come, is nobody's to keep. */
static void a_lease_that_ended_is_not_kept(void **state)
{
    (void)state;
    static struct tpo_mesh m = {.lease_ms = 150, .call_ms = 60000};
    const struct tpo_key key = key_of(0, 0, 0);
    struct tpo_keeper *k;
    struct mesh w;
    mesh_open(&w);
    ward_add(&m, &w, "port");
    assert_int_equal(tpo_keeper_open(&k, &m, &w.err), TPO_OK);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/End", &key), TPO_OK);
    usleep(300000);
    assert_int_equal(other_begins(&w), TPO_OK);
    assert_int_equal(step_call(&w, "/tpo.v1.Learner/Keep", &(struct tpo_key){0}), TPO_OK); /* of the key it reads the lease alone */
    w.lease = m.leases[TPO_PART_ENCODER][0];
    refused(&w, step_call(&w, "/tpo.v1.Learner/Keep", &key), TPO_FAILED_PRECONDITION, "lease");
    tpo_keeper_close(k);
    mesh_close(&w);
}

TPO_TESTS(cmocka_unit_test(a_lease_lasts_while_its_keeper_lives), cmocka_unit_test(one_that_stands_still_costs_no_other_lease),
          cmocka_unit_test(a_lease_that_ended_is_not_kept))
