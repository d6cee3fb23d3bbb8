/* Proves common/metrics: the text Prometheus reads. */
#include "tests/support/test.h"

#include "common/metrics.h"

static void the_text_is_what_prometheus_reads(void **state)
{
    (void)state;
    struct tpo_metrics *m;
    char labels[128];
    assert_int_equal(tpo_metrics_open(&m, NULL), TPO_OK);
    tpo_metrics_help(m, "tpo_b_total", "How many b.");
    tpo_metrics_add(m, "tpo_b_total", tpo_metrics_labels(labels, sizeof(labels), "code", "O\"K\\\n", NULL), 1);
    tpo_metrics_set(m, "tpo_a", "", 2.5);
    tpo_metrics_add(m, "tpo_b_total", "code=\"A\"", 3);
    tpo_metrics_add(m, "tpo_b_total", "code=\"A\"", 4);
    tpo_metrics_set(m, "tpo_a", "", 1e15);
    tpo_metrics_total(m, "tpo_c_total", "", 9);
    struct tpo_text out = {0};
    tpo_metrics_render(m, &out);
    assert_string_equal(
        out.data, "# TYPE tpo_a gauge\ntpo_a 1e+15\n# HELP tpo_b_total How many b.\n# TYPE tpo_b_total counter\n"
                  "tpo_b_total{code=\"A\"} 7\ntpo_b_total{code=\"O\\\"K\\\\\\n\"} 1\n# TYPE tpo_c_total counter\ntpo_c_total 9\n");
    assert_true(tpo_metrics_get(m, "tpo_b_total", "code=\"A\"") == 7);
    tpo_text_free(&out);
    tpo_metrics_close(m);
}

static void a_histogram_is_cumulative(void **state)
{
    (void)state;
    struct tpo_metrics *m;
    assert_int_equal(tpo_metrics_open(&m, NULL), TPO_OK);
    tpo_metrics_observe(m, "tpo_d_seconds", "stage=\"x\"", 0.005);
    tpo_metrics_observe(m, "tpo_d_seconds", "stage=\"x\"", 0.03);
    tpo_metrics_observe(m, "tpo_d_seconds", "stage=\"x\"", 1000);
    struct tpo_text out = {0};
    tpo_metrics_render(m, &out);
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"0.005\"} 1\n"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"0.02\"} 1\n"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"0.04\"} 2\n"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"81.92\"} 2\n"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_count{stage=\"x\"} 3\n"));
    tpo_text_free(&out);
    tpo_metrics_close(m);
}

/* A replica's histogram beside our own: one family, one TYPE, and +Inf is the count. */
static void a_summed_histogram_is_of_the_same_family(void **state)
{
    (void)state;
    struct tpo_metrics *m, *peers;
    assert_int_equal(tpo_metrics_open(&m, NULL), TPO_OK);
    assert_int_equal(tpo_metrics_open(&peers, NULL), TPO_OK);
    tpo_metrics_observe(m, "tpo_d_seconds", "stage=\"gateway\"", 0.005);
    tpo_metrics_summed(peers, "tpo_d_seconds", "stage=\"x\"", 2.5, 4);
    tpo_metrics_summed(peers, "tpo_d_seconds", "stage=\"x\"", 3.5, 7); /* running totals: the later one stands */
    tpo_metrics_merge(peers, m);
    struct tpo_text out = {0};
    tpo_metrics_render(peers, &out);
    const char *type = strstr(out.data, "# TYPE ");
    assert_non_null(type);
    assert_null(strstr(type + 1, "# TYPE "));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"gateway\",le=\"0.005\"} 1\n"));
    assert_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"0.005\"}"));
    assert_non_null(strstr(out.data, "tpo_d_seconds_bucket{stage=\"x\",le=\"+Inf\"} 7\ntpo_d_seconds_sum{stage=\"x\"} 3.5\n"
                                     "tpo_d_seconds_count{stage=\"x\"} 7\n"));
    tpo_text_free(&out);
    tpo_metrics_close(m);
    tpo_metrics_close(peers);
}

static void too_many_samples_are_dropped(void **state)
{
    (void)state;
    struct tpo_metrics *m;
    char labels[64], id[16];
    assert_int_equal(tpo_metrics_open(&m, NULL), TPO_OK);
    for (int i = 0; i < 5000; i++) {
        snprintf(id, sizeof(id), "%d", i);
        tpo_metrics_add(m, "tpo_e_total", tpo_metrics_labels(labels, sizeof(labels), "id", id, NULL), 1);
    }
    assert_true(tpo_metrics_get(m, "tpo_e_total", "id=\"4095\"") == 1);
    assert_true(tpo_metrics_get(m, "tpo_e_total", "id=\"4096\"") == 0);
    tpo_metrics_close(m);
}

TPO_TESTS(cmocka_unit_test(the_text_is_what_prometheus_reads), cmocka_unit_test(a_histogram_is_cumulative),
          cmocka_unit_test(a_summed_histogram_is_of_the_same_family), cmocka_unit_test(too_many_samples_are_dropped))
