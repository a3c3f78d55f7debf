"""Records what the tokenizers library learns: test/parity/bpe.json.

Run: python scripts/parity/bpe.py > test/parity/bpe.json
Needs tokenizers. Seed 1.
"""

import json
import random
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

random.seed(1)
syllables = ["ka", "lo", "mi", "ren", "tu", "sha", "pel", "o", "n", "s", "ing", "er"]
words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(60)]
prose = [
    "The river doesn't hurry: it's 12 miles wide here, and we'll cross it at 7:30.\n",
    "They've seen 100 boats, I'd say; you're the 101st. She'll wait\twith me...\n\n",
    "Größe, façade, naïve, œuvre — żółć, čeština, Ελληνικά, русский язык.\n",
    "川は急がない。七時半に渡る。 한국어 문장도 있습니다 😀😀👩‍👩‍👧\n",
    "def f(x):\n    return x[0] + x[1]  # x[0] and x[1]\n",
    "   leading   and   trailing   spaces   \n",
]
chunks = []
for i in range(120):
    if i % 12 == 0:
        chunks.append(prose[i // 12 % len(prose)])
    else:
        chunks.append(" ".join(random.choices(words, weights=range(60, 0, -1), k=8)) + ".\n")

special = ["<|endoftext|>", "<|pad|>"]
options = {"vocabSize": 600, "specialTokens": special, "minFrequency": 2}

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator(
    chunks,
    trainers.BpeTrainer(
        vocab_size=options["vocabSize"],
        min_frequency=options["minFrequency"],
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
learnt = json.loads(tokenizer.to_str())
vocab = learnt["model"]["vocab"]
samples = prose + ["kalomiren shaing", "unseen: Zürich, 東京, \x00\x7f", " ", "\n\n  x"]
json.dump(
    {
        "script": "scripts/parity/bpe.py",
        "versions": {"python": sys.version.split()[0], "tokenizers": tokenizers.__version__},
        "seed": 1,
        "options": options,
        "chunks": chunks,
        "vocab": sorted(vocab, key=vocab.get),
        "merges": learnt["model"]["merges"],
        "addedTokens": learnt["added_tokens"],
        "encodings": [{"text": s, "ids": tokenizer.encode(s).ids} for s in samples],
    },
    sys.stdout,
    ensure_ascii=False,
)
print()
