/* peft.h -- the language model's LoRA in the layout of Hugging Face PEFT, out of a model folder and into one.
 *
 *   DIR/adapter_config.json         what the tensors mean: see trainer/peft_config.h
 *   DIR/adapter_model.safetensors   F32, PEFT's names: ours without "lm." and ".default", as in
 *                                   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (r, in), ...lora_B.weight (out, r)
 *
 * Both ways keep every bit of an f32 value. Hu et al. 2021 (arXiv:2106.09685), section 4.1: y = W x + (alpha / r) B A x.
 * Both refuse a model whose router tensors are not those of its config: FAILED_PRECONDITION "weights" by the name of the first. */
#ifndef TPO_TRAINER_PEFT_H
#define TPO_TRAINER_PEFT_H

#include "common/status.h"

/* Writes the adapter of the model folder `model` to `dir`, which is made where it is missing. BF16 is widened; F16 is FAILED_PRECONDITION "weights".
 * FAILED_PRECONDITION "lora" when the model's config has use_lora false, ALREADY_EXISTS when `dir` holds an adapter. */
int tpo_peft_export(const char *dir, const char *model, struct tpo_error *err);

/* Writes `dir`: the model folder `model` with the adapter's LoRA (F32) in place of its own; every other tensor as it is. INVALID_ARGUMENT "adapter"
 * by the name of the key or tensor: a config that means something else than the router computes (trainer/peft_config.h), a tensor that is missing,
 * extra, misshapen or not F32. ALREADY_EXISTS when `dir` holds a model. A failure leaves what was there before. */
int tpo_peft_import(const char *dir, const char *model, const char *adapter, struct tpo_error *err);

#endif
