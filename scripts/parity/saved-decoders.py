"""Checks that transformers loads folders that `saveModel` wrote, strictly, and gives the logits of decoders/<case>.json.

    python scripts/parity/saved-decoders.py FOLDER...      each named as its case
"""

import json
import sys
from pathlib import Path

import torch
from record import PARITY  # first: it moves this folder back in sys.path
from transformers import AutoModelForCausalLM


def check(folder: Path) -> float:
    record = json.loads((PARITY / "decoders" / f"{folder.name}.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], f"{folder}: {what} {info[what]}"
    raw = record["inputs"]["ids"]
    ids = torch.tensor(raw["data"]).reshape(raw["shape"])[:, :-1]
    with torch.no_grad():
        logits = model.eval()(ids).logits
    expected = torch.tensor(record["logits"]["data"]).reshape(logits.shape)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


def main() -> None:
    for name in sys.argv[1:]:
        difference = check(Path(name))
        print(f"{name}: relative difference {difference:.1e}")
        assert difference < 1e-5, name


main()
