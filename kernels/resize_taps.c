/* This file owns the weights of bicubic resizing. */
#include "kernels/resize_taps.h"

#include <math.h>
#include <stdlib.h>

static double cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

static void weigh_antialiased(struct tpo_side *s, int i, double scale, int in)
{
    double stretch = scale > 1 ? scale : 1, centre = scale * (i + 0.5), support = 2 * stretch, total = 0;
    double from = centre - support + 0.5, to = centre + support + 0.5;
    int first = from > 0 ? (int)from : 0, last = to < in ? (int)to : in;
    for (int j = first; j < last; j++) total += cubic((j - centre + 0.5) / stretch, -0.5);
    s->n[i] = last - first;
    for (int j = first; j < last; j++) {
        s->at[(size_t)i * s->taps + j - first] = j;
        s->weight[(size_t)i * s->taps + j - first] = (float)(cubic((j - centre + 0.5) / stretch, -0.5) / total);
    }
}

static void weigh_four(struct tpo_side *s, int i, double scale, int in)
{
    double x = scale * (i + 0.5) - 0.5, base = floor(x), t = x - base;
    s->n[i] = 4;
    for (int k = 0; k < 4; k++) {
        double j = base + k - 1;
        s->at[(size_t)i * 4 + k] = j < 0 ? 0 : j > in - 1 ? in - 1 : (int)j;
        s->weight[(size_t)i * 4 + k] = (float)cubic(t + 1 - k, -0.75);
    }
}

void tpo_side_free(struct tpo_side *s)
{
    free(s->at), free(s->n), free(s->weight);
}

int tpo_side_init(struct tpo_side *s, int in, int out, int antialias)
{
    double scale = (double)in / out;
    s->taps = antialias ? (int)ceil(2 * (scale > 1 ? scale : 1)) * 2 + 1 : 4;
    if (antialias && s->taps > in) s->taps = in;
    size_t n = (size_t)out * (size_t)s->taps;
    s->at = malloc(n * sizeof(*s->at));
    s->n = malloc((size_t)out * sizeof(*s->n));
    s->weight = malloc(n * sizeof(*s->weight));
    if (s->at == NULL || s->n == NULL || s->weight == NULL) {
        tpo_side_free(s);
        return TPO_ENOMEM;
    }
    for (int i = 0; i < out; i++) {
        if (antialias)
            weigh_antialiased(s, i, scale, in);
        else
            weigh_four(s, i, scale, in);
    }
    return TPO_OK;
}
