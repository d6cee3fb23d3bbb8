/* The next token: greedy, drawn, and rows of logits that hold no ordinary numbers. */
#include "services/router/sample.h"

#include <math.h>

#include "tests/support/test.h"

#define V 40

static struct tpo_candidate work[V];

static int32_t draw(const float *logits, float temperature, float top_p, uint64_t step)
{
    const struct tpo_sampler s = {temperature, top_p, 3};
    return tpo_sample(&s, step, logits, V, NULL, 0, work);
}

static void an_infinite_logit_takes_all(void **state)
{
    (void)state;
    float x[V];
    for (int i = 0; i < V; i++) x[i] = (float)(i % 7);
    x[11] = INFINITY;
    for (uint64_t step = 0; step < 50; step++) assert_int_equal(draw(x, 0.8F, 0.9F, step), 11);
    x[29] = INFINITY; /* two share it */
    int seen[V] = {0};
    for (uint64_t step = 0; step < 200; step++) seen[draw(x, 0.8F, 1, step)]++;
    assert_int_equal(seen[11] + seen[29], 200);
    assert_in_range(seen[11], 60, 140);
    for (int i = 0; i < V; i++) x[i] = -INFINITY; /* all alike */
    memset(seen, 0, sizeof(seen));
    for (uint64_t step = 0; step < 400; step++) seen[draw(x, 1, 1, step)]++;
    for (int i = 0; i < V; i++) assert_in_range(seen[i], 1, 40);
}

static void what_is_no_number_is_never_drawn(void **state)
{
    (void)state;
    float x[V];
    for (int i = 0; i < V; i++) x[i] = i == 5 || i == 6 ? (float)-i : NAN;
    assert_int_equal(draw(x, 0, 1, 0), 5);
    for (uint64_t step = 0; step < 100; step++) assert_in_range(draw(x, 2, 1, step), 5, 6);
    for (int i = 0; i < V; i++) x[i] = NAN;
    assert_int_equal(draw(x, 0, 1, 0), -1);
    assert_int_equal(draw(x, 1, 1, 0), -1);
}

static void samples_from_the_nucleus(void **state)
{
    (void)state;
    const float logits[6] = {1, 5, 4.9F, NAN, 5, -INFINITY};
    const int32_t banned[] = {4};
    struct tpo_sampler s = {0, 1, 1};
    int seen[6] = {0};
    assert_int_equal(tpo_sample(&s, 0, logits, 6, NULL, 0, work), 1);
    s.temperature = 1;
    s.top_p = 0.6F;
    for (uint64_t i = 0; i < 400; i++) seen[tpo_sample(&s, i, logits, 6, banned, 1, work)]++;
    assert_true(seen[1] > 100 && seen[2] > 100);
    assert_int_equal(seen[1] + seen[2], 400);
    const int32_t all[] = {0, 1, 2, 4, 5};
    assert_int_equal(tpo_sample(&s, 0, logits, 6, all, 5, work), -1);
}

TPO_TESTS(cmocka_unit_test(an_infinite_logit_takes_all), cmocka_unit_test(what_is_no_number_is_never_drawn),
          cmocka_unit_test(samples_from_the_nucleus))
