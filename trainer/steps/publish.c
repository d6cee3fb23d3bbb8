/* This file owns the publishing of a crew's weights. */
#include "trainer/steps/publish.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/host/fault.h"
#include "trainer/steps/timing.h"

#define RETRY_MS 200

/* The newest version that is served anywhere, as far as is known. */
static uint64_t newest_served(const struct tpo_crew *t)
{
    uint64_t newest = 0;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++)
            if (t->replicas[p][r].begun.served > newest) newest = t->replicas[p][r].begun.served;
    return newest;
}

/* A clock may have been set back since the number before. */
static uint64_t number_above(uint64_t last)
{
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    const uint64_t now = (uint64_t)clock.tv_sec * 1000 + (uint64_t)clock.tv_nsec / 1000000;
    return now > last ? now : last + 1;
}

static bool must_wait(const struct tpo_error *err)
{
    return err->code == TPO_RESOURCE_EXHAUSTED && strcmp(err->reason, "versions") == 0;
}

/* A publish on its way round the services. */
struct giving {
    struct tpo_crew *crew;
    struct tpo_key key;
    uint64_t number;
    int wait_ms;
    double until_s; /* when waiting ends */
    bool patient, taken, said;
    bool later; /* none has room for it, and none has it */
};

static int give(struct giving *g, int part, struct tpo_replica *x, struct tpo_error *err)
{
    for (;;) {
        struct tpo_error why = {0};
        const int rc = x->learner.publish(x->learner.self, &g->key, g->number, &why);
        const bool wait = rc != TPO_OK && must_wait(&why), over = tpo_now_s() >= g->until_s;
        if (rc == TPO_OK) {
            g->taken = true;
            x->begun.served = g->number;
            tpo_fault_reach(TPO_FAULT_MID_PUBLISH);
            return TPO_OK;
        }
        if (wait && !g->taken && (!g->patient || over)) {
            if (g->patient) tpo_log(TPO_LOG_WARN, "publish_given_up", "for=%s step=%d", tpo_part_names[part], (int)g->key.step);
            g->later = true;
            return TPO_OK;
        }
        if (!wait || over) {
            if (err != NULL) *err = why;
            return rc;
        }
        if (!g->said)
            tpo_log(TPO_LOG_INFO, "publish_waits", "for=%s step=%d wait_ms=%d", tpo_part_names[part], (int)g->key.step, g->wait_ms);
        g->said = true;
        nanosleep(&(struct timespec){0, RETRY_MS * 1000000L}, NULL);
    }
}

bool tpo_crew_serves_apart(struct tpo_crew *t)
{
    const uint64_t newest = t->replicas[0][0].begun.served;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++)
            if (t->replicas[p][r].begun.served != newest) return true;
    return false;
}

int tpo_crew_publish(struct tpo_crew *t, int step, int wait_ms, bool patient, uint64_t *version, struct tpo_error *err)
{
    const uint64_t newest = newest_served(t), used = newest > t->published ? newest : t->published;
    struct giving g = {.crew = t,
                       .key = {.step = (uint64_t)step, .version = t->version},
                       .number = *version != 0 && *version == newest ? newest : number_above(used),
                       .wait_ms = wait_ms,
                       .until_s = tpo_now_s() + wait_ms * 1e-3,
                       .patient = patient};
    int rc = TPO_OK;
    snprintf(g.key.run, sizeof(g.key.run), "%s", t->run);
    /* Who serves the newest first: one that lost its versions has room when others have none, and once it has taken this they must. */
    for (int pass = 0; pass < 2; pass++)
        for (int p = 0; p < TPO_PARTS; p++)
            for (int r = 0; r < t->options.n_replicas[p] && rc == TPO_OK && !g.later; r++) {
                struct tpo_replica *x = &t->replicas[p][r];
                if (pass == 0 ? x->begun.served == newest : x->begun.served != g.number) rc = give(&g, p, x, err);
            }
    if (g.taken || rc != TPO_OK) t->published = g.number;
    *version = rc == TPO_OK && g.later ? 0 : g.number;
    return rc;
}
