/* This file owns the tests' REST client. */
#include "tests/support/http.h"

#include <curl/curl.h>

#include "tests/support/test.h"

static size_t on_text(char *data, size_t one, size_t n, void *owner)
{
    tpo_text_add(owner, data, one * n);
    return one * n;
}

static void address_of(const char *run, char *out, size_t size)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/http", run);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, (int)size, f));
    out[strcspn(out, "\n")] = '\0';
    fclose(f);
}

struct http_answer http_send(const char *run, const char *path, const void *body, size_t size, long timeout_ms)
{
    struct http_answer a = {0};
    char address[128], url[256];
    address_of(run, address, sizeof(address));
    snprintf(url, sizeof(url), "http://%s%s", address, path);
    CURL *c = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &a.body);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, &a.head);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, timeout_ms);
    if (body != NULL) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
    }
    curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &a.status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(c);
    tpo_text_add(&a.body, "", 0);
    tpo_text_add(&a.head, "", 0);
    return a;
}

void http_free(struct http_answer *a)
{
    tpo_text_free(&a->body);
    tpo_text_free(&a->head);
}

long http_post(const char *run, const char *path, const void *body, size_t size, struct tpo_text *out)
{
    struct http_answer a = http_send(run, path, body, size, 0);
    *out = a.body;
    tpo_text_free(&a.head);
    return a.status;
}

void http_upload_sample(const char *run, const char *file, char *id)
{
    static char data[1 << 20];
    char path[4096];
    struct tpo_text out = {0};
    snprintf(path, sizeof(path), "%s/models/small/samples/%s", tpo_test_source(), file);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    const size_t size = fread(data, 1, sizeof(data), f);
    fclose(f);
    assert_int_equal(http_post(run, "/v1/media", data, size, &out), 200);
    json_t *root = json_loads(out.data, 0, NULL);
    assert_non_null(root);
    snprintf(id, 65, "%s", json_string_value(json_object_get(root, "id")));
    json_decref(root);
    tpo_text_free(&out);
}
