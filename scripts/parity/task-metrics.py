"""Metrics and losses of tasks, as scikit-learn, scipy, seqeval, sacrebleu and sentence-transformers give them.

    python scripts/parity/task-metrics.py        writes test/parity/task-metrics.json
"""

import math
import types

import numpy as np
import record
import torch
from sacrebleu.metrics import CHRF
from scipy import stats
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses
from sklearn import metrics
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

SEED = 11
rng = np.random.default_rng(SEED)


def classification():
    truth = rng.integers(0, 4, 60)
    answers = np.where(rng.random(60) < 0.6, truth, rng.integers(0, 4, 60))
    truth[truth == 3] = 2  # a class that only answers name
    return {
        "truth": truth.tolist(), "answers": answers.tolist(),
        "accuracy": metrics.accuracy_score(truth, answers),
        "macroF1": metrics.f1_score(truth, answers, average="macro"),
        "microF1": metrics.f1_score(truth, answers, average="micro"),
        "weightedF1": metrics.f1_score(truth, answers, average="weighted"),
        "matthews": metrics.matthews_corrcoef(truth, answers),
        "confusion": metrics.confusion_matrix(truth, answers).tolist(),
    }


def multi_label():
    truth = (rng.random((30, 5)) < 0.4).astype(int)
    answers = np.where(rng.random((30, 5)) < 0.8, truth, 1 - truth)
    return {
        "truth": truth.tolist(), "answers": answers.tolist(),
        "exact": metrics.accuracy_score(truth, answers),
        "macroF1": metrics.f1_score(truth, answers, average="macro"),
        "microF1": metrics.f1_score(truth, answers, average="micro"),
    }


def entities():
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    truth, answers = [], []
    for _ in range(40):
        row, kind = [], None
        for _ in range(12):
            if kind and rng.random() < 0.5:
                row.append("I-" + kind)
            elif rng.random() < 0.4:
                kind = ["PER", "LOC"][rng.integers(2)]
                row.append("B-" + kind)
            else:
                kind = None
                row.append("O")
        truth.append(row)
        answers.append([t if rng.random() < 0.75 else tags[rng.integers(5)] for t in row])
    how = dict(mode="strict", scheme=IOB2)
    return {
        "truth": truth, "answers": answers,
        "precision": precision_score(truth, answers, **how),
        "recall": recall_score(truth, answers, **how),
        "f1": f1_score(truth, answers, **how),
        "macroF1": f1_score(truth, answers, average="macro", **how),
    }


def retrieval():
    queries = np.round(rng.standard_normal((7, 5)), 3)
    documents = np.round(rng.standard_normal((20, 5)), 3)
    wanted = [sorted(rng.choice(20, rng.integers(1, 5), replace=False).tolist()) for _ in range(7)]
    scores = queries @ documents.T
    k = 6
    ndcg, mrr, recall, precision, ap = [], [], [], [], []
    for i in range(7):
        relevant = np.zeros(20)
        relevant[wanted[i]] = 1
        ndcg.append(metrics.ndcg_score(relevant[None], scores[i][None], k=k))
        order = np.argsort(-scores[i])[:k]
        found = [d in wanted[i] for d in order]
        mrr.append(next((1 / (r + 1) for r, hit in enumerate(found) if hit), 0))
        recall.append(sum(found) / len(wanted[i]))
        precision.append(sum(found) / k)
        ap.append(sum(sum(found[: r + 1]) / (r + 1) for r, hit in enumerate(found) if hit) / min(k, len(wanted[i])))
    return {
        "queries": queries.tolist(), "documents": documents.tolist(), "wanted": wanted, "k": k,
        "ndcg": float(np.mean(ndcg)), "mrr": float(np.mean(mrr)), "recall": float(np.mean(recall)),
        "precision": float(np.mean(precision)), "map": float(np.mean(ap)),
    }


def correlation():
    a = np.round(rng.standard_normal(25), 1)
    b = np.round(a + rng.standard_normal(25), 1)
    return {"a": a.tolist(), "b": b.tolist(), "pearson": float(stats.pearsonr(a, b)[0]),
            "spearman": float(stats.spearmanr(a, b)[0])}


def chrf():
    answers = ["The cat sat on the mat.", "a  dog barks", "", "Größe zählt 🙂 nicht"]
    references = ["The cat is on the mat.", "The dog barked loudly", "something", "Größe zählt nicht"]
    metric = CHRF()
    return {"answers": answers, "references": references,
            "score": metric.corpus_score(answers, [references]).score,
            "first": metric.corpus_score(answers[:1], [references[:1]]).score}


class Fake(torch.nn.Module):
    """What the losses ask of a model: vectors of one place of the examples."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}


def sentence_losses():
    generator = torch.Generator().manual_seed(SEED)
    vectors = [record.normal(generator, 5, 8) for _ in range(3)]
    scores = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2])
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    model = Fake()
    cases = {
        "mnrl": (losses.MultipleNegativesRankingLoss(model), 2, labels),
        "mnrl-negatives": (losses.MultipleNegativesRankingLoss(model, scale=10.0), 3, labels),
        "triplet": (losses.TripletLoss(model), 3, labels),
        "triplet-cosine": (losses.TripletLoss(model, distance_metric=losses.TripletDistanceMetric.COSINE,
                                              triplet_margin=0.5), 3, labels),
        "cosine": (losses.CosineSimilarityLoss(model), 2, scores),
        "contrastive": (losses.ContrastiveLoss(model), 2, labels),
        "cosent": (losses.CoSENTLoss(model), 2, scores),
    }
    found = {}
    for name, (loss, places, wanted) in cases.items():
        own = [v.clone().requires_grad_(True) for v in vectors[:places]]
        value = loss([{"vectors": v} for v in own], wanted)
        value.backward()
        found[name] = {"loss": np.float32(value.item()), "gradients": [v.grad for v in own]}
    return {"vectors": vectors, "scores": scores, "labels": labels, "cases": found}


record.write(
    "task-metrics", SEED,
    {"classification": classification(), "multiLabel": multi_label(), "entities": entities(),
     "retrieval": retrieval(), "correlation": correlation(), "chrf": chrf(), "sentences": sentence_losses()},
    modules=["sklearn", "scipy", "sacrebleu", "sentence_transformers"],
    note="seqeval 1.2.2, strict IOB2; measures of ranks cut at k by their definitions, nDCG by scikit-learn",
)
