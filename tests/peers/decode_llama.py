"""llama.cpp answering token by token, random weights at TinyLlama's dimensions: the peer of `make bench B=decode`.

    decode_llama.py FILE bf16|f16

Writes FILE (GGUF) and maps it. Then, for every line "THREADS TOKENS" of standard input, it takes the likeliest token so many times and
answers with one JSON line: the seconds of the wall and of all threads. 0 TOKENS begins a new sequence, whose first 32 are not
timed. FILE goes as soon as it is mapped."""
import ctypes
import json
import os
import sys
import time

import gguf
import llama_cpp
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, MLP, VOCABULARY = 22, 2048, 32, 4, 5632, 32000
HEAD = WIDTH // HEADS
CONTEXT = 2048


def pool(dtype):
    """Seeded numbers of +-1.7/sqrt(WIDTH), 16 bits each, that tensors take turns with."""
    x = np.random.default_rng(1).uniform(-1.7, 1.7, VOCABULARY * WIDTH).astype(np.float32) / np.float32(np.sqrt(WIDTH))
    return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else x.astype(np.float16)


def write(path, dtype):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(MLP)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_dimension_count(HEAD)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCABULARY)
    w.add_tokenizer_model("no_vocab")
    numbers = pool(dtype)
    raw = gguf.GGMLQuantizationType.BF16 if dtype == "bf16" else None

    def matrix(name, rows, cols):
        data = numbers[: rows * cols].reshape(rows, cols)
        w.add_tensor(name + ".weight", data.view(np.uint8) if raw is not None else data, raw_dtype=raw)

    def ones(name):
        w.add_tensor(name + ".weight", np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        at = f"blk.{i}."
        ones(at + "attn_norm")
        matrix(at + "attn_q", WIDTH, WIDTH)
        matrix(at + "attn_k", KV_HEADS * HEAD, WIDTH)
        matrix(at + "attn_v", KV_HEADS * HEAD, WIDTH)
        matrix(at + "attn_output", WIDTH, WIDTH)
        ones(at + "ffn_norm")
        matrix(at + "ffn_gate", MLP, WIDTH)
        matrix(at + "ffn_up", MLP, WIDTH)
        matrix(at + "ffn_down", WIDTH, MLP)
    ones("output_norm")
    matrix("output", VOCABULARY, WIDTH)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Model:
    def __init__(self, path):
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_load_model_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch = CONTEXT, 64
        self.context = llama_cpp.llama_new_context_with_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp refuses the file")
        self.begin()

    def begin(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.token = 1
        self.decode(32)

    def decode(self, tokens):
        for _ in range(tokens):
            batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(self.token), 1)
            if llama_cpp.llama_decode(self.context, batch) != 0:
                sys.exit("llama.cpp failed")
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape=(VOCABULARY,))
            self.token = int(logits.argmax())


def main():
    path, dtype = sys.argv[1:]
    write(path, dtype)
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    model = Model(path)
    os.remove(path)  # it stays mapped
    for line in sys.stdin:
        threads, tokens = map(int, line.split())
        llama_cpp.llama_set_n_threads(model.context, threads, threads)
        if tokens == 0:
            model.begin()
        start, cpu = time.perf_counter(), time.process_time()
        model.decode(tokens)
        print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
