/* box_math.h -- the arithmetic of the box loss, which both twins run row by row on one thread: mean L1 of corners and mean 1 - GIoU (Rezatofighi
 * et al. 2019, arXiv:1902.09630). loss.h tells the shapes. Private to kernels/. */
#ifndef TPO_KERNELS_BOX_MATH_H
#define TPO_KERNELS_BOX_MATH_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __CUDACC__
#define TPO_BOX __device__ static inline
#else
#define TPO_BOX static inline
#endif

struct tpo_overlap {  /* the pieces of GIoU of two boxes */
    float w, h, W, H; /* sides of the intersection (0 when apart) and of the hull */
    float inter, uni, hull;
};

TPO_BOX struct tpo_overlap tpo_box_overlap(const float *p, const float *g)
{
    struct tpo_overlap o;
    o.w = fmaxf(fminf(p[2], g[2]) - fmaxf(p[0], g[0]), 0.0f);
    o.h = fmaxf(fminf(p[3], g[3]) - fmaxf(p[1], g[1]), 0.0f);
    o.W = fmaxf(fmaxf(p[2], g[2]) - fminf(p[0], g[0]), 0.0f);
    o.H = fmaxf(fmaxf(p[3], g[3]) - fminf(p[1], g[1]), 0.0f);
    o.inter = o.w * o.h;
    o.uni = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - o.inter;
    o.hull = o.W * o.H;
    return o;
}

/* Two boxes without area have neither union nor hull: GIoU counts as IoU 0 with no empty hull then. */
TPO_BOX float tpo_box_ratio(float a, float b)
{
    return b > 0.0f ? a / b : 0.0f;
}

TPO_BOX bool tpo_box_valid(const float *p)
{
    return p[2] >= p[0] && p[3] >= p[1];
}

TPO_BOX void tpo_box_rows(float *out, float *giou, const float *p, const float *g, int n)
{
    double l1 = 0.0, sum = 0.0;
    int n_valid = 0;
    for (int i = 0; i < n; i++, p += 4, g += 4) {
        for (int c = 0; c < 4; c++) l1 += fabs((double)p[c] - g[c]);
        float term = NAN;
        if (tpo_box_valid(p)) {
            const struct tpo_overlap o = tpo_box_overlap(p, g);
            term = 1.0f - (tpo_box_ratio(o.inter, o.uni) - tpo_box_ratio(o.hull - o.uni, o.hull));
            sum += term;
            n_valid++;
        }
        if (giou != NULL) giou[i] = term;
    }
    out[0] = (float)(l1 / (4.0 * n));
    out[1] = n_valid > 0 ? (float)(sum / n_valid) : 2.0f;
}

/* 1 - GIoU = 2 - inter/uni - uni/hull; a side's derivative goes to the corner that makes it, to p on a tie. */
TPO_BOX void tpo_box_giou_grad(float *d, const float *p, const float *g, float scale)
{
    const struct tpo_overlap o = tpo_box_overlap(p, g);
    float per_uni = 0.0f, per_inter = 0.0f, per_hull = 0.0f;
    if (o.uni > 0.0f) per_inter = -1.0f / o.uni, per_uni = o.inter / (o.uni * o.uni);
    if (o.hull > 0.0f) per_uni -= 1.0f / o.hull, per_hull = o.uni / (o.hull * o.hull);
    per_inter -= per_uni; /* through uni = area + area - inter */
    for (int axis = 0; axis < 2; axis++) {
        const float side = axis == 0 ? p[3] - p[1] : p[2] - p[0], inter = axis == 0 ? o.h : o.w, hull = axis == 0 ? o.H : o.W;
        const bool meets = (axis == 0 ? o.w : o.h) > 0.0f;
        float low = -per_uni * side, high = per_uni * side;
        if (meets && p[axis] >= g[axis]) low -= per_inter * inter;
        if (meets && p[axis + 2] <= g[axis + 2]) high += per_inter * inter;
        if (p[axis] <= g[axis]) low -= per_hull * hull;
        if (p[axis + 2] >= g[axis + 2]) high += per_hull * hull;
        d[axis] += scale * low;
        d[axis + 2] += scale * high;
    }
}

TPO_BOX void tpo_box_rows_grad(float *dp, const float *p, const float *g, float up_l1, float up_giou, int n)
{
    int n_valid = 0;
    for (int i = 0; i < n; i++) n_valid += tpo_box_valid(p + i * 4);
    for (int i = 0; i < n; i++, dp += 4, p += 4, g += 4) {
        for (int c = 0; c < 4; c++) dp[c] = up_l1 / (4.0f * (float)n) * (float)((p[c] > g[c]) - (p[c] < g[c]));
        if (tpo_box_valid(p)) tpo_box_giou_grad(dp, p, g, up_giou / (float)n_valid);
    }
}

#endif
