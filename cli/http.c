/* This file owns the HTTP calls of the command line. */
#include "cli/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/progress.h"
#include "common/text.h"

#define ANSWER_MAX ((size_t)64 << 20) /* bytes of a body, or of one line of an event stream */
#define GRACE_MS   5000               /* for the gateway to say itself that the time ran out */

struct answer {
    struct tpo_text body; /* of an answer that is no event stream, or the line being read */
    char event[32];
    void (*on_event)(void *owner, const char *event, const json_t *data);
    void *owner;
};

/* Whether there is room for it; curl ends the transfer where a callback takes less than it was given. */
static bool keep(struct answer *a, const char *data, size_t n)
{
    if (n > ANSWER_MAX - a->body.size) return false;
    tpo_text_add(&a->body, data, n);
    return !a->body.failed;
}

static size_t on_body(char *data, size_t size, size_t n, void *owner)
{
    return keep(owner, data, size * n) ? size * n : 0;
}

/* The error object of the API; what is not one becomes UNKNOWN with the HTTP status. */
static int read_error(const char *text, long http, struct tpo_error *err)
{
    json_t *body = text != NULL ? json_loads(text, 0, NULL) : NULL;
    const json_t *e = json_object_get(body, "error");
    const char *code = json_string_value(json_object_get(e, "code")), *reason = json_string_value(json_object_get(e, "reason"));
    const char *message = json_string_value(json_object_get(e, "message")), *stage = json_string_value(json_object_get(e, "stage"));
    int number = TPO_UNKNOWN;
    for (int i = 1; code != NULL && i <= 16; i++)
        if (strcmp(tpo_status_name(i), code) == 0) number = i;
    if (message != NULL)
        tpo_fail(err, number, reason != NULL ? reason : "http", "%s", message);
    else
        tpo_fail(err, number, "http", "the gateway answered HTTP %ld", http);
    if (stage != NULL && err != NULL) snprintf(err->stage, sizeof(err->stage), "%s", stage);
    json_decref(body);
    return number;
}

static CURL *prepare(const char *base, const char *path, struct answer *a)
{
    char url[1024];
    CURL *c = curl_easy_init();
    if (c == NULL) return NULL;
    snprintf(url, sizeof(url), "%s%s%s", strstr(base, "://") != NULL ? "" : "http://", base, path);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 5L);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, a);
    return c;
}

/* Runs it; TPO_OK when an answer came, whatever its status. */
static int perform(CURL *c, const char *base, long *http, struct tpo_error *err)
{
    CURLcode rc = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, http);
    if (rc == CURLE_OK) return TPO_OK;
    if (rc == CURLE_COULDNT_CONNECT)
        return tpo_fail(err, TPO_UNAVAILABLE, "gateway_down", "no gateway answers at %s; `tpo up` starts one", base);
    if (rc == CURLE_OPERATION_TIMEDOUT) return tpo_fail(err, TPO_DEADLINE_EXCEEDED, "timeout", "%s: no answer in time", base);
    if (rc == CURLE_WRITE_ERROR)
        return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "http", "%s: an answer of more than %zu MiB, or no memory for it", base,
                        ANSWER_MAX >> 20);
    return tpo_fail(err, TPO_UNAVAILABLE, "http", "%s: %s", base, curl_easy_strerror(rc));
}

int tpo_http_get(const char *base, const char *path, long *http, json_t **body, struct tpo_error *err)
{
    struct answer a = {0};
    CURL *c = prepare(base, path, &a);
    *body = NULL;
    *http = 0;
    if (c == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory");
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 5L);
    int rc = perform(c, base, http, err);
    if (rc == TPO_OK && a.body.data != NULL) *body = json_loads(a.body.data, 0, NULL);
    curl_easy_cleanup(c);
    tpo_text_free(&a.body);
    return rc;
}

static int on_upload(void *owner, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    (void)down_total, (void)down;
    tpo_progress_show(owner, (double)up, (double)up_total);
    return 0;
}

static int upload(CURL *c, const char *base, FILE *in, long long size, int64_t timeout_ms, struct answer *a, struct tpo_error *err)
{
    long http = 0;
    struct tpo_progress bar = {.what = "uploading", .unit = "B"};
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/octet-stream");
    headers = curl_slist_append(headers, "Expect:");
    curl_easy_setopt(c, CURLOPT_POST, 1L);
    curl_easy_setopt(c, CURLOPT_READDATA, in);
    curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_upload);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, &bar);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    /* A large file on a slow line may take its time, as long as something moves. */
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)((timeout_ms + GRACE_MS) / 1000));
    int rc = perform(c, base, &http, err);
    tpo_progress_end(&bar);
    curl_slist_free_all(headers);
    return rc == TPO_OK && http != 200 && http != 201 ? read_error(a->body.data, http, err) : rc;
}

int tpo_http_upload(const char *base, const char *file, int64_t timeout_ms, char id[65], struct tpo_error *err)
{
    struct answer a = {0};
    struct stat st;
    FILE *in = fopen(file, "rb");
    if (in == NULL || fstat(fileno(in), &st) != 0 || !S_ISREG(st.st_mode)) {
        int why = errno;
        if (in != NULL) fclose(in);
        return tpo_fail(err, TPO_NOT_FOUND, "file", "%s: %s", file, in == NULL ? strerror(why) : "not a file");
    }
    CURL *c = prepare(base, "/v1/media", &a);
    int rc = c != NULL ? upload(c, base, in, (long long)st.st_size, timeout_ms, &a, err)
                       : tpo_fail(err, TPO_ENOMEM, "memory", "no memory");
    json_t *body = rc == TPO_OK && a.body.data != NULL ? json_loads(a.body.data, 0, NULL) : NULL;
    const char *text = json_string_value(json_object_get(body, "id"));
    if (rc == TPO_OK && (text == NULL || strlen(text) != 64))
        rc = tpo_fail(err, TPO_UNKNOWN, "http", "the gateway told no media id");
    if (rc == TPO_OK) memcpy(id, text, 65);
    json_decref(body);
    curl_easy_cleanup(c);
    fclose(in);
    tpo_text_free(&a.body);
    return rc;
}

/* --- server-sent events --------------------------------------------------------------------------------------------------------------------- */

static void on_line(struct answer *a, char *line)
{
    line[strcspn(line, "\r")] = '\0';
    if (strncmp(line, "event:", 6) == 0) snprintf(a->event, sizeof(a->event), "%s", line + 6 + strspn(line + 6, " "));
    if (strncmp(line, "data:", 5) != 0) return;
    json_t *data = json_loads(line + 5, 0, NULL);
    if (data != NULL) a->on_event(a->owner, a->event, data);
    json_decref(data);
}

static size_t on_stream(char *data, size_t size, size_t n, void *owner)
{
    struct answer *a = owner;
    size_t bytes = size * n, begin = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != '\n') continue;
        if (!keep(a, data + begin, i - begin)) return 0;
        if (a->body.data != NULL) on_line(a, a->body.data);
        tpo_text_free(&a->body);
        begin = i + 1;
    }
    return begin == bytes || keep(a, data + begin, bytes - begin) ? bytes : 0;
}

/* An answer that is no event stream is an error object: that one is kept whole. */
static size_t on_header(char *data, size_t size, size_t n, void *curl)
{
    if (size * n > 13 && strncasecmp(data, "content-type:", 13) == 0 && memmem(data, size * n, "text/event-stream", 17) != NULL)
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_stream);
    return size * n;
}

int tpo_http_perceive(const char *base, const json_t *request, int64_t timeout_ms,
                      void (*on_event)(void *owner, const char *event, const json_t *data), void *owner, struct tpo_error *err)
{
    struct answer a = {.on_event = on_event, .owner = owner};
    long http = 0;
    char *text = json_dumps(request, JSON_COMPACT);
    CURL *c = prepare(base, "/v1/perceive", &a);
    if (text == NULL || c == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory");
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, text);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)(timeout_ms + GRACE_MS));
    int rc = perform(c, base, &http, err);
    if (rc == TPO_OK && http != 200) rc = read_error(a.body.data, http, err);
    curl_slist_free_all(headers);
    curl_easy_cleanup(c);
    free(text);
    tpo_text_free(&a.body);
    return rc;
}
