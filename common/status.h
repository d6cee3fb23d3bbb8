/* status.h -- the codes every function of tpomesh returns, and the sentence that goes with one.
 *
 * A code is for the program: one table gives each its name, its gRPC code and its HTTP status (the mapping is
 * grpc-gateway's HTTPStatusFromCode). `struct tpo_error` is for the human, belongs to the caller and has a fixed size, so
 * that reporting an error never needs memory. Whose fault it is decides the code: caller, peer, system, us. */
#ifndef TPO_COMMON_STATUS_H
#define TPO_COMMON_STATUS_H

/*  name                  gRPC HTTP  the sentence when nobody wrote a better one */
#define TPO_STATUS_MAP(X)                                                                                                          \
    X(OK, 0, 200, "ok")                                                                                                            \
    X(CANCELLED, 1, 499, "the caller went away")                                                                                   \
    X(UNKNOWN, 2, 500, "an error of unknown kind")                                                                                 \
    X(INVALID_ARGUMENT, 3, 400, "the request is not valid")                                                                        \
    X(DEADLINE_EXCEEDED, 4, 504, "the deadline passed first")                                                                      \
    X(NOT_FOUND, 5, 404, "there is no such thing here")                                                                            \
    X(ALREADY_EXISTS, 6, 409, "it exists already")                                                                                 \
    X(PERMISSION_DENIED, 7, 403, "not allowed")                                                                                    \
    X(RESOURCE_EXHAUSTED, 8, 429, "a limit was reached")                                                                           \
    X(FAILED_PRECONDITION, 9, 400, "the state does not allow it")                                                                  \
    X(ABORTED, 10, 409, "given up because of a conflict")                                                                          \
    X(OUT_OF_RANGE, 11, 400, "past the end")                                                                                       \
    X(UNIMPLEMENTED, 12, 501, "not offered here")                                                                                  \
    X(INTERNAL, 13, 500, "a fault of ours")                                                                                        \
    X(UNAVAILABLE, 14, 503, "not reachable just now")                                                                              \
    X(DATA_LOSS, 15, 500, "the data is damaged")                                                                                   \
    X(UNAUTHENTICATED, 16, 401, "who is asking is not known")

enum tpo_status {
#define X(name, grpc, http, sentence) TPO_##name = grpc,
    TPO_STATUS_MAP(X)
#undef X
    /* The two that a kernel or an allocator returns; the same codes under the names C programmers look for. */
    TPO_EINVAL = TPO_INVALID_ARGUMENT,
    TPO_ENOMEM = TPO_RESOURCE_EXHAUSTED,
};

/* What went wrong, for a person. `reason` is a stable snake_case word a client may test ("media_missing"); `stage` is the
 * service that failed ("encoder"), empty for this process; retry_ms > 0 says when trying again makes sense. */
struct tpo_error {
    int code; /* enum tpo_status */
    int retry_ms;
    char reason[48];
    char stage[24];
    char message[256];
};

const char *tpo_status_name(int code);     /* "INVALID_ARGUMENT"; "UNKNOWN" for a code outside the table */
const char *tpo_status_sentence(int code); /* "the request is not valid" */
int tpo_status_http(int code);             /* 400 */

/* Fills *err (which may be NULL) and returns `code`, so that a function can end with `return tpo_fail(...)`.
 * While cleaning up, the first error is the one we keep: callers pass NULL then. */
int tpo_fail(struct tpo_error *err, int code, const char *reason, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* For our own bugs only; stays on in release builds. Input of a stranger never reaches one. */
#define TPO_ASSERT(condition) ((condition) ? (void)0 : tpo_assert_failed(#condition, __FILE__, __LINE__))
_Noreturn void tpo_assert_failed(const char *condition, const char *file, int line);

#endif
