/* This file owns the count of what tapes hold of the host's memory. */
#include "nn/budget.h"

#include <pthread.h>
#include <stdatomic.h>

#include "common/memory.h"

static _Atomic size_t taken, set;
static size_t usual;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void usual_find(void)
{
    usual = (size_t)tpo_memory_bytes() / 4 * 3;
}

size_t tpo_budget_most(void)
{
    pthread_once(&once, usual_find);
    const size_t bytes = set;
    return bytes > 0 ? bytes : usual;
}

void tpo_budget_set(size_t bytes)
{
    set = bytes;
}

bool tpo_budget_fits(size_t bytes)
{
    const size_t most = tpo_budget_most(), held = taken;
    return bytes <= most && held <= most - bytes;
}

bool tpo_budget_take(size_t bytes)
{
    const size_t most = tpo_budget_most();
    if (bytes > most) return false;
    if (atomic_fetch_add(&taken, bytes) <= most - bytes) return true;
    tpo_budget_give(bytes);
    return false;
}

void tpo_budget_give(size_t bytes)
{
    atomic_fetch_sub(&taken, bytes);
}
