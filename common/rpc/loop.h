/* loop.h -- the thread that owns calls: a gRPC completion queue, and where its events are delivered. Private to common/rpc.
 *
 * Alone (a server's own): the completion-queue thread runs every handler itself. Bridged (tpo_loop_open of client.h): it only appends events to a
 * list and calls wake; the owner runs them in tpo_loop_poll. Everything attached to a loop is touched by that one thread.
 *
 * C core has no alarm, so another thread wakes a lone loop by an empty batch, the one kind of batch that may be started from anywhere; it is
 * started on a call that the loop keeps for nothing else, and what it announces is in the posted list. */
#ifndef TPO_COMMON_RPC_LOOP_H
#define TPO_COMMON_RPC_LOOP_H

#include <grpc/grpc.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/client.h"

/* What gRPC gives back: whose event it is. Out at most once at a time, so its link is part of it. */
struct tpo_tag {
    void (*on_event)(void *owner, int ok);
    void *owner;
    struct tpo_tag *next;
    int ok;
};

/* An argument of a channel or a server. `key` is borrowed as long as the argument is. */
static inline grpc_arg tpo_grpc_number(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

int tpo_loop_open_alone(struct tpo_loop **out, struct tpo_error *err);
grpc_completion_queue *tpo_loop_queue(struct tpo_loop *l);
/* Before every batch: what was written until now is seen by whoever gets its tag. gRPC orders the two as well, but within itself, where
 * thread sanitizer does not look. */
void tpo_loop_give(struct tpo_loop *l);

/* on_event(owner, 1) on the owning thread, later. Any thread. Not again before it has run. */
void tpo_loop_post(struct tpo_loop *l, struct tpo_tag *tag);
/* on_event about every 100 ms on the owning thread, until removed. Any thread adds and removes; after a removal it is not running. */
void tpo_loop_tick_add(struct tpo_loop *l, struct tpo_tag *tag);
void tpo_loop_tick_remove(struct tpo_loop *l, struct tpo_tag *tag);
/* Waits until *condition is seen zero by the owning thread or the time is over (-1: none). Bridged: polls meanwhile. Alone: from another thread;
 * the owner calls tpo_loop_notify after it changed what is waited for. */
bool tpo_loop_wait_zero(struct tpo_loop *l, _Atomic int *condition, int64_t timeout_ms);
void tpo_loop_notify(struct tpo_loop *l);

#endif
