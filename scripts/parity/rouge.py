"""rouge: ROUGE-1, -2, -L and -Lsum of the package rouge_score, without stemming."""

import importlib.metadata

from record import write
from rouge_score import rouge_scorer

PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("The Police killed the gunman.", "the gunman kill police"),
    ("", "nothing was said"),
    ("something", ""),
    ("a b c d e f g", "g f e d c b a"),
    ("one two one two one", "one one one two"),
    (
        "The ship left at dawn.\nNobody saw it go.\nThe sea was calm.",
        "At dawn the ship left.\nThe calm sea hid it, and nobody saw it.",
    ),
    ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"),
    ("Preis: 3,50 Euro für den Käse", "Der Käse kostet 3,50 Euro"),
    ("the the the the", "the cat the dog\n\nthe the"),
]

scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
cases = []
for text, reference in PAIRS:
    scores = scorer.score(target=reference, prediction=text)
    cases.append(
        {
            "text": text,
            "reference": reference,
            "scores": {name: [float(x) for x in score] for name, score in scores.items()},
        }
    )
note = f"rouge_score {importlib.metadata.version('rouge_score')}; scores are [precision, recall, f1]"
write("rouge", 0, {"cases": cases}, note=note)
