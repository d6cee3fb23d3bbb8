/* Proves what a run's folder remembers of the processes that hold its state, and whose it is. */
#include "tests/support/test.h"

#include "trainer/steps/held.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Two encoders that have begun run "r" under leases 3 and 4. */
static void crew_fill(struct tpo_crew *t)
{
    *t = (struct tpo_crew){.options.n_replicas = {2, 0, 0}, .run = "r"};
    for (int r = 0; r < 2; r++) {
        struct tpo_replica *x = &t->replicas[TPO_PART_ENCODER][r];
        snprintf(x->begun.instance, sizeof(x->begun.instance), "process-%d", r);
        x->lease = (uint64_t)(3 + r);
    }
}

static struct tpo_held *open_out(void)
{
    struct tpo_held *h = NULL;
    struct tpo_error err = {0};
    if (tpo_held_open(&h, ".", &err) != TPO_OK) fail_msg("%s", err.message);
    return h;
}

/* It dies before it has made up for that: the next one meets the lease it expects, and must not believe what that process holds. */
static void who_was_taken_is_not_believed_by_the_next_trainer(void **state)
{
    (void)state;
    static struct tpo_crew crew;
    struct tpo_error err = {0};
    crew_fill(&crew);
    struct tpo_held *h = open_out();
    assert_int_equal(tpo_held_note(h, &crew, true, &err), TPO_OK);
    crew.replicas[TPO_PART_ENCODER][0].lease = 6;
    crew.replicas[TPO_PART_ENCODER][0].taken = true;
    crew.replicas[TPO_PART_ENCODER][1].lease = 5;
    assert_int_equal(tpo_held_begun(h, &crew, &err), TPO_OK);
    tpo_held_close(h);

    crew_fill(&crew);
    h = open_out();
    tpo_held_leases(h, &crew);
    assert_int_equal(crew.replicas[TPO_PART_ENCODER][0].lease, 6);
    assert_int_equal(crew.replicas[TPO_PART_ENCODER][1].lease, 5);
    assert_false(tpo_held_knows(h, &crew, TPO_PART_ENCODER, 0, false));
    assert_true(tpo_held_knows(h, &crew, TPO_PART_ENCODER, 1, false));
    tpo_held_close(h);
}

/* run.json as it is, but for its folder; NULL: without one, as older builds wrote it. */
static void folder_put(const char *folder)
{
    json_t *j = json_load_file("run.json", 0, NULL);
    assert_non_null(j);
    if (folder != NULL)
        json_object_set_new(j, "folder", json_string(folder));
    else
        json_object_del(j, "folder");
    assert_int_equal(json_dump_file(j, "run.json", 0), 0);
    json_decref(j);
}

static void the_token_of_another_folder_is_not_taken(void **state)
{
    (void)state;
    static const char *const folders[] = {NULL, "1-2.3"};
    char token[64];
    for (int other = 0; other < 2; other++) {
        struct tpo_held *h = open_out();
        snprintf(token, sizeof(token), "%s", tpo_held_token(h));
        tpo_held_close(h);
        folder_put(folders[other]);
        h = open_out();
        assert_int_equal(strcmp(tpo_held_token(h), token) != 0, other);
        tpo_held_close(h);
    }
}

TPO_TESTS(cmocka_unit_test(who_was_taken_is_not_believed_by_the_next_trainer),
          cmocka_unit_test(the_token_of_another_folder_is_not_taken))
