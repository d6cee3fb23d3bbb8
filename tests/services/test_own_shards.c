/* Proves that a service starts where only the shards that hold its tensors lie, and that a check of the whole folder still misses the others. */
#include <jansson.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "common/prefixes.h"
#include "common/safetensors.h"
#include "tests/support/test.h"

static int shell(const char *text)
{
    setenv("S", tpo_test_source(), 1);
    setenv("B", tpo_test_build(), 1);
    const int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The small model in two shards by its index, of which only the region head's is there. */
static void write_folder(void)
{
    char path[4096];
    struct tpo_safetensors *small;
    struct tpo_error err;
    int n = 0;
    assert_int_equal(
        shell("mkdir model && cp $S/models/small/*.json $S/models/small/tokenizer.model model && rm -f model/*.index.json"), 0);
    snprintf(path, sizeof(path), "%s/models/small", tpo_test_source());
    if (tpo_safetensors_open(&small, path, &err) != TPO_OK) fail_msg("%s", err.message);
    struct tpo_entry *mine = calloc((size_t)small->n, sizeof(*mine));
    json_t *index = json_object(), *map = json_object();
    for (int i = 0; i < small->n; i++) {
        const bool region = strcmp(tpo_prefix_owner(small->items[i].name), "region") == 0;
        if (region) mine[n++] = small->items[i];
        json_object_set_new(map, small->items[i].name, json_string(region ? "region.safetensors" : "rest.safetensors"));
    }
    assert_true(n > 0 && n < small->n);
    json_object_set_new(index, "weight_map", map);
    assert_int_equal(json_dump_file(index, "model/model.safetensors.index.json", 0), 0);
    if (tpo_safetensors_write("model/region.safetensors", mine, n, &err) != TPO_OK) fail_msg("%s", err.message);
    json_decref(index);
    free(mine);
    tpo_safetensors_close(small);
}

static void a_head_starts_without_the_others_shards(void **state)
{
    (void)state;
    write_folder();
    assert_int_equal(shell("$B/tpo-region --listen 127.0.0.1:0 --model model >log 2>&1 & pid=$!;"
                           " until grep -q event=ready log || ! kill -0 $pid; do sleep 0.05; done;"
                           " kill $pid; wait $pid; cat log; grep -q event=ready log"),
                     0);
    assert_int_equal(shell("timeout 20 $B/tpo-router --listen 127.0.0.1:0 --model model >log 2>&1; test $? = 1 &&"
                           " grep -q 'its shard rest.safetensors is missing' log"),
                     0);
    assert_int_equal(shell("$B/tpo-region --check model >log; test $? = 1 && grep -q 'its shard rest.safetensors is missing' log"),
                     0);
}

TPO_TESTS(cmocka_unit_test(a_head_starts_without_the_others_shards))
