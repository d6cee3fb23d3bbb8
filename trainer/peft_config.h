/* peft_config.h -- adapter_config.json, in which PEFT says what an adapter's tensors mean.
 *
 * The keys are those of peft.LoraConfig (https://huggingface.co/docs/peft/package_reference/lora). What a key says counts even where the tensors
 * would fit: PEFT itself loads by it, and one file must not mean two things. */
#ifndef TPO_TRAINER_PEFT_CONFIG_H
#define TPO_TRAINER_PEFT_CONFIG_H

#include "common/status.h"
#include "nn/config.h"
#include "nn/params.h"

/* Writes DIR/adapter_config.json for the LoRA of a model of this config. RESOURCE_EXHAUSTED when it cannot. */
int tpo_peft_config_write(const char *dir, const struct tpo_config *c, struct tpo_error *err);

/* Holds DIR/adapter_config.json against the model's config and the router's schema. NOT_FOUND for a missing file; INVALID_ARGUMENT "adapter" by the
 * name of the key where
 *   - peft_type is not LORA, or task_type is neither CAUSAL_LM nor absent;
 *   - r or lora_alpha is not the model's;
 *   - target_modules is no list of names (PEFT's own rule: a module's name or the end of one), leaves one of the model's layers out, or names
 *     something else;
 *   - init_lora_weights is a start that also changes the base's weights (pissa, olora, loftq, ...);
 *   - any other key is set, known here or not, but for those that change no answer (lora_dropout, revision, peft_version, ...). */
int tpo_peft_config_check(const char *dir, const struct tpo_config *c, const struct tpo_params *router, struct tpo_error *err);

#endif
