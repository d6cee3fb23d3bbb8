/* This file owns the sampling rules. */
#include "common/media/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FRAMES_MAX 1000000000.0 /* past any file; keeps the counts of fpsR inside an int64 */

int tpo_sampling_parse(struct tpo_sampling *s, const char *rule, struct tpo_error *err)
{
    if (strcmp(rule, "middle") == 0) {
        s->rule = TPO_SAMPLE_MIDDLE;
        return TPO_OK;
    }
    /* strtod alone would take spaces, signs, hex and "inf". */
    if (strncmp(rule, "fps", 3) == 0 && rule[3] != '\0' && strspn(rule + 3, "0123456789.") == strlen(rule + 3)) {
        char *end;
        double rate = strtod(rule + 3, &end);
        if (*end == '\0' && rate >= 0.001 && rate <= 1000) {
            s->rule = TPO_SAMPLE_FPS;
            s->rate = rate;
            return TPO_OK;
        }
    }
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "sampling_rule", "a sampling rule is `middle` or `fpsR`, R in 0.001..1000");
}

static int64_t middle(const struct tpo_sampling *s, int32_t *out, int64_t max, int64_t vlen)
{
    int64_t m = s->n < vlen ? s->n : vlen, count = s->pad ? s->n : m;
    for (int64_t k = 0; k < count && k < max; k++) {
        int64_t from = k * vlen / m, to = (k + 1) * vlen / m;
        out[k] = k < m ? (int32_t)((from + to - 1) / 2) : out[m - 1];
    }
    return count;
}

static int64_t at_rate(const struct tpo_sampling *s, int32_t *out, int64_t max, int64_t vlen, double fps)
{
    /* An arithmetic sequence as NumPy makes one: the count from the quotient, the step as it comes back from the first sum. */
    double delta = 1.0 / s->rate, start = delta / 2, stop = (double)vlen / fps + delta / 2, step = (start + delta) - start;
    double wanted = ceil((stop - start) / delta);
    int64_t n = wanted < 0 ? 0 : wanted > FRAMES_MAX ? (int64_t)FRAMES_MAX : (int64_t)wanted;
    int64_t kept = 0;
    /* Indices grow, so the kept ones are a prefix. */
    for (; kept < n; kept++) {
        double index = nearbyint((start + (double)kept * step) * fps);
        if (index >= (double)vlen) break;
        if (kept < max) out[kept] = (int32_t)index;
    }
    return s->rate >= 1 ? kept - kept % (int64_t)s->rate : kept;
}

int64_t tpo_sampling_indices(const struct tpo_sampling *s, int32_t *out, int64_t max, int64_t vlen, double fps)
{
    if (vlen <= 0 || vlen > (int64_t)FRAMES_MAX) return 0;
    if (s->rule == TPO_SAMPLE_MIDDLE) return s->n > 0 ? middle(s, out, max, vlen) : 0;
    if (!(fps > 0) || !isfinite(fps)) return 0;
    return at_rate(s, out, max, vlen, fps);
}
