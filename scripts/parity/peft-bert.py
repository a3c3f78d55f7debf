"""LoRA with a classifier beside it on a tiny BERT: the folder that peft writes, and its logits.

    python scripts/parity/peft-bert.py        writes test/parity/peft-bert and test/parity/peft-bert.json
"""

import json
import shutil

import record
import torch
from by_rule import fill
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

SEED = 9
config = BertConfig(
    vocab_size=43, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=24, id2label={0: "low", 1: "mid", 2: "high"},
)
torch.manual_seed(SEED)
base = BertForSequenceClassification(config)
fill(base)
model = get_peft_model(base, LoraConfig(
    r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS", modules_to_save=["classifier"],
)).eval()
generator = torch.Generator().manual_seed(SEED)
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            p.copy_(record.normal(generator, *p.shape, std=0.2))
folder = record.PARITY / "peft-bert"
shutil.rmtree(folder, ignore_errors=True)
model.save_pretrained(folder)
(folder / "README.md").unlink()
for path in sorted(folder.iterdir()):
    path.chmod(0o644)
ids = record.token_ids(SEED, 40, 2, 7) + 3
with torch.no_grad():
    logits = model(input_ids=ids.long(), attention_mask=torch.ones_like(ids).long()).logits
written = json.loads(json.dumps(config.to_diff_dict(), default=str))
written["architectures"] = ["BertForSequenceClassification"]
keep = [k for k in sorted(written) if k not in ("transformers_version", "dtype")]
record.write("peft-bert", SEED, {"config": {k: written[k] for k in keep}, "ids": ids, "logits": logits},
             modules=["transformers", "peft"], note="base weights by scripts/parity/by_rule.py")
