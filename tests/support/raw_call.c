/* This file owns the calls of a stranger. */
#include "tests/support/raw_call.h"

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/support/test.h"

#define CALL_S 60

static grpc_channel *channel_open(const char *address)
{
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, .value.integer = -1},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_RETRIES, .value.integer = 0},
    };
    const grpc_channel_args all = {.num_args = sizeof(args) / sizeof(args[0]), .args = args};
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(address, plain, &all);
    grpc_channel_credentials_release(plain);
    return channel;
}

/* What the other side answers is thrown away; only how the call ended is told. */
static struct raw_answer finish(grpc_call *call, grpc_completion_queue *queue, grpc_byte_buffer *message)
{
    struct raw_answer a = {0};
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *reply = NULL;
    grpc_status_code status;
    grpc_slice text = grpc_empty_slice();
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    grpc_op ops[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &reply},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &trailing, .status = &status, .status_details = &text}},
    };
    assert_int_equal(grpc_call_start_batch(call, ops, sizeof(ops) / sizeof(ops[0]), call, NULL), GRPC_CALL_OK);
    grpc_completion_queue_pluck(queue, call, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    a.status = (int)status;
    snprintf(a.text, sizeof(a.text), "%.*s", (int)GRPC_SLICE_LENGTH(text), (const char *)GRPC_SLICE_START_PTR(text));
    grpc_slice_unref(text);
    if (reply != NULL) grpc_byte_buffer_destroy(reply);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    return a;
}

struct raw_answer raw_call_zeros(const char *address, const char *path, size_t size)
{
    void *zeros = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(zeros != MAP_FAILED);
    grpc_init();
    grpc_channel *channel = channel_open(address);
    grpc_completion_queue *queue = grpc_completion_queue_create_for_pluck(NULL);
    const gpr_timespec deadline =
        gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_seconds((int64_t)tpo_test_limit_s(CALL_S), GPR_TIMESPAN));
    grpc_call *call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, queue, grpc_slice_from_copied_string(path),
                                               NULL, deadline, NULL);
    grpc_slice slice = grpc_slice_from_static_buffer(zeros, size);
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&slice, 1);
    const struct raw_answer a = finish(call, queue, message);
    grpc_byte_buffer_destroy(message);
    grpc_call_unref(call);
    grpc_channel_destroy(channel);
    grpc_completion_queue_shutdown(queue);
    grpc_completion_queue_destroy(queue);
    grpc_shutdown_blocking();
    munmap(zeros, size);
    return a;
}

size_t raw_peak_bytes(int pid)
{
    char path[64], line[256];
    size_t kb = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (kb == 0 && fgets(line, sizeof(line), f) != NULL) (void)!sscanf(line, "VmHWM: %zu", &kb);
    fclose(f);
    assert_true(kb > 0);
    return kb * 1024;
}
