"""peft-decoders/<case>/ and <case>.json: LoRA folders that peft writes for tiny models of decoders.py, among them
those whose projections are one matrix, with the logits of base and adapter together, and merged."""

import shutil

import torch
from record import PARITY, token_ids, write  # first: it moves this folder back in sys.path

import decoders
from peft import LoraConfig, PeftModel, get_peft_model

# None: peft's default for the architecture.
CASES = {
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt-neox": None,
    "gemma3": "all-linear",
    "qwen2": None,
}


def record(case: str, targets, seed: int) -> None:
    base = decoders.build(decoders.CASES[case])
    base.name_or_path = base.config._name_or_path = case
    config = LoraConfig(r=2, lora_alpha=5, lora_dropout=0.0, target_modules=targets, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                numbers = 0.4 * decoders.rule_numbers(name, p.numel())
                p.copy_(torch.from_numpy(numbers.astype("float32")).reshape(p.shape))
    folder = PARITY / "peft-decoders" / case
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    for path in folder.iterdir():
        path.chmod(0o644)
    ids = token_ids(seed, decoders.CASES[case]["vocab_size"], 2, 8)
    with torch.no_grad():
        logits = model(ids.long()).logits
        reloaded = PeftModel.from_pretrained(decoders.build(decoders.CASES[case]), folder).eval()
        assert torch.equal(reloaded(ids.long()).logits, logits)
        merged = reloaded.merge_and_unload()(ids.long()).logits
        plain = decoders.build(decoders.CASES[case])(ids.long()).logits
    print(f"  adapter changes logits by {(logits - plain).abs().max():.3f}, merge by {(merged - logits).abs().max():.1e}")
    write(f"peft-decoders/{case}", seed, {"targets": targets, "inputs": {"ids": ids}, "logits": logits}, ["transformers", "peft"])


def main() -> None:
    for i, (case, targets) in enumerate(CASES.items()):
        record(case, targets, 500 + i)


main()
