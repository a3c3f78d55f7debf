"""peft-prompts/<case>/ and <case>.json: prefix and prompt tuning as peft writes them, with the logits of base and
adapter together, and of some five AdamW steps.

    python scripts/parity/peft-prompts.py                    writes test/parity/peft-prompts/
    python scripts/parity/peft-prompts.py ours FOLDER/*      writes ours.json: what peft makes of folders that this
                                                             project wrote. The test writes them:
    PROMPTS_OUT=FOLDER npx vitest run src/methods/adapt/shared/virtual-tokens.test.ts
"""

import hashlib
import shutil
import sys
from importlib import import_module
from pathlib import Path

import torch
from record import ADAMW, PARITY, next_token_loss, token_ids, train, write  # first: it moves this folder back in sys.path

import decoders
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

SPEC = {**ADAMW, "lr": 1e-2}
PREFIX = {"num_virtual_tokens": 5}
PROMPT = {"num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"}

# Base, kind, options, whether it is trained.
CASES = {
    "prefix-gpt2": ("gpt2", "prefix", PREFIX, True),
    "prefix-llama": ("llama", "prefix", PREFIX, True),
    "prefix-llama-projection": ("llama", "prefix", {**PREFIX, "prefix_projection": True, "encoder_hidden_size": 6}, True),
    "prefix-qwen3": ("qwen3", "prefix", PREFIX, False),
    "prefix-mistral": ("mistral", "prefix", PREFIX, False),
    "prefix-gemma3": ("gemma3", "prefix", PREFIX, False),
    "prompt-gpt2": ("gpt2", "prompt", PROMPT, True),
    "prompt-llama": ("llama", "prompt", PROMPT, True),
    "prompt-mistral": ("mistral", "prompt", PROMPT, False),
    "prompt-gemma3": ("gemma3", "prompt", PROMPT, False),
    "prompt-gpt-neox": ("gpt-neox", "prompt", PROMPT, False),
}


def build(base: str):
    if base in ("gpt2", "llama"):
        source = import_module(f"{base}-train")
        return source.build(), source.CONFIG["vocab_size"]
    return decoders.build(decoders.CASES[base]), decoders.CASES[base]["vocab_size"]


def record(case: str, seed: int) -> None:
    base, kind, options, is_trained = CASES[case]
    model, vocab = build(base)
    model.name_or_path = model.config._name_or_path = base
    make = PrefixTuningConfig if kind == "prefix" else PromptTuningConfig
    torch.manual_seed(seed)
    model = get_peft_model(model, make(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "prompt_encoder" in name:
                numbers = 0.9 * decoders.rule_numbers(name, p.numel())
                p.copy_(torch.from_numpy(numbers.astype("float32")).reshape(p.shape))
    folder = PARITY / "peft-prompts" / case
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    for path in folder.iterdir():
        path.chmod(0o644)
    ids = token_ids(seed, vocab, 2, 9)
    inputs = ids[:, :-1].long()
    with torch.no_grad():
        logits = model(inputs).logits[:, -inputs.shape[1]:]
        reloaded = PeftModel.from_pretrained(build(base)[0], folder).eval()
        assert torch.allclose(reloaded(inputs).logits[:, -inputs.shape[1]:], logits, atol=1e-6)
        plain = build(base)[0](inputs).logits
    print(f"  {case} changes logits by {(logits - plain).abs().max():.3f}")
    body = {"base": base, "inputs": {"ids": ids}, "logits": logits}
    if is_trained:
        def loss_of(m):
            return next_token_loss(m(inputs).logits[:, -inputs.shape[1]:], ids)

        first = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        body.update(train(model, loss_of, SPEC), first=first)
    write(f"peft-prompts/{case}", seed, body, ["transformers", "peft"], note=(
        "inputs ids[:, :-1], targets ids[:, 1:]; logits are those of the words; weights of the adapter are 0.9 times "
        "the numbers of decoders.py's rule by the parameter's name"
    ))


def ours(folders: list[str]) -> None:
    found = {}
    for folder in map(Path, folders):
        base, kind, options, _ = CASES[folder.name]
        model, vocab = build(base)
        model = PeftModel.from_pretrained(model, folder).eval()
        ids = token_ids(77, vocab, 2, 8)
        with torch.no_grad():
            logits = model(ids.long()).logits[:, -ids.shape[1]:]
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        found[folder.name] = {"sha256": digest, "ids": ids, "logits": logits}
    write("peft-prompts/ours", 77, {"cases": found}, ["transformers", "peft"], note=(
        "logits that peft gives with the folders whose weights have these sums, which this project wrote"
    ))


def main() -> None:
    if sys.argv[1:2] == ["ours"]:
        ours(sys.argv[2:])
        return
    for i, case in enumerate(CASES):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            record(case, 700 + i)


main()
