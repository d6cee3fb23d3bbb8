"""The lines of bench_cuda for PyTorch on the same GPU: python cuda_torch.py [BENCH_CUDA]; with the program's path it runs that first and prints ratios.

f32 stays f32 (no TF32), as ours does. bf16 weights: PyTorch has no product of f32 rows with bf16 weights, so its rows are bf16, too."""
import re
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

torch.backends.cuda.matmul.allow_tf32 = False
torch.manual_seed(1)
ours = {}
if len(sys.argv) > 1:
    for text in subprocess.run(sys.argv[1:2], check=True, capture_output=True, text=True).stdout.splitlines():
        print("tpomesh", text)
        found = re.match(r"(.+?)\s+([\d.]+) us", text)
        ours[found[1]] = float(found[2])


def line(name, run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begun, n, some = time.perf_counter(), 0, 1
    while True:
        for _ in range(some):
            run()
        torch.cuda.synchronize()
        n, some, took = n + some, some * 2, time.perf_counter() - begun
        if took > 0.25:
            break
    us = took / n * 1e6
    print(f"pytorch {name:36s} {us:10.1f} us" + (f"   {us / ours[name]:.2f} of ours" if name in ours else ""))


def some(*shape, dtype=torch.float32):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def product(name, m, n, k, dtype=torch.float32, bias=True):
    x, w, b = some(m, k, dtype=dtype), some(n, k, dtype=dtype), some(n, dtype=dtype) if bias else None
    with torch.no_grad():
        line(name, lambda: F.linear(x, w, b))


def attention(name, name_grad, t, h, g, d, causal):
    q, k, v = (some(1, n, t, d).requires_grad_() for n in (h, g, g))

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=h != g, scale=0.1)

    with torch.no_grad():
        line(name, forward)
    out, dout = forward(), some(1, h, t, d)
    line(name_grad, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))


product("matmul f32 3136x1024x1024", 3136, 1024, 1024)
product("matmul f32 3136x4096x1024", 3136, 4096, 1024)
product("matmul f32 2048x256x256", 2048, 256, 256)
product("matmul bf16 weights 512x14336x4096", 512, 14336, 4096, torch.bfloat16)
product("matvec bf16 weights 1x14336x4096", 1, 14336, 4096, torch.bfloat16, False)
product("matvec bf16 weights 8x14336x4096", 8, 14336, 4096, torch.bfloat16, False)
product("matvec bf16 weights 1x4096x4096", 1, 4096, 4096, torch.bfloat16, False)
attention("attention ViT 3136 keys", "attention ViT backward", 3136, 16, 16, 64, False)
attention("attention Mistral 1024 causal", "attention Mistral backward", 1024, 32, 8, 128, True)
q, k, v = some(1, 32, 1, 128), some(1, 8, 4096, 128), some(1, 8, 4096, 128)
line("paged decode 4096 keys", lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
x, w, b = some(3136, 1024), some(1024), some(1024)
line("layernorm 3136x1024", lambda: F.layer_norm(x, (1024,), w, b, 1e-6))
x = some(3136, 4096)
line("gelu 3136x4096", lambda: F.gelu(x))
p = some(50000000).requires_grad_()
p.grad = some(50000000)
adam = torch.optim.AdamW([p], lr=1e-4, fused=True)
line("adamw 50,000,000", adam.step)
