/* Proves common/queue: full is told at once, every item is taken once. */
#include "tests/support/test.h"

#include <pthread.h>
#include <unistd.h>

#include "common/queue.h"

static void a_full_queue_answers_at_once(void **state)
{
    (void)state;
    struct tpo_queue *q;
    int x[4];
    assert_int_equal(tpo_queue_open(&q, 2), TPO_OK);
    assert_int_equal(tpo_queue_put_below(q, &x[0], 1), TPO_OK);
    assert_int_equal(tpo_queue_put_below(q, &x[1], 1), TPO_RESOURCE_EXHAUSTED);
    assert_int_equal(tpo_queue_put(q, &x[1]), TPO_OK);
    assert_int_equal(tpo_queue_put(q, &x[2]), TPO_RESOURCE_EXHAUSTED);
    assert_int_equal(tpo_queue_put_below(q, &x[2], 9), TPO_RESOURCE_EXHAUSTED);
    assert_ptr_equal(tpo_queue_take(q, 0), &x[0]);
    assert_int_equal(tpo_queue_put(q, &x[3]), TPO_OK);
    tpo_queue_put_back(q, &x[0]); /* beyond the capacity, never refused */
    assert_int_equal(tpo_queue_length(q), 3);
    assert_ptr_equal(tpo_queue_take(q, -1), &x[0]);
    assert_ptr_equal(tpo_queue_take(q, 1000), &x[1]);
    tpo_queue_end(q);
    assert_int_equal(tpo_queue_put(q, &x[0]), TPO_UNAVAILABLE);
    assert_ptr_equal(tpo_queue_take(q, -1), &x[3]);
    assert_null(tpo_queue_take(q, -1));
    tpo_queue_close(q);
}

static bool is_odd(const void *item)
{
    return *(const int *)item % 2 != 0;
}

/* The ring has turned, so that what moves up crosses its end. */
static void one_of_a_kind_is_taken_past_others(void **state)
{
    (void)state;
    struct tpo_queue *q;
    int x[] = {0, 2, 1, 4, 3};
    assert_int_equal(tpo_queue_open(&q, 5), TPO_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(tpo_queue_put(q, &x[0]), TPO_OK);
    for (int i = 0; i < 3; i++) assert_ptr_equal(tpo_queue_take(q, 0), &x[0]);
    for (int i = 0; i < 5; i++) assert_int_equal(tpo_queue_put(q, &x[i]), TPO_OK);
    assert_ptr_equal(tpo_queue_take_kind(q, is_odd), &x[2]);
    assert_ptr_equal(tpo_queue_take_kind(q, is_odd), &x[4]);
    assert_null(tpo_queue_take_kind(q, is_odd));
    assert_ptr_equal(tpo_queue_take(q, 0), &x[0]);
    assert_ptr_equal(tpo_queue_take(q, 0), &x[1]);
    assert_ptr_equal(tpo_queue_take(q, 0), &x[3]);
    assert_int_equal(tpo_queue_length(q), 0);
    tpo_queue_close(q);
}

static void *take_some(void *arg)
{
    int seen = 0;
    while (tpo_queue_take(arg, -1) != NULL) seen++;
    return (void *)(intptr_t)seen;
}

static void every_item_is_taken_once(void **state)
{
    (void)state;
    struct tpo_queue *q;
    pthread_t takers[3];
    int item, total = 0;
    assert_int_equal(tpo_queue_open(&q, 8), TPO_OK);
    for (int i = 0; i < 3; i++) pthread_create(&takers[i], NULL, take_some, q);
    for (int i = 0; i < 20000;) {
        if (tpo_queue_put(q, &item) == TPO_OK)
            i++;
        else
            usleep(10);
    }
    tpo_queue_end(q);
    for (int i = 0; i < 3; i++) {
        void *seen;
        pthread_join(takers[i], &seen);
        total += (int)(intptr_t)seen;
    }
    assert_int_equal(total, 20000);
    tpo_queue_close(q);
}

TPO_TESTS(cmocka_unit_test(a_full_queue_answers_at_once), cmocka_unit_test(one_of_a_kind_is_taken_past_others),
          cmocka_unit_test(every_item_is_taken_once))
