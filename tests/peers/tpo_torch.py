"""The same model in PyTorch: one process, batch 1, the weights of a model folder, the same prompt, greedy.

The peer of `make bench B=ask`, and an independent check of the answers. It reads what the services read (config.json, model.safetensors,
tokenizer.model, added_tokens.json) and shares no code with them.

    tpo_torch.py MODEL_DIR QUESTIONS [--threads N] [--repeat N]

QUESTIONS holds lines `PICTURE.png<TAB>sentence`; pictures already have the encoder's size. One JSON line per answer, then one with the timings.
"""
import argparse
import json
import math
import pathlib
import time

import numpy
import sentencepiece
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file


class Weights:
    def __init__(self, folder):
        index = folder / "model.safetensors.index.json"
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
        self.tensors = {}
        for name in files:
            self.tensors.update({k: v.float() if v.is_floating_point() else v for k, v in load_file(folder / name).items()})

    def __getitem__(self, name):
        return self.tensors[name]

    def get(self, name):
        return self.tensors.get(name)

    def linear(self, name, x):
        return F.linear(x, self[name + ".weight"], self.get(name + ".bias"))

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self[name + ".weight"], self[name + ".bias"], eps)


def heads(x, n):
    return x.view(x.shape[0], n, -1).transpose(0, 1)


def attend(q, k, v, n, causal=False, offset=0):
    q, k, v = heads(q, n), heads(k, k.shape[-1] * n // q.shape[-1]), heads(v, v.shape[-1] * n // q.shape[-1])
    if k.shape[0] != n:
        k, v = (t.repeat_interleave(n // t.shape[0], 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        t, s = scores.shape[1:]
        scores = scores.masked_fill(torch.arange(s) > torch.arange(t)[:, None] + offset, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


class Model:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.w = Weights(folder)
        config = json.loads((folder / "config.json").read_text())
        self.c = config["model_config"]
        self.added = json.loads((folder / "added_tokens.json").read_text())
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        llm = self.c["llm"]
        # Merged once, as the router does by default.
        self.merged = {}
        for name in [k for k in self.w.tensors if k.endswith(".base_layer.weight")]:
            base = name[: -len(".base_layer.weight")]
            a, b = self.w.get(base + ".lora_A.default.weight"), self.w.get(base + ".lora_B.default.weight")
            self.merged[base] = self.w[name] if a is None else self.w[name] + llm["lora_alpha"] / llm["lora_r"] * (b @ a)

    # --- encoder -----------------------------------------------------------------------------------------------------------------
    def visual(self, pixels):
        """(T, H, W, 3) u8 -> (Q, C)."""
        v, w = self.c["vision_encoder"], self.w
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        p = v["patch_size"]
        kernel = w["vision_encoder.encoder.patch_embed.proj.weight"][:, :, 0]
        x = F.conv2d(x, kernel, w["vision_encoder.encoder.patch_embed.proj.bias"], stride=p).flatten(2).transpose(1, 2)
        x = x + w["ext.encoder.position"] + w["ext.encoder.frame_position"][: x.shape[0], None]
        patches = x.shape[1]
        frames = x.shape[0]
        x = x.flatten(0, 1)
        for i in range(v["encoder_depth"] + v.get("return_index", -2) + 1):
            b = f"vision_encoder.encoder.blocks.{i}."
            h = w.norm(b + "norm1", x, 1e-6)
            bias = torch.cat([w[b + "attn.q_bias"], torch.zeros_like(w[b + "attn.q_bias"]), w[b + "attn.v_bias"]])
            q, k, val = F.linear(h, w[b + "attn.qkv.weight"], bias).chunk(3, -1)
            x = x + w.linear(b + "attn.proj", attend(q, k, val, v["encoder_num_heads"]))
            x = x + w.linear(b + "mlp.fc2", F.gelu(w.linear(b + "mlp.fc1", w.norm(b + "norm2", x, 1e-6))))
        x = w.norm("vision_layernorm", x, 1e-12)
        keys = x + w["ext.encoder.key_position"].repeat(frames, 1) if w.get("ext.encoder.key_position") is not None else x
        bridge = self.c["bridge"]
        h = torch.cat([w["query_tokens"][0], w["extra_query_tokens"][0]]) if bridge["extra_num_query_token"] else w["query_tokens"][0]
        h = w.norm("qformer.bert.embeddings.LayerNorm", h, 1e-12)
        for i in range(bridge["num_hidden_layers"]):
            layer = f"qformer.bert.encoder.layer.{i}."
            for kind, source in (("attention", None), ("crossattention", keys)):
                if kind == "crossattention" and i % bridge["cross_attention_freq"] != 0:
                    continue
                a, kv = layer + kind, h if source is None else source
                mixed = attend(w.linear(a + ".self.query", h), w.linear(a + ".self.key", kv), w.linear(a + ".self.value", kv),
                               bridge["num_attention_heads"])
                h = w.norm(a + ".output.LayerNorm", w.linear(a + ".output.dense", mixed) + h, 1e-12)
            up = F.gelu(w.linear(layer + "intermediate_query.dense", h))
            h = w.norm(layer + "output_query.LayerNorm", w.linear(layer + "output_query.dense", up) + h, 1e-12)
        assert patches * frames == x.shape[0]
        return h

    # --- router ------------------------------------------------------------------------------------------------------------------
    def prompt(self, sentence, kind):
        tag = {"image": "Image", "video": "Video"}[kind]
        bos = [1] if self.c.get("tokenizer", {}).get("bos_per_segment", True) else []
        q = self.c["bridge"]["num_query_token"] + self.c["bridge"]["extra_num_query_token"]
        encode = self.pieces.encode
        before, after = encode(f"[INST] <{tag}>"), encode(f"</{tag}>[/INST]")
        question = encode(f" [INST] {sentence} [/INST] ")
        return bos + before, q, bos + after + bos + question

    def rms(self, name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["llm"].get("rms_norm_eps", 1e-5)) * self.w[name]

    def rotate(self, x, n, positions):
        d = self.c["llm"]["head_dim"]
        angle = positions[:, None].double() * self.c["llm"]["rope_theta"] ** (-torch.arange(0, d, 2).double() / d)
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
        a, b = x.view(x.shape[0], n, d).chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).flatten(1)

    def step(self, x, cache):
        llm = self.c["llm"]
        past = cache[0][0].shape[0] if cache[0] else 0
        positions = torch.arange(past, past + x.shape[0])
        for i in range(llm["num_hidden_layers"]):
            b = f"lm.base_model.model.model.layers.{i}."
            h = self.rms(b + "input_layernorm.weight", x)
            q, k, v = (F.linear(h, self.merged[b + f"self_attn.{n}_proj"]) for n in "qkv")
            q, k = self.rotate(q, llm["num_attention_heads"], positions), self.rotate(k, llm["num_key_value_heads"], positions)
            if cache[i]:
                k, v = torch.cat([cache[i][0], k]), torch.cat([cache[i][1], v])
            cache[i] = (k, v)
            x = x + F.linear(attend(q, k, v, llm["num_attention_heads"], True, past), self.merged[b + "self_attn.o_proj"])
            h = self.rms(b + "post_attention_layernorm.weight", x)
            gate, up = (F.linear(h, self.merged[b + f"mlp.{n}_proj"]) for n in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, self.merged[b + "mlp.down_proj"])
        return self.rms("lm.base_model.model.model.norm.weight", x)

    def answer(self, pixels, sentence, max_new_tokens=200):
        w, table = self.w, self.w["lm.base_model.model.model.embed_tokens.weight"]
        visual = w.linear("project_up", self.visual(pixels))
        if w.get("ext.router.slot_position") is not None:
            visual = visual + w["ext.router.slot_position"]
        before, _, after = self.prompt(sentence, "image" if pixels.shape[0] == 1 else "video")
        x = torch.cat([table[before], visual, table[after]])
        cache = [None] * self.c["llm"]["num_hidden_layers"]
        head = self.merged["lm.base_model.model.lm_head"]
        slots = [self.added[t] for t in ("<boxes>", "<temp>", "<tracking>", "<track_box>")]
        boxes, ids = [], []
        e = self.step(x, cache)[-1]
        while len(ids) < max_new_tokens:
            logits = head @ e
            logits[slots] = -math.inf
            token = int(logits.argmax())
            if token == 2:
                break
            ids.append(token)
            e = self.step(table[[token]], cache)[-1]
            if token == self.added["<box_begin>"]:
                e = self.step(w["box_token"].view(1, -1), cache)[-1]
                box = w.linear("loc_decoder.2", F.relu(w.linear("loc_decoder.0", e))).clamp(0, 1)
                boxes.append([min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])])
        added = set(self.added.values())
        text = self.pieces.decode([i for i in ids if i not in added])
        return text, [[float(v) for v in b] for b in boxes], len(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("questions")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Model(args.model)
    lines = [line.split("\t") for line in pathlib.Path(args.questions).read_text().splitlines() if line]
    seconds, n_tokens = [], 0
    with torch.inference_mode():
        for turn in range(args.repeat + 1):
            for path, sentence in lines:
                pixels = numpy.array(Image.open(path).convert("RGB"))[None]
                start = time.perf_counter()
                text, boxes, n = model.answer(pixels, sentence)
                if turn > 0:  # the first round warms up
                    seconds.append(time.perf_counter() - start)
                    n_tokens += n
                if turn == args.repeat:
                    print(json.dumps({"file": path, "sentence": sentence, "text": text, "boxes": boxes}))
    seconds.sort()
    print(json.dumps({"answers": len(seconds), "answers_per_s": len(seconds) / sum(seconds), "p50_ms": 1e3 * seconds[len(seconds) // 2],
                      "p99_ms": 1e3 * seconds[int(len(seconds) * 0.99)], "tokens": n_tokens, "torch": torch.__version__,
                      "threads": args.threads}))


if __name__ == "__main__":
    main()
