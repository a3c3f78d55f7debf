"""What transformers makes of a causal language model's folder on this disk, in float32: for a few prompts their
token ids, logits in brief, and a greedy continuation. Nothing is downloaded, and nothing of it is committed.

    python scripts/parity/real-model.py FOLDER OUT.json [--prompt TEXT]... [--new 24] [--chat] [--gguf FILE]

With --gguf the weights are read from that file inside FOLDER, as transformers dequantises them. For each position
of a prompt the JSON has `largest` (the largest |logit|), `at` and `logits` (256 places, evenly spaced over the
vocabulary) and `top` (the ten best, as [id, logit]); `gap` is the least distance between the best two tokens of
the greedy continuation: below 1e-3, two programs may part there.
"""

import argparse
import json
from pathlib import Path

import torch
from record import versions  # first: it moves this folder back in sys.path
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
)


def brief(row: torch.Tensor, at: list[int]) -> dict:
    best = row.topk(min(10, row.numel()))
    return {
        "largest": row.abs().max().item(),
        "logits": [row[i].item() for i in at],
        "top": [[i, x] for i, x in zip(best.indices.tolist(), best.values.tolist())],
    }


@torch.no_grad()
def record(model, tokenizer, prompt: str, new: int, chat: bool) -> dict:
    text = prompt
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    logits = model(torch.tensor([ids])).logits[0]
    count = min(256, logits.shape[-1])
    at = [i * logits.shape[-1] // count for i in range(count)]
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=new,
        do_sample=False, num_beams=1, repetition_penalty=1.0, return_dict_in_generate=True, output_logits=True,
    )
    tokens = made.sequences[0, len(ids):].tolist()
    gaps = [(best[0] - best[1]).item() for best in (step[0].topk(2).values for step in made.logits)]
    return {
        "prompt": prompt, "text": text, "ids": ids, "at": at,
        "positions": [brief(row, at) for row in logits],
        "tokens": tokens, "continuation": tokenizer.decode(tokens, skip_special_tokens=True), "gap": min(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--gguf")
    options = parser.parse_args()
    source = {"gguf_file": options.gguf} if options.gguf else {}
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(options.folder, local_files_only=True, **source)
    model = AutoModelForCausalLM.from_pretrained(
        options.folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager", **source,
    ).eval()
    body = {
        "folder": options.folder.name,
        "model_type": model.config.model_type,
        "versions": versions("transformers"),
        "prompts": [record(model, tokenizer, p, options.new, options.chat) for p in options.prompt or PROMPTS],
    }
    options.out.write_text(json.dumps(body, ensure_ascii=False) + "\n", encoding="utf-8")
    for prompt in body["prompts"]:
        print(f"{prompt['prompt']!r} → {prompt['continuation']!r} (gap {prompt['gap']:.4f})")


if __name__ == "__main__":
    main()
