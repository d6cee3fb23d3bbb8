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

/* Above what was published last and what is served anywhere: a clock may have been set back since. */
static uint64_t next_number(struct tpo_crew *t)
{
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    const uint64_t now = (uint64_t)clock.tv_sec * 1000 + (uint64_t)clock.tv_nsec / 1000000;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) {
            const uint64_t served = t->replicas[p][r].begun.served;
            if (served > t->published) t->published = served;
        }
    t->published = now > t->published ? now : t->published + 1;
    return t->published;
}

static bool must_wait(const struct tpo_error *err)
{
    return err->code == TPO_RESOURCE_EXHAUSTED && strcmp(err->reason, "versions") == 0;
}

int tpo_crew_publish(struct tpo_crew *t, int step, int wait_ms, bool patient, uint64_t *version, struct tpo_error *err)
{
    struct tpo_key key = {.step = (uint64_t)step, .version = t->version};
    const uint64_t number = next_number(t);
    const double until_s = tpo_now_s() + wait_ms * 1e-3;
    bool taken = false, said = false;
    snprintf(key.run, sizeof(key.run), "%s", t->run);
    *version = 0;
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p];) {
            struct tpo_learner *l = &t->replicas[p][r].learner;
            struct tpo_error why = {0};
            const int rc = l->publish(l->self, &key, number, &why);
            if (rc == TPO_OK) {
                taken = true;
                r++;
                tpo_fault_reach(TPO_FAULT_MID_PUBLISH);
            } else if (must_wait(&why) && !taken && (!patient || tpo_now_s() >= until_s)) {
                if (patient) tpo_log(TPO_LOG_WARN, "publish_given_up", "for=%s step=%d", tpo_part_names[p], step);
                return TPO_OK;
            } else if (must_wait(&why) && tpo_now_s() < until_s) {
                if (!said) tpo_log(TPO_LOG_INFO, "publish_waits", "for=%s step=%d wait_ms=%d", tpo_part_names[p], step, wait_ms);
                said = true;
                nanosleep(&(struct timespec){0, RETRY_MS * 1000000L}, NULL);
            } else {
                if (err != NULL) *err = why;
                return rc;
            }
        }
    *version = number;
    return TPO_OK;
}
