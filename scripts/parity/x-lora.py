"""x-lora and x-lora-top: folders that peft writes for X-LoRA over the two LoRAs of peft-lora and peft-lora-patterns on
the model of llama-train, with scalings and logits.

peft 0.21 drops from the file every layer of the gate whose number is the name of an expert (its filter of adapter
names takes "layers.0." for the adapter "0"); what it drops is added here from its own state dict, in its order.
"""

import os
import shutil

import torch
from record import PARITY, normal, token_ids, write  # first: it moves this folder back in sys.path

from importlib import import_module

from peft import PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

SEED = 54
EXPERTS = {"0": "../peft-lora", "1": "../peft-lora-patterns"}
CASES = {
    "x-lora": dict(
        xlora_depth=3, xlora_size=5, layerwise_scalings=True, softmax_temperature=0.7, scaling_pass_value=0.5,
    ),
    # No constant in the first pass: peft would choose among equal ones.
    "x-lora-top": dict(xlora_depth=1, enable_softmax=False, top_k_lora=1, global_scaling_weight=1.5),
}


def base_model():
    base = import_module("llama-train").build()
    base.name_or_path = base.config._name_or_path = "hf-llama"
    base.config.use_cache = False
    return base


def record(name: str, options: dict, seed: int) -> None:
    folder = PARITY / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=base_model().config.hidden_size, adapters=dict(EXPERTS), **options,
    )
    model = get_peft_model(base_model(), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "internal_xlora_classifier" in key:
                p.copy_(normal(generator, *p.shape, std=0.6))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    for expert in EXPERTS:
        shutil.rmtree(folder / expert, ignore_errors=True)
    path = folder / "adapter_model.safetensors"
    stored = load_file(path) if path.exists() else {}
    whole = {k: v.clone() for k, v in model.state_dict().items() if "internal_xlora_classifier" in k}
    print(f"  peft wrote {sorted(stored)} of {sorted(whole)}")
    save_file(whole, path, metadata={"format": "pt"})
    for item in sorted(folder.iterdir()):
        item.chmod(0o644)
    ids = token_ids(seed, base_model().config.vocab_size, 2, 8)
    with torch.no_grad():
        logits = model(ids.long()).logits
        scalings = model.base_model.internal_xlora_scalings
        again = PeftModel.from_pretrained(base_model(), folder).eval()
        assert torch.equal(again(ids.long()).logits, logits)
        plain = base_model()(ids.long()).logits
    print(f"  X-LoRA changes logits by {(logits - plain).abs().max():.3f}")
    write(name, seed, {"inputs": {"ids": ids}, "scalings": scalings, "logits": logits}, ["transformers", "peft"],
          note="the file holds the gate's whole state dict, of which peft 0.21 writes a part")


for i, (name, options) in enumerate(CASES.items()):
    record(name, options, SEED + i)
