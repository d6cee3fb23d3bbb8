"""Training steps of the small model in PyTorch: the peer of `make bench B=train`.

    train_torch.py MODEL_DIR BATCHES.safetensors [--threads N] [--blocks N] [--dtype f32|bf16]

Packed conversations behind one visual prefix, language and box loss, Muon on the blocks' matrices (same shapes stacked), fused AdamW on the rest, as
tests/bench/train.yaml says. bf16 is autocast. A block is a step on each batch; the first is not timed. One JSON line: losses of the first step, seconds of a step: the median of
the blocks."""
import argparse
import json
import pathlib
import re
import statistics
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

LM = "lm.base_model.model.model."
MUON = re.compile(r"vision_encoder\.encoder\.blocks\..*(attn\.(qkv|proj)|mlp\.fc\d)\.weight|qformer\.bert\.encoder\..*(dense|self\.(query|key|value))\.weight"
                  r"|lm\..*_proj\.base_layer\.weight")


class Model:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.c = config["model_config"]
        self.slot = json.loads((folder / "added_tokens.json").read_text())["<boxes>"]
        self.w = {k: v.float().requires_grad_() if v.is_floating_point() else v for k, v in load_file(folder / "model.safetensors").items()}

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], eps)

    def attend(self, q, k, v, n, mask=None):
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def visual(self, pixels):
        v, w, bridge = self.c["vision_encoder"], self.w, self.c["bridge"]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        x = F.conv2d(x, w["vision_encoder.encoder.patch_embed.proj.weight"][:, :, 0], w["vision_encoder.encoder.patch_embed.proj.bias"], stride=v["patch_size"])
        x = x.flatten(2).transpose(1, 2) + w["ext.encoder.position"]
        for i in range(v["encoder_depth"] + v.get("return_index", -2) + 1):
            b = f"vision_encoder.encoder.blocks.{i}."
            bias = torch.cat([w[b + "attn.q_bias"], torch.zeros_like(w[b + "attn.q_bias"]), w[b + "attn.v_bias"]])
            q, k, val = F.linear(self.norm(b + "norm1", x, 1e-6), w[b + "attn.qkv.weight"], bias).chunk(3, -1)
            x = x + self.linear(b + "attn.proj", self.attend(q, k, val, v["encoder_num_heads"]))
            x = x + self.linear(b + "mlp.fc2", F.gelu(self.linear(b + "mlp.fc1", self.norm(b + "norm2", x, 1e-6))))
        keys = self.norm("vision_layernorm", x, 1e-12) + w["ext.encoder.key_position"]
        h = self.norm("qformer.bert.embeddings.LayerNorm", w["query_tokens"], 1e-12).expand(x.shape[0], -1, -1)
        for i in range(bridge["num_hidden_layers"]):
            layer = f"qformer.bert.encoder.layer.{i}."
            for kind, source in (("attention", None), ("crossattention", keys)):
                if kind == "crossattention" and i % bridge["cross_attention_freq"] != 0:
                    continue
                a, kv = layer + kind, h if source is None else source
                mixed = self.attend(self.linear(a + ".self.query", h), self.linear(a + ".self.key", kv), self.linear(a + ".self.value", kv),
                                    bridge["num_attention_heads"])
                h = self.norm(a + ".output.LayerNorm", self.linear(a + ".output.dense", mixed) + h, 1e-12)
            up = F.gelu(self.linear(layer + "intermediate_query.dense", h))
            h = self.norm(layer + "output_query.LayerNorm", self.linear(layer + "output_query.dense", up) + h, 1e-12)
        return self.linear("project_up", h) + w["ext.router.slot_position"]

    def rms(self, name, x):
        return F.rms_norm(x, x.shape[-1:], self.w[name], self.c["llm"]["rms_norm_eps"])

    def hidden(self, b, visual):
        llm, w = self.c["llm"], self.w
        ids, where, positions, segments = b["ids"], b["visual"], b["positions"], b["segments"]
        x = F.embedding(ids, w[LM + "embed_tokens.weight"])
        rows = torch.gather(visual, 1, where.clamp(min=0)[..., None].expand(-1, -1, visual.shape[-1]))
        x = torch.where((where >= 0)[..., None], rows, x)
        x = torch.where((ids == self.slot)[..., None], w["box_token"].view(1, 1, -1), x)
        t = ids.shape[1]
        mask = (torch.ones(t, t, dtype=torch.bool).tril() & ((segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])))[:, None]
        d, n = llm["head_dim"], llm["num_attention_heads"]
        angle = positions[..., None].double() * llm["rope_theta"] ** (-torch.arange(0, d, 2).double() / d)
        cos, sin = angle.cos().float()[:, :, None], angle.sin().float()[:, :, None]

        def rotate(y):
            a, c = y.unflatten(-1, (n, d)).chunk(2, -1)
            return torch.cat([a * cos - c * sin, c * cos + a * sin], -1).flatten(2)

        for i in range(llm["num_hidden_layers"]):
            p = LM + f"layers.{i}."
            h = self.rms(p + "input_layernorm.weight", x)
            q, k, v = (self.linear(p + f"self_attn.{s}_proj.base_layer", h) for s in "qkv")
            o = self.attend(rotate(q).to(v.dtype), rotate(k).to(v.dtype), v, n, mask)
            if i + 1 == llm["num_hidden_layers"]:
                x, o = x.flatten(0, 1)[b["kept"]], o.flatten(0, 1)[b["kept"]]
            x = x + self.linear(p + "self_attn.o_proj.base_layer", o)
            h = self.rms(p + "post_attention_layernorm.weight", x)
            up = F.silu(self.linear(p + "mlp.gate_proj.base_layer", h)) * self.linear(p + "mlp.up_proj.base_layer", h)
            x = x + self.linear(p + "mlp.down_proj.base_layer", up)
        return self.rms(LM + "norm.weight", x)

    def losses(self, b):
        h = self.hidden(b, self.visual(b["pixels"]))
        logits = self.linear("lm.base_model.model.lm_head.base_layer", h[b["label_kept"]]).float()
        language = (F.cross_entropy(logits, b["label"], reduction="none") * b["weight"]).sum() / b["weight"].sum()
        p = self.linear("loc_decoder.2", F.relu(self.linear("loc_decoder.0", h[b["slot_kept"]]))).float()
        g = b["boxes"]
        valid = (p[:, 2:] >= p[:, :2]).all(1)
        p2, g2 = p[valid], g[valid]
        low, high = torch.max(p2[:, :2], g2[:, :2]), torch.min(p2[:, 2:], g2[:, 2:])
        inter = (high - low).clamp(min=0).prod(1)
        union = (p2[:, 2:] - p2[:, :2]).prod(1) + (g2[:, 2:] - g2[:, :2]).prod(1) - inter
        hull = (torch.max(p2[:, 2:], g2[:, 2:]) - torch.min(p2[:, :2], g2[:, :2])).prod(1)
        giou = (1 - inter / union + (hull - union) / hull).mean()
        return language, 2 * F.l1_loss(p, g) + 0.2 * giou


class Muon:
    """Same shapes are stacked, so that a step is a few batched products."""

    def __init__(self, named):
        groups = {}
        for name, p in named:
            for part in p.chunk(3) if name.endswith("qkv.weight") else (p,):
                groups.setdefault((tuple(part.shape), 2e-3 if name.startswith("lm.") else 3e-4), []).append((p, part.data_ptr() - p.data_ptr()))
        self.groups = [(rate, shape, [(p, at // 4 // shape[1]) for p, at in items], torch.zeros(len(items), *shape)) for (shape, rate), items in groups.items()]

    @torch.no_grad()
    def step(self):
        for rate, (r, c), items, m in self.groups:
            g = torch.stack([p.grad[at : at + r] for p, at in items])
            m.mul_(0.95).add_(g)
            x = g + 0.95 * m
            x = x.mT if r > c else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
            x = x.mT if r > c else x
            for i, (p, at) in enumerate(items):
                p.data[at : at + r].mul_(1 - rate * 0.05).add_(x[i], alpha=-rate * 0.2 * max(r, c) ** 0.5)


def load(path, queries):
    flat, batches = load_file(path), {}
    for key, value in flat.items():
        batch, name = key.split(".", 1)
        batches.setdefault(int(batch), {})[name] = value if name in ("pixels", "weight", "boxes") else value.long()
    for b in batches.values():
        side = 96
        b["pixels"] = b["pixels"].view(-1, side, side, 3)
        for name in ("ids", "visual", "positions", "segments"):
            b[name] = b[name].view(b["pixels"].shape[0], -1)
        b["boxes"] = b["boxes"].view(-1, 4)
        b["kept"], index = torch.unique(torch.cat([b["label_row"], b["slot_row"]]), return_inverse=True)
        b["label_kept"], b["slot_kept"] = index.split([len(b["label_row"]), len(b["slot_row"])])
    return [batches[i] for i in sorted(batches)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("batches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Model(args.model)
    batches = load(args.batches, model.c["bridge"]["num_query_token"])
    trained = {k: v for k, v in model.w.items() if v.is_floating_point()}
    muon = Muon([(k, v) for k, v in trained.items() if MUON.fullmatch(k) and "intermediate.dense" not in k and not re.search(r"\d\.output\.dense", k)])
    rest = [v for k, v in trained.items() if not MUON.fullmatch(k)]
    adamw = torch.optim.AdamW(rest, lr=3e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    first, seconds, cpu = None, [], []
    for block in range(args.blocks + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
                language, region = model.losses(batch)
            first = first or (language.item(), region.item())
            (language + 1.5 * region).backward()
            torch.nn.utils.clip_grad_norm_([p for p in rest if p.grad is not None], 1.0)
            muon.step()
            adamw.step()
            for p in trained.values():
                p.grad = None
        if block > 0:
            seconds.append((time.perf_counter() - start) / len(batches))
            cpu.append((time.process_time() - start_cpu) / len(batches))
    print(json.dumps({"language": first[0], "region": first[1], "seconds": statistics.median(seconds), "cpu_seconds": statistics.median(cpu),
                      "dtype": args.dtype, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
