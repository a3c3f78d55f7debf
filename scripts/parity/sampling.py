"""sampling: what transformers leaves of random logits. The processors and their order come from
transformers itself (GenerationMixin._get_logits_processor)."""

import torch
from record import normal, write
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

SEED = 3
VOCAB = 24
PROMPT = [3, 7, 7, 11]
CASES = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 6},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.8, "min_p": 0.08},
    {"temperature": 1.0, "typical_p": 0.5},
    {"temperature": 1.3, "typical_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.8},
    {"temperature": 0.9, "repetition_penalty": 1.5, "top_k": 12, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 16, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.8},
    {"temperature": 1.1, "repetition_penalty": 1.2, "top_p": 0.85, "typical_p": 0.6},
]

g = torch.Generator().manual_seed(SEED)
model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=4, n_layer=1, n_head=1, n_positions=8))
cases = []
for options in CASES:
    logits = normal(g, VOCAB, std=2.0)
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **options})
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PROMPT))
    left = torch.softmax(processors(torch.tensor([PROMPT]), logits[None].clone()), dim=-1)[0]
    names = [type(p).__name__ for p in processors]
    print(f"  {names}: {int((left > 0).sum())} of {VOCAB} left")
    cases.append({"options": options, "processors": names, "logits": logits, "probabilities": left})

write("sampling", SEED, {"prompt": PROMPT, "cases": cases}, ["transformers"])
