/* timing.h -- where the time of a step went: how long the trainer was in each phase, and how long no service computed. */
#ifndef TPO_TRAINER_STEPS_TIMING_H
#define TPO_TRAINER_STEPS_TIMING_H

enum tpo_phase {
    TPO_PHASE_DATA, /* waiting for samples */
    TPO_PHASE_FORWARD,
    TPO_PHASE_BACKWARD,
    TPO_PHASE_PREPARE, /* with Norms */
    TPO_PHASE_COMMIT,
    TPO_PHASES
};

extern const char *const tpo_phase_names[TPO_PHASES];

struct tpo_timing {
    double seconds[TPO_PHASES];
    double wall_s;   /* of the step, data wait included */
    double bubble_s; /* no service computed */
};

double tpo_now_s(void); /* monotonic */

#endif
