/* budget.h -- how much of the host's memory all tapes of this process may take together.
 *
 * Linux promises memory that is not there and then ends a process, its other requests and all; a message of a few MiB may ask for terabytes of
 * activations. So a tape that would pass the bound fails as one without memory does. What a device of its own holds is not counted: there running out
 * is an error and no end. Any thread. */
#ifndef TPO_NN_BUDGET_H
#define TPO_NN_BUDGET_H

#include <stdbool.h>
#include <stddef.h>

/* The bound: three quarters of what the process may ever have (common/memory.h), until another is set; 0 goes back to that. */
size_t tpo_budget_most(void);
void tpo_budget_set(size_t bytes);

bool tpo_budget_fits(size_t bytes); /* as things are now; nothing is taken */
bool tpo_budget_take(size_t bytes); /* false: it does not fit, nothing is taken */
void tpo_budget_give(size_t bytes);

#endif
