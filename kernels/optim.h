/* optim.h -- one optimiser step of one tensor.
 *
 * AdamW (Loshchilov & Hutter 2019, alg. 2), t counted from 1:
 *   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w' = w - rate (mhat / (sqrt(vhat) + eps) + decay w)
 * Muon (Jordan et al. 2024): Nesterov momentum, then five Newton-Schulz steps (3.4445, -4.7750, 2.0315) on the (R, C) matrix divided by its
 *   Frobenius norm, w' = w - rate (0.2 sqrt(max(R, C)) O + decay w)
 *
 *   The steps run on the Gram matrix of the short side and its polynomials, which are symmetric: half of each product is computed.
 *
 * Reads w, m, v (n), writes w_next, m_next, v_next (n), which may not alias them: a step is prepared beside the weights it will replace.
 * g is multiplied by `clip` first. Muon has no v. scratch of tpo_muon: at least tpo_muon_scratch(R, C) floats of the device. */
#ifndef TPO_KERNELS_OPTIM_H
#define TPO_KERNELS_OPTIM_H

#include "kernels/stream.h"

struct tpo_adamw {
    float rate, beta1, beta2, eps, decay, clip;
    int64_t t;
};

int tpo_adamw(struct tpo_stream *s, float *w_next, float *m_next, float *v_next, const float *w, const float *m, const float *v,
              const float *g, const struct tpo_adamw *step, int64_t n);

struct tpo_muon {
    float rate, momentum, decay, clip;
};

int64_t tpo_muon_scratch(int R, int C);
int tpo_muon(struct tpo_stream *s, float *w_next, float *m_next, const float *w, const float *m, const float *g,
             const struct tpo_muon *step, float *scratch, int R, int C);

#endif
