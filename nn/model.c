/* This file owns the ports of a forward pass. */
#include "nn/model.h"

#include <string.h>

struct tpo_tensor *tpo_forward_input(const struct tpo_forward *f, const char *name)
{
    for (int i = 0; i < f->n_inputs; i++)
        if (strcmp(f->inputs[i].name, name) == 0) return f->inputs[i].tensor;
    return NULL;
}

static void port_add(struct tpo_port *ports, int *n, const char *name, struct tpo_tensor *x)
{
    TPO_ASSERT(*n < TPO_PORTS_MAX);
    ports[(*n)++] = (struct tpo_port){.name = name, .tensor = x};
}

void tpo_forward_output(struct tpo_forward *f, const char *name, struct tpo_tensor *x)
{
    port_add(f->outputs, &f->n_outputs, name, x);
}
void tpo_forward_loss(struct tpo_forward *f, const char *name, struct tpo_tensor *x)
{
    port_add(f->losses, &f->n_losses, name, x);
}
