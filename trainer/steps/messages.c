/* This file owns the sizes of what a mesh passes on in a step. */
#include "trainer/steps/messages.h"

#include "common/rpc/client.h"
#include "services/host/learner_state.h"

#define TEXT_BYTES ((int64_t)2 << 20) /* left for what else a micro-batch says */
#define MOST_BYTES (TPO_RPC_MESSAGE_BYTES - TEXT_BYTES)

static int refuse(const struct tpo_recipe_stage *s, int data, const char *what, int64_t bytes, int64_t of_one,
                  struct tpo_error *err)
{
    const double mib = 1 << 20;
    return tpo_fail(
        err, TPO_INVALID_ARGUMENT, "samples",
        "stage %s, entry %d of data: %d samples have %.1f MiB of %s, a message over a mesh %.1f: take at most %lld samples "
        "(and more micro_batches), or fewer frames",
        s->name, data + 1, s->data[data].samples, (double)bytes / mib, what, (double)MOST_BYTES / mib,
        (long long)(MOST_BYTES / of_one));
}

/* What a sample brings for each of its frames: pixels, and where it has them dense targets of 9 numbers a patch. */
static int64_t frame_bytes(const struct tpo_recipe_data *d, const struct tpo_config *c)
{
    const int64_t side = c->vision_encoder.img_size, patches = side / c->vision_encoder.patch_size;
    return side * side * 3 + (d->draw.dense ? patches * patches * 36 : 0);
}

int tpo_message_check(const struct tpo_recipe_stage *s, int data, const struct tpo_config *c, bool by_id, int64_t n_films,
                      struct tpo_error *err)
{
    const struct tpo_recipe_data *d = &s->data[data];
    const bool file = d->annotations != NULL;
    const int most = c->vision_encoder.num_frames, given = d->draw.n_frames;
    const int64_t frames = file && given == 0 ? most : given, films = !file || n_films > d->samples ? d->samples : n_films;
    const int64_t of_frame = frame_bytes(d, c), pixels = of_frame * (films * frames + d->samples - films);
    const int64_t of_visual = (int64_t)tpo_config_queries(c) * c->bridge.hidden_size * (int64_t)sizeof(float);
    const bool named = by_id && file && frames == most;
    if (!named && pixels > MOST_BYTES) return refuse(s, data, "pixels", pixels, of_frame * (films > 0 ? frames : 1), err);
    if (of_visual * d->samples > MOST_BYTES) return refuse(s, data, "visual tokens", of_visual * d->samples, of_visual, err);
    return TPO_OK;
}

static bool learns(const struct tpo_plan *plan, const struct tpo_params *params)
{
    for (int i = 0; i < params->n; i++)
        for (int g = 0; g < plan->n_groups; g++)
            for (int k = 0; k < plan->groups[g].n_patterns; k++)
                if (tpo_pattern_match(plan->groups[g].patterns[k], params->items[i]->name)) return true;
    return false;
}

int tpo_messages_check(const struct tpo_recipe *r, int first, const struct tpo_config *c, const struct tpo_params *encoder,
                       struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int i = first; i < r->n_stages && rc == TPO_OK; i++) {
        const struct tpo_recipe_stage *s = &r->stages[i];
        const bool by_id = !learns(&s->plan, encoder);
        for (int k = 0; k < s->n_data && rc == TPO_OK; k++)
            rc = tpo_message_check(s, k, c, by_id, s->data[k].source == TPO_ANNOTATIONS_MVBENCH ? s->data[k].samples : 0, err);
    }
    return rc;
}
