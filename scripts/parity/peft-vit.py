"""LoRA with a classifier beside it on a tiny ViT: the folder that peft writes, and its logits.

    python scripts/parity/peft-vit.py                 writes test/parity/peft-vit and test/parity/peft-vit.json
    python scripts/parity/peft-vit.py check FOLDER    reads an adapter of that ViT and prints how far its logits are
                                                      from those in FOLDER/logits.json

transformers 5 names the layers of ViT otherwise than its checkpoints do, and peft follows it.
"""

import json
import shutil
import sys
from pathlib import Path

import record
import torch
from by_rule import numbers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ViTConfig, ViTForImageClassification
from vision import fill

SEED = 11
config = ViTConfig(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=8, patch_size=4,
    num_channels=2, id2label={0: "low", 1: "mid", 2: "high"},
)
torch.manual_seed(SEED)
base = ViTForImageClassification(config)
fill(base)
pixels = numbers("pixels", (2, 2, 8, 8)) * 2

if sys.argv[1:2] == ["check"]:
    folder = Path(sys.argv[2])
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, folder).eval()(pixel_values=pixels).logits
    ours = torch.tensor(json.loads((folder / "logits.json").read_text())).reshape(logits.shape)
    print("relative difference", ((logits - ours).abs().max() / logits.abs().max()).item())
    sys.exit()

model = get_peft_model(base, LoraConfig(
    r=2, lora_alpha=4, target_modules=["q_proj", "fc2", "o_proj"], modules_to_save=["classifier"],
    rank_pattern={"layers.1.attention.q_proj": 3},
)).eval()
generator = torch.Generator().manual_seed(SEED)
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            p.copy_(record.normal(generator, *p.shape, std=0.2))
folder = record.PARITY / "peft-vit"
shutil.rmtree(folder, ignore_errors=True)
model.save_pretrained(folder)
(folder / "README.md").unlink()
for path in sorted(folder.iterdir()):
    path.chmod(0o644)
with torch.no_grad():
    logits = model(pixel_values=pixels).logits
written = json.loads(json.dumps(config.to_diff_dict(), default=str))
written["architectures"] = ["ViTForImageClassification"]
keep = [k for k in sorted(written) if k not in ("transformers_version", "dtype")]
record.write("peft-vit", SEED, {"config": {k: written[k] for k in keep}, "logits": logits},
             modules=["transformers", "peft"], note="base weights and pixels by scripts/parity/by_rule.py")
