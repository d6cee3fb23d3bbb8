/* check.h -- does a model folder hold exactly what a service needs? Answered from headers alone, without reading or mapping in any data.
 *
 * `tpo-SERVICE --check DIR` prints this and nothing else:
 *
 *   encoder: 632 tensors, 945306632 bytes, BF16 631, I64 1
 *   encoder: fault: vision_layernorm.weight is missing: nothing there, the config asks for [1024]
 *   encoder: sound                                   (or: encoder: 1 fault)
 */
#ifndef TPO_NN_CHECK_H
#define TPO_NN_CHECK_H

#include "nn/config.h"
#include "nn/params.h"

/* Prints the report of `stage` on `folder`, whose config.json is read first; `declare` names the tensors that the service needs of that config.
 * 0: sound; 1: at least one fault; 2: it could not look. These are exit statuses. */
int tpo_check_folder(const char *stage, void (*declare)(struct tpo_params *schema, const struct tpo_config *c), const char *folder);

#endif
