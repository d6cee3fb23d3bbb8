"""bench_cuda_router's measure for transformers: Mistral 7B's dimensions, random bf16 weights, a prompt of 512, then 64 tokens for 1, 8 and 16 sequences."""
import time

import torch
from transformers import MistralConfig, MistralForCausalLM

config = MistralConfig(vocab_size=32007, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                       rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None)
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    torch.nn.init.normal_ = lambda x, *a, **k: x  # drawing 7 billion numbers twice takes long; the values do not matter
    model = MistralForCausalLM(config).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.01)
    ids = torch.randint(0, 32000, (16, 512))


@torch.inference_mode()
def measure():
    for n in (1, 8, 16):
        for attempt in range(2):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            out = model(ids[:n], use_cache=True, logits_to_keep=1)
            torch.cuda.synchronize()
            prompt, begun = time.perf_counter() - begun, time.perf_counter()
            for _ in range(64):
                out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
                out.logits.float().cpu()
            took = time.perf_counter() - begun
        print(f"transformers, {n:2d} sequences: prompt of {n} x 512 {prompt * 1e3:.1f} ms; {took / 64 * 1e3:.2f} ms a pass, {n * 64 / took:.1f} tokens/s")


measure()
