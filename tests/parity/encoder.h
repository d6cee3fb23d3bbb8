/* encoder.h -- what the splice cases share with the encoder's: the ViT from a config and its pass over input/pixels. */
#ifndef TPO_TESTS_PARITY_ENCODER_H
#define TPO_TESTS_PARITY_ENCODER_H

#include "tests/parity/model.h"

/* Also reads the keys both kinds of case share: tubelet, checkpoint_frames_of_table, mlp_ratio, norm_eps. */
void tpo_parity_vision_config(struct tpo_case *c, struct tpo_config *config, int width, int heads, int blocks, int patch,
                              int img_size, int frames);
struct tpo_parity_pixels {
    int B;
    struct tpo_tensor *patches; /* with a gradient where the case holds grad/input/pixels */
    struct tpo_tensor *tokens;  /* before vision_layernorm; NULL after a failure */
};
struct tpo_parity_pixels tpo_parity_tokens(struct tpo_parity_model *m, struct tpo_case *c);
/* After backward: the patches' gradient, put back in the pixels' order. */
void tpo_parity_pixel_gradient(struct tpo_parity_model *m, struct tpo_case *c, const struct tpo_parity_pixels *p);

#endif
