"""BERT, DistilBERT, RoBERTa, XLM-RoBERTa with each head, Llama and GPT-2 as classifiers: outputs and gradients of tiny models in transformers.

    python scripts/parity/encoders.py        writes test/parity/encoders.json
"""

import json

import record
import torch
from by_rule import fill, gradients, pattern
from transformers import (
    BertConfig, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification, BertModel,
    DistilBertConfig, DistilBertForMaskedLM, DistilBertForSequenceClassification,
    DistilBertForTokenClassification, DistilBertModel, GPT2Config, GPT2ForSequenceClassification, LlamaConfig,
    LlamaForSequenceClassification, RobertaConfig, RobertaForMaskedLM,
    RobertaForSequenceClassification, RobertaForTokenClassification, RobertaModel, XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

SEED = 5
VOCAB = 43
BERT = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=24, hidden_act="gelu",
)
ROBERTA = dict(BERT, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2)
DISTIL = dict(
    vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24,
    activation="gelu",
)
LABELS = dict(id2label={0: "low", 1: "mid", 2: "high"}, label2id={"low": 0, "mid": 1, "high": 2})

CASES = [
    ("bert", BertModel, BertConfig(**BERT)),
    ("bert-masked-lm", BertForMaskedLM, BertConfig(**BERT)),
    ("bert-sequence", BertForSequenceClassification, BertConfig(**BERT, **LABELS)),
    ("bert-token", BertForTokenClassification, BertConfig(**BERT, **LABELS)),
    ("distilbert", DistilBertModel, DistilBertConfig(**DISTIL)),
    ("distilbert-masked-lm", DistilBertForMaskedLM, DistilBertConfig(**DISTIL)),
    ("distilbert-sequence", DistilBertForSequenceClassification, DistilBertConfig(**DISTIL, **LABELS)),
    ("distilbert-token", DistilBertForTokenClassification, DistilBertConfig(**DISTIL, **LABELS)),
    ("roberta", RobertaModel, RobertaConfig(**ROBERTA)),
    ("roberta-masked-lm", RobertaForMaskedLM, RobertaConfig(**ROBERTA)),
    ("roberta-sequence", RobertaForSequenceClassification, RobertaConfig(**ROBERTA, **LABELS)),
    ("roberta-token", RobertaForTokenClassification, RobertaConfig(**ROBERTA, **LABELS)),
    ("xlm-roberta-sequence", XLMRobertaForSequenceClassification, XLMRobertaConfig(**ROBERTA, **LABELS)),
    ("llama-sequence", LlamaForSequenceClassification, LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=24, pad_token_id=0, **LABELS)),
    ("gpt2-sequence", GPT2ForSequenceClassification, GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=24, pad_token_id=0, **LABELS)),
]


def run(name, make, config):
    torch.manual_seed(SEED)
    config._attn_implementation = "eager"
    model = make(config).eval()
    fill(model)
    pad = config.pad_token_id
    ids = record.token_ids(SEED, VOCAB - 3, 3, 9) + 3
    mask = torch.ones(3, 9, dtype=torch.int32)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    ids = torch.where(mask == 1, ids, pad)
    inputs = {"ids": ids.int(), "mask": mask}
    given = {"input_ids": ids.long(), "attention_mask": mask.long()}
    if name.startswith("bert"):
        types = torch.zeros(3, 9, dtype=torch.int32)
        types[:, 4:] = 1
        inputs["tokenTypes"] = types
        given["token_type_ids"] = types.long()
    outputs = model(**given)
    keep = mask.bool()
    results = {}
    if hasattr(outputs, "logits"):
        logits = outputs.logits
        results["logits"] = logits if logits.ndim == 2 else logits[keep]
    else:
        results["hidden"] = outputs.last_hidden_state[keep]
        if getattr(outputs, "pooler_output", None) is not None:
            results["pooled"] = outputs.pooler_output
    loss = sum((value * pattern(value.shape)).sum() for value in results.values())
    loss.backward()
    written = json.loads(json.dumps(config.to_diff_dict(), default=str))
    written["architectures"] = [make.__name__]
    keys = [k for k in written if k not in ("transformers_version", "dtype")]
    return {
        "config": {k: written[k] for k in sorted(keys)},
        "inputs": inputs,
        "outputs": {k: v.detach() for k, v in results.items()},
        "loss": loss.item(),
        "gradients": gradients(model),
    }


record.write(
    "encoders", SEED, {"cases": {name: run(name, make, config) for name, make, config in CASES}},
    modules=["transformers"],
    note="weights by scripts/parity/by_rule.py; outputs of padding are left out",
)
