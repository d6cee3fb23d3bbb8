"""Writes a golden case of module multitask_step for the region head, at dimensions of your choice:

    build/peers/bin/python tests/peers/multitask_case.py DIR [--seed 3] [--heads 6 --kv-heads 2 --head-dim 10 ...]
    make parity KIT=DIR

PyTorch in f64, written from the model's description alone: a Mistral decoder with LoRA on every product, the language loss and the region head's
loss through the hidden state at the slot, one backward pass. A user box (`track_box`) can stand in the prompt, which the kit's own case lacks.
"""
import argparse
import json
import os

import numpy as np
import torch
from safetensors.numpy import save_file

SLOTS = ["box_begin", "time_begin", "temp", "boxes", "track_begin", "tracking", "track_box"]
LM = "lm.base_model.model."


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("dir")
    sizes = {"seed": 3, "heads": 6, "kv_heads": 2, "head_dim": 10, "hidden": 36, "ffn": 52, "layers": 3, "vocab": 61, "lora_r": 3, "batch": 3,
             "visual": 5, "head_hidden": 7, "box_hidden": 9, "boxes": 1}
    for name, value in sizes.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    p.add_argument("--alpha", type=float, default=5)
    p.add_argument("--theta", type=float, default=1e4)
    p.add_argument("--eps", type=float, default=1e-6)
    return p.parse_args()


def declare(a, draw):
    """Every weight by its published name."""
    w = {}

    def linear(name, rows, columns):
        w[name + ".base_layer.weight"] = draw(rows, columns) / columns**0.5
        w[name + ".lora_A.default.weight"] = draw(a.lora_r, columns) / columns**0.5
        w[name + ".lora_B.default.weight"] = draw(rows, a.lora_r) / 4

    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    w[LM + "model.embed_tokens.weight"] = draw(a.vocab, a.hidden)
    for i in range(a.layers):
        layer = f"{LM}model.layers.{i}."
        for name, rows, columns in [("self_attn.q_proj", q, a.hidden), ("self_attn.k_proj", kv, a.hidden), ("self_attn.v_proj", kv, a.hidden),
                                    ("self_attn.o_proj", a.hidden, q), ("mlp.gate_proj", a.ffn, a.hidden), ("mlp.up_proj", a.ffn, a.hidden),
                                    ("mlp.down_proj", a.hidden, a.ffn)]:
            linear(layer + name, rows, columns)
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            w[layer + norm + ".weight"] = 1 + draw(a.hidden) / 5
    w[LM + "model.norm.weight"] = 1 + draw(a.hidden) / 5
    linear(LM + "lm_head", a.vocab, a.hidden)
    for name, inner, into, out in [("loc_encoder", a.box_hidden, 4, a.hidden), ("loc_decoder", a.head_hidden, a.hidden, 4)]:
        w[name + ".0.weight"], w[name + ".0.bias"] = draw(inner, into) / into**0.5, draw(inner) / 5
        w[name + ".2.weight"], w[name + ".2.bias"] = draw(out, inner) / 20, draw(out) / 20
    w["loc_decoder.2.bias"] = torch.tensor([0.2, 0.15, 0.7, 0.8], dtype=torch.float64)
    w["box_token"], w["track_token"] = draw(1, 1, a.hidden), draw(1, 1, a.hidden)
    return w


def prompt(a, ids_of):
    """Ids, labels, masks: sample i holds i % 3 + 1 boxes in its answer, so that lengths differ."""
    rows = []
    for i in range(a.batch):
        ids, labels, flag = [1, 5 + i % 7], [-100, -100], [0, 0]
        ids, labels, flag = ids + [0] * a.visual, labels + [-100] * a.visual, flag + [1] * a.visual
        if i < a.boxes:
            ids, labels, flag = ids + [ids_of["track_box"]], labels + [-100], flag + [0]
        ids, labels, flag = ids + [9, 12 + i], labels + [-100, -100], flag + [0, 0]
        answer = [20 + i] + [ids_of["box_begin"], ids_of["boxes"]] * (i % 3 + 1) + [2]
        rows.append((ids + answer, labels + answer, flag + [0] * len(answer)))
    T = max(len(r[0]) for r in rows) + 1
    pad = lambda r, value: r + [value] * (T - len(r))
    ids, labels, flag = (np.array([pad(r[k], fill) for r in rows]) for k, fill in [(0, 0), (1, -100), (2, 0)])
    mask = np.array([pad([1] * len(r[0]), 0) for r in rows])
    return ids.astype(np.int32), labels.astype(np.int32), flag.astype(np.float32), mask.astype(np.float32)


def decoder(a, w, x):
    def linear(name, v):
        low = v @ w[name + ".lora_A.default.weight"].T @ w[name + ".lora_B.default.weight"].T
        return v @ w[name + ".base_layer.weight"].T + a.alpha / a.lora_r * low

    def norm(name, v):
        return v / torch.sqrt((v * v).mean(-1, keepdim=True) + a.eps) * w[name + ".weight"]

    B, T, half = x.shape[0], x.shape[1], a.head_dim // 2
    angle = torch.arange(T, dtype=torch.float64)[:, None] * a.theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos(), angle.sin()

    def heads(v, n):
        return v.view(B, T, n, a.head_dim).transpose(1, 2)

    def rotate(v):
        first, second = v[..., :half], v[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    hidden = torch.full((T, T), float("-inf"), dtype=torch.float64).triu(1)
    for i in range(a.layers):
        layer = f"{LM}model.layers.{i}."
        y = norm(layer + "input_layernorm", x)
        q = rotate(heads(linear(layer + "self_attn.q_proj", y), a.heads))
        k = rotate(heads(linear(layer + "self_attn.k_proj", y), a.kv_heads)).repeat_interleave(a.heads // a.kv_heads, 1)
        v = heads(linear(layer + "self_attn.v_proj", y), a.kv_heads).repeat_interleave(a.heads // a.kv_heads, 1)
        seen = torch.softmax(q @ k.transpose(-1, -2) / a.head_dim**0.5 + hidden, -1) @ v
        x = x + linear(layer + "self_attn.o_proj", seen.transpose(1, 2).reshape(B, T, -1))
        y = norm(layer + "post_attention_layernorm", x)
        x = x + linear(layer + "mlp.down_proj", torch.nn.functional.silu(linear(layer + "mlp.gate_proj", y)) * linear(layer + "mlp.up_proj", y))
    x = norm(LM + "model.norm", x)
    return x, linear(LM + "lm_head", x)


def giou(p, g):
    area = lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    overlap = (torch.minimum(p[:, 2:], g[:, 2:]) - torch.maximum(p[:, :2], g[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(p[:, 2:], g[:, 2:]) - torch.minimum(p[:, :2], g[:, :2])).prod(1)
    union = area(p) + area(g) - overlap
    return overlap / union - (hull - union) / hull


def mlp(w, name, x):
    return torch.relu(x @ w[name + ".0.weight"].T + w[name + ".0.bias"]) @ w[name + ".2.weight"].T + w[name + ".2.bias"]


def main():
    a = arguments()
    generator = torch.Generator().manual_seed(a.seed)
    # Through f32, so that the case's numbers are exactly these.
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).float().double()
    ids_of = {name: a.vocab - len(SLOTS) + i for i, name in enumerate(SLOTS)}
    w = {name: x.float().double().requires_grad_() for name, x in declare(a, draw).items()}
    ids, labels, flag, mask = prompt(a, ids_of)
    visual = draw(a.batch * a.visual, a.hidden).requires_grad_()
    box = torch.tensor([[0.1, 0.2, 0.6, 0.7]] * a.boxes, dtype=torch.float64).float().double().requires_grad_()
    at = torch.from_numpy(ids).long()
    slots = at == ids_of["boxes"]
    n = int(slots.sum())
    low = torch.rand(n, 2, generator=generator, dtype=torch.float64) / 2
    gt = torch.cat([low, low + 0.1 + torch.rand(n, 2, generator=generator, dtype=torch.float64) / 3], 1).float().double()

    x = w[LM + "model.embed_tokens.weight"][at]
    x = x.masked_scatter(torch.from_numpy(flag).bool()[..., None].expand_as(x), visual)
    if a.boxes:
        x = x.masked_scatter((at == ids_of["track_box"])[..., None].expand_as(x), mlp(w, "loc_encoder", box))
    x = torch.where(slots[..., None], w["box_token"][0], x)
    hidden, logits = decoder(a, w, x)
    target = torch.from_numpy(labels).long()
    language = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, a.vocab), target[:, 1:].reshape(-1), ignore_index=-100)
    e = hidden[slots]
    boxes = mlp(w, "loc_decoder", e)
    assert bool((boxes[:, 2:] > boxes[:, :2]).all()), "an inverted prediction: take another seed"
    head = 2 * (boxes - gt).abs().mean() + (1 - giou(boxes, gt)).mean() / 5
    total = language + head
    total.backward()

    tensors, listed = {}, []

    def put(name, value, role):
        value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        value = np.ascontiguousarray(value if value.dtype == np.int32 else value.astype(np.float32)).reshape(value.shape or (1,))
        tensors[name] = value
        listed.append({"name": name, "shape": list(value.shape), "dtype": "i32" if value.dtype == np.int32 else "f32", "role": role})

    for name, value in w.items():
        put("weight/" + name, value, "weight")
    for name, value in [("ids", ids), ("mask", mask), ("visual_flag", flag), ("labels", labels), ("visual", visual), ("gt_boxes", gt)]:
        put("input/" + name, value, "input")
    if a.boxes:
        put("input/box", box, "input")
        put("grad/input/box", box.grad, "grad")
    put("output/boxes", boxes, "output")
    for name, value in [("language", language), ("head", head), ("total", total)]:
        put("loss/" + name, value, "loss")
    put("grad/input/visual", visual.grad, "grad")
    for name, value in w.items():
        if "lora" in name or name.startswith(("loc_", "box_", "track_")):
            put("grad/" + name, value.grad if value.grad is not None else torch.zeros_like(value), "grad")
    config = {"hidden": a.hidden, "num_heads": a.heads, "num_kv_heads": a.kv_heads, "head_dim": a.head_dim, "ffn": a.ffn, "layers": a.layers,
              "vocab": a.vocab, "lora_r": a.lora_r, "lora_alpha": a.alpha, "rms_eps": a.eps, "rope_theta": a.theta, "added_token_ids": ids_of,
              "batch": a.batch, "length": int(ids.shape[1]), "visual_rows_per_sample": a.visual, "box_encoder_hidden": a.box_hidden,
              "head_hidden": a.head_hidden, "lora_dropout": 0}
    os.makedirs(a.dir, exist_ok=True)
    save_file(tensors, os.path.join(a.dir, "tensors.safetensors"))
    with open(os.path.join(a.dir, "case.json"), "w") as out:
        json.dump({"module": "multitask_step", "case": "region", "config": config, "dtype": "f32", "tolerance": {"rel": 1e-4, "abs": 1e-6},
                   "tensors": listed}, out, indent=1)
    print(f"{a.dir}: {n} boxes, language {language.item():.4f}, head {head.item():.4f}")


main()
