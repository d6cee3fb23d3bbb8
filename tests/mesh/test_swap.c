/* Proves that a trained version goes into a running mesh with no failed request: real programs, requests of all kinds in a loop, several swaps,
 * every answer of one version and equal to that of a mesh started on that version's folder. */
#include <pthread.h>
#include <stdatomic.h>

#include "tests/mesh/swap.h"

#define VERSIONS 4 /* 0 is the folder's */
#define CLIENTS  4

/* The folder of version k. */
static void write_folder(const char *dir, int k)
{
    char path[4096];
    struct tpo_error err;
    struct tpo_entry *entries;
    const char *source = tpo_test_source();
    entry_of(0);
    assert_int_equal(shell("mkdir -p %s && cp %s/models/small/*.json %s/models/small/tokenizer.model %s && rm %s/manifest.json",
                           dir, source, source, dir, dir),
                     0);
    entries = malloc((size_t)small->n * sizeof(*entries));
    memcpy(entries, small->items, (size_t)small->n * sizeof(*entries));
    for (int t = 0; t < TRAINED; t++) {
        const struct tpo_entry *e = entry_of(t);
        entries[e - small->items].dtype = TPO_F32;
        entries[e - small->items].data = values(e, k);
        entries[e - small->items].size_bytes = (size_t)e->size * sizeof(float);
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (tpo_safetensors_write(path, entries, small->n, &err) != TPO_OK) fail_msg("%s", err.message);
    for (int t = 0; t < TRAINED; t++) free((void *)entries[entry_of(t) - small->items].data);
    free(entries);
}

static char expected[VERSIONS][8][2048];
static _Atomic int seen[VERSIONS], failed, stopping;

static void *run_client(void *owner)
{
    for (int n = (int)(intptr_t)owner; !stopping; n++) {
        const int q = n % QUESTIONS;
        const bool stream = n / QUESTIONS % 2 != 0;
        struct heard h = ask("run", q, stream);
        const bool fits = h.status == 200 && h.version >= 0 && h.version < VERSIONS && strcmp(h.said, expected[h.version][q]) == 0;
        if (fits)
            atomic_fetch_add(&seen[h.version], 1);
        else if (atomic_fetch_add(&failed, 1) == 0)
            fprintf(stderr, "HTTP %ld, version %ld, stream %d, question %d: %s\nwanted: %s\n%s\n", h.status, h.version, stream, q,
                    h.said, h.version >= 0 && h.version < VERSIONS ? expected[h.version][q] : "", h.why);
    }
    return NULL;
}

static void wait_for(int version)
{
    const int before = seen[version];
    while (seen[version] < before + CLIENTS && !failed) usleep(10000);
}

static void swaps_fail_no_request_and_mix_no_versions(void **state)
{
    (void)state;
    char dir[64], source[4096];
    pthread_t clients[CLIENTS];
    int waited = 0;
    for (int k = 1; k < VERSIONS; k++) {
        snprintf(dir, sizeof(dir), "version-%d", k);
        write_folder(dir, k);
        up(dir, "reference", "--redis=no");
        upload("reference");
        for (int q = 0; q < QUESTIONS; q++) {
            struct heard h = ask("reference", q, false);
            if (h.status != 200 || h.version != 0) fail_msg("%s", h.why);
            snprintf(expected[k][q], sizeof(expected[k][q]), "%s", h.said);
        }
        assert_int_equal(down("reference"), 0);
        assert_string_not_equal(expected[k][0], expected[k - 1][0]); /* the boxes differ, or nothing is proved */
    }
    setenv("TPO_VERSION_HOLD", "4s", 1);
    setenv("TPO_VERSION_POLL", "50ms", 1);
    snprintf(source, sizeof(source), "%s/models/small", tpo_test_source());
    up(source, "run", "--train");
    upload("run");
    for (int q = 0; q < QUESTIONS; q++) snprintf(expected[0][q], sizeof(expected[0][q]), "%s", ask("run", q, false).said);
    for (int i = 0; i < CLIENTS; i++) pthread_create(&clients[i], NULL, run_client, (void *)(intptr_t)(i * 2));
    wait_for(0);
    for (int k = 1; k < VERSIONS; k++) {
        for (int t = 0; t < TRAINED; t++) {
            waited += publish(t, k);
            wait_for(t + 1 < TRAINED ? k - 1 : k); /* half of the services have it: answers with a picture are of the one before */
        }
    }
    stopping = 1;
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i], NULL);
    fprintf(stderr, "requests");
    for (int k = 0; k < VERSIONS; k++) fprintf(stderr, " version%d=%d", k, (int)seen[k]);
    fprintf(stderr, " failed=%d publishes_told_to_wait=%d\n", (int)failed, waited);
    assert_int_equal(failed, 0);
    for (int k = 0; k < VERSIONS; k++) assert_true(seen[k] > 0);
    assert_true(waited > 0); /* the third was refused while the first was still wanted */
    let_go();
}

TPO_TESTS(cmocka_unit_test_teardown(swaps_fail_no_request_and_mix_no_versions, tear_down))
