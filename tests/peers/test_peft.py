"""Hugging Face transformers and PEFT load our weights and our adapter, we load theirs, and the logits agree with the router's in f32."""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

BUILD = sys.argv[1]
SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
OURS = "lm.base_model.model."
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
TOLERANCE = 2e-5  # of the largest logit


def run(program, *args):
    subprocess.run([os.path.join(BUILD, program), *args], check=True, stdout=subprocess.DEVNULL)


def tensors_of(folder):
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}


def config_of(folder):
    return json.load(open(os.path.join(folder, "config.json")))["model_config"]


def base_model(folder):
    """The language model without LoRA, in transformers, from our tensors under their names there."""
    llm = config_of(folder)["llm"]
    config = MistralConfig(
        vocab_size=llm["vocab_size"], hidden_size=llm["hidden_size"], intermediate_size=llm["intermediate_size"],
        num_hidden_layers=llm["num_hidden_layers"], num_attention_heads=llm["num_attention_heads"],
        num_key_value_heads=llm["num_key_value_heads"], head_dim=llm["head_dim"], rms_norm_eps=llm["rms_norm_eps"],
        rope_theta=llm["rope_theta"], sliding_window=None, tie_word_embeddings=False, attn_implementation="eager")
    config.rope_parameters = {"rope_type": "default", "rope_theta": llm["rope_theta"]}
    model = MistralForCausalLM(config).float().eval()
    weights = {k[len(OURS):].replace(".base_layer", ""): v for k, v in tensors_of(folder).items() if k.startswith(OURS) and ".lora_" not in k}
    model.load_state_dict(weights, strict=True)
    return model


def router_logits(folder, ids, visual, scratch):
    paths = [os.path.join(scratch, name) for name in ("ids", "visual", "out")]
    np.asarray(ids, dtype="<i4").tofile(paths[0])
    if visual is not None:
        visual.numpy().astype("<f4").tofile(paths[1])
    run("tests/peers/logits", folder, paths[0], paths[1] if visual is not None else "-", paths[2])
    return torch.from_numpy(np.fromfile(paths[2], dtype="<f4").reshape(len(ids), -1))


def peer_logits(model, folder, ids, visual):
    tensors = tensors_of(folder)
    rows = tensors[OURS + "model.embed_tokens.weight"][[max(i, 0) for i in ids]]
    if visual is not None:
        seen = visual @ tensors["project_up.weight"].T + tensors["project_up.bias"]
        if "ext.router.slot_position" in tensors:
            seen = seen + tensors["ext.router.slot_position"]
        for at, i in enumerate(ids):
            if i < 0:
                rows[at] = seen[-1 - i]
    with torch.no_grad():
        return model(inputs_embeds=rows[None]).logits[0].float()


def compare(what, model, folder, scratch):
    config, worst = config_of(folder), 0.0
    vocabulary = config["llm"]["vocab_size"]
    random = np.random.default_rng(5)
    queries = config["bridge"]["num_query_token"] + config["bridge"]["extra_num_query_token"]
    for case in range(8):
        # The last three ids are task tokens, which the router replaces by task vectors.
        ids = random.integers(3, vocabulary - 8, size=int(random.integers(1, 40))).tolist()
        visual = None
        if case % 2:
            visual = torch.from_numpy(random.standard_normal((queries, config["bridge"]["hidden_size"])).astype("f4"))
            ids = ids[:3] + [-1 - k for k in range(queries)] + ids[3:]
        ours, theirs = router_logits(folder, ids, visual, scratch), peer_logits(model, folder, ids, visual)
        worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    print(f"{what}: largest difference {worst:.2e} of the largest logit")
    if not worst < TOLERANCE:
        sys.exit(f"{what}: the logits differ")


def random_lora(source, to):
    """B starts as zeros, which would hide it: every LoRA tensor becomes a random one."""
    tensors, random = load_file(os.path.join(source, "model.safetensors")), torch.Generator().manual_seed(3)
    for name, x in tensors.items():
        if ".lora_" in name:
            tensors[name] = torch.randn(x.shape, generator=random) * 0.1
    os.makedirs(to)
    for name in ("config.json", "added_tokens.json", "tokenizer.model"):
        open(os.path.join(to, name), "wb").write(open(os.path.join(source, name), "rb").read())
    save_file(tensors, os.path.join(to, "model.safetensors"))


def refused(model, scratch):
    """adapter_config.json of PEFT's own making that means something else than the router computes: refused by the name of the key."""
    llm = config_of(model)["llm"]
    fits = dict(r=llm["lora_r"], lora_alpha=llm["lora_alpha"], target_modules=TARGETS, task_type="CAUSAL_LM")
    changes = {"r": dict(r=llm["lora_r"] + 1), "lora_alpha": dict(lora_alpha=1), "task_type": dict(task_type="SEQ_CLS"),
               "target_modules": dict(target_modules=["q_proj", "v_proj"]), "target_modules is": dict(target_modules=".*_proj|lm_head"),
               "use_rslora": dict(use_rslora=True), "use_dora": dict(use_dora=True), "bias": dict(bias="lora_only"),
               "rank_pattern": dict(rank_pattern={"q_proj": 4}), "alpha_pattern": dict(alpha_pattern={"q_proj": 4}),
               "layers_to_transform": dict(layers_to_transform=[0]), "exclude_modules": dict(exclude_modules=["lm_head"]),
               "modules_to_save": dict(modules_to_save=["embed_tokens"]), "init_lora_weights": dict(init_lora_weights="olora")}
    for i, (key, change) in enumerate(changes.items()):
        adapter = os.path.join(scratch, f"refused{i}")
        LoraConfig(**{**fits, **change}).save_pretrained(adapter)
        done = subprocess.run([os.path.join(BUILD, "tpo-trainer"), "model", "import-peft", model, adapter, os.path.join(scratch, "none")],
                              capture_output=True, text=True)
        if done.returncode == 0 or f"adapter_config.json: {key} " not in done.stdout + done.stderr:
            sys.exit(f"an adapter with another {key}: {done.stdout}{done.stderr}")
    print(f"PEFT's adapters that do not fit: {len(changes)} refused by name")


def main():
    with tempfile.TemporaryDirectory() as scratch:
        at = lambda name: os.path.join(scratch, name)
        small = os.path.join(SOURCE, "models", "small")
        compare("models/small without LoRA", base_model(small), small, scratch)

        run("tpo-trainer", "model", "random", os.path.join(SOURCE, "trainer", "recipes", "lora"), at("fresh"))
        random_lora(at("fresh"), at("ours"))
        run("tpo-trainer", "model", "export-peft", at("ours"), at("adapter"))
        compare("our adapter in PEFT", PeftModel.from_pretrained(base_model(at("ours")), at("adapter")).eval(), at("ours"), scratch)

        llm = config_of(at("ours"))["llm"]
        theirs = get_peft_model(base_model(at("ours")), LoraConfig(r=llm["lora_r"], lora_alpha=llm["lora_alpha"], lora_dropout=0.0,
                                                                   target_modules=TARGETS, task_type="CAUSAL_LM")).eval()
        torch.manual_seed(7)
        for name, x in theirs.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(x, std=0.1)
        theirs.save_pretrained(at("theirs"), save_embedding_layers=False)
        run("tpo-trainer", "model", "import-peft", at("ours"), at("theirs"), at("imported"))
        compare("PEFT's adapter in the router", theirs, at("imported"), scratch)
        refused(at("ours"), scratch)


main()
