/* tensor_list.h -- tensors.txt: every name and shape of a checkpoint, as a folder may tell it beside its config.json.
 *
 * A line is a name and its shape, "vision_layernorm.weight [1024]". In a name {a..b} stands for each number of the range and {a,b} for each word;
 * of {weight,bias} the first takes the first shape and the second the second. "#" begins a comment line. It tells `tpo model random` what the
 * heads have that this build lacks, so that a folder comes out whole; what the services own must be there as their schemas ask, and all of it. */
#ifndef TPO_TRAINER_TENSOR_LIST_H
#define TPO_TRAINER_TENSOR_LIST_H

#include "nn/params.h"

/* Declares in `others` what FOLDER/tensors.txt lists for nobody in `owned` (n schemas): biases zero, norms one, all else N(0, 0.02),
 * `position_ids` integers. Nothing where there is no such file. INVALID_ARGUMENT "tensor_list" naming the line that cannot be read or the tensor
 * that differs from its schema, comes twice, is under no known prefix, or is missing. */
int tpo_tensor_list_read(struct tpo_params *others, const struct tpo_params *owned, int n, const char *folder,
                         struct tpo_error *err);

#endif
