"""The ViT's blocks in PyTorch, random weights: the peer of `make bench B=vit`.

    vit_torch.py [--blocks N] [--tokens N] [--width N] [--heads N] [--threads N] [--dtype f32|bf16] [--passes N]

One JSON line: the least seconds, of the wall and of all threads, of N passes through all blocks after one that is not timed."""
import argparse
import json
import time

import torch
import torch.nn.functional as F


def block(x, w, heads):
    h = F.layer_norm(x, x.shape[-1:], w["n1w"], w["n1b"], 1e-6)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in F.linear(h, w["qkv"], w["qkvb"]).chunk(3, -1))
    o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + F.linear(o, w["proj"], w["projb"])
    h = F.layer_norm(x, x.shape[-1:], w["n2w"], w["n2b"], 1e-6)
    return x + F.linear(F.gelu(F.linear(h, w["fc1"], w["fc1b"])), w["fc2"], w["fc2b"])


def weights(c, dtype):
    def matrix(n, k):
        return (torch.randn(n, k) * k**-0.5).to(dtype)

    vectors = {"n1w": c, "n1b": c, "qkvb": 3 * c, "projb": c, "n2w": c, "n2b": c, "fc1b": 4 * c, "fc2b": c}
    w = {name: torch.ones(n, dtype=dtype) if name in ("n1w", "n2w") else torch.zeros(n, dtype=dtype) for name, n in vectors.items()}
    return w | {"qkv": matrix(3 * c, c), "proj": matrix(c, c), "fc1": matrix(4 * c, c), "fc2": matrix(c, 4 * c)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("blocks", 23), ("tokens", 3136), ("width", 1024), ("heads", 16), ("threads", 2), ("passes", 2)):
        parser.add_argument("--" + name, type=int, default=default)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    dtype = torch.float32 if a.dtype == "f32" else torch.bfloat16
    blocks = [weights(a.width, dtype) for _ in range(a.blocks)]
    x = torch.randn(1, a.tokens, a.width).to(dtype)
    best = cpu = float("inf")
    with torch.inference_mode():
        for turn in range(a.passes + 1):
            start, start_cpu, y = time.perf_counter(), time.process_time(), x
            for w in blocks:
                y = block(y, w, a.heads)
            if turn > 0:
                best = min(best, time.perf_counter() - start)
                cpu = min(cpu, time.process_time() - start_cpu)
    print(json.dumps({"seconds": best, "cpu_seconds": cpu, "blocks": a.blocks, "dtype": a.dtype, "threads": a.threads, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
