"""Merging: what mergekit makes of tiny Llama models by configurations of every deterministic method.

    python scripts/parity/merge.py        writes test/parity/merge.json

Needs mergekit. Weights are float32, little-endian, in base64: all tensors by name. DELLA draws random numbers,
so its case is run with the mask replaced by its expectation (the chances themselves) and without rescaling.
"""

import base64
import importlib.metadata
import os
import tempfile

import record
import torch
import yaml
from mergekit import sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 11
CONFIG = LlamaConfig(
    vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=False,
)
BESIDE = {"base_model": "base"}
THREE = [{"model": "a"}, {"model": "b"}, {"model": "c"}]


def weighted(*weights, **shared):
    names = ["a", "b", "c"]
    return [
        {"model": name, "parameters": {"weight": weight, **shared}} for name, weight in zip(names, weights)
    ]


CASES = {
    "linear": {"merge_method": "linear", "models": weighted(0.5, 0.3, 0.4)},
    "linear, not normalised": {
        "merge_method": "linear", "models": weighted(0.5, 0.3), "parameters": {"normalize": False},
    },
    "linear by filter and gradient": {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": [
                {"filter": "self_attn", "value": [0.1, 0.9]}, {"filter": "mlp", "value": [1, 0.2, 0.6]}, {"value": 0.5},
            ]}},
            {"model": "b", "parameters": {"weight": 1}},
        ],
    },
    "slerp": {
        "merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.3},
    },
    "slerp in slices by filter": {
        "merge_method": "slerp", "base_model": "b",
        "slices": [{"sources": [
            {"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [0, 3]},
        ]}],
        "parameters": {"t": [
            {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
            {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
            {"value": 0.5},
        ]},
    },
    "task_arithmetic": {"merge_method": "task_arithmetic", **BESIDE, "models": weighted(0.7, -0.4, 0.5)},
    "task_arithmetic, normalised, lambda": {
        "merge_method": "task_arithmetic", **BESIDE, "models": weighted(0.7, 0.4),
        "parameters": {"normalize": True, "lambda": 0.6},
    },
    "ties": {"merge_method": "ties", **BESIDE, "models": weighted(1, 1, 1, density=0.5)},
    "ties, weights and densities": {
        "merge_method": "ties", **BESIDE,
        "models": [
            {"model": "base"},
            {"model": "a", "parameters": {"weight": 0.6, "density": 0.3}},
            {"model": "b", "parameters": {"weight": [0.2, 0.9], "density": [0.9, 0.4]}},
            {"model": "c", "parameters": {"weight": 0.5}},
        ],
        "parameters": {"normalize": False, "int8_mask": True, "lambda": 1.2},
    },
    "model_stock": {"merge_method": "model_stock", **BESIDE, "models": THREE[:2]},
    "model_stock of three, by filter": {
        "merge_method": "model_stock", **BESIDE, "models": THREE, "parameters": {"filter_wise": True},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs", **BESIDE, "models": weighted(0.5, 0.4, 0.3, density=0.5, gamma=0.25),
    },
    "breadcrumbs, normalised": {
        "merge_method": "breadcrumbs", **BESIDE, "models": weighted(0.5, 0.4, density=0.7, gamma=0.25),
        "parameters": {"normalize": True},
    },
    "breadcrumbs_ties": {
        "merge_method": "breadcrumbs_ties", **BESIDE,
        "models": weighted(0.5, 0.4, 0.3, density=0.5, gamma=0.25),
    },
    "slices of two halves": {
        "merge_method": "linear", "base_model": "base",
        "slices": [
            {"sources": [
                {"model": "base", "layer_range": [0, 2], "parameters": {"weight": 1}},
                {"model": "b", "layer_range": [0, 2], "parameters": {"weight": 0.4}},
            ]},
            {"sources": [
                {"model": "a", "layer_range": [1, 3], "parameters": {"weight": [0.2, 0.8]}},
                {"model": "base", "layer_range": [1, 3], "parameters": {"weight": 0.5}},
            ]},
        ],
    },
    "della in expectation": {
        "merge_method": "della", **BESIDE, "models": weighted(0.5, 0.8, 0.6, density=0.5, epsilon=0.2),
        "parameters": {"rescale": False},
    },
}


def blob(tensors):
    flat = torch.cat([tensors[name].float().reshape(-1) for name in sorted(tensors)])
    return base64.b64encode(flat.numpy().astype("<f4").tobytes()).decode()


def read(folder):
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def expected(tensor, density, epsilon, rescale_norm=None):
    """DELLA's sampling with the mask's expectation."""
    kept = torch.bernoulli
    torch.bernoulli = lambda chances: chances
    try:
        return sampled(tensor, density=density, epsilon=epsilon, rescale_norm=rescale_norm)
    finally:
        torch.bernoulli = kept


sampled = sparsify.della_magprune
sparsify.della_magprune = expected

with tempfile.TemporaryDirectory() as root:
    os.chdir(root)
    generator = torch.Generator().manual_seed(SEED)
    base = LlamaForCausalLM(CONFIG)
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(record.normal(generator, *p.shape, std=0.5, digits=9))
    base.save_pretrained("base")
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    for name in "abc":
        with torch.no_grad():
            for key, p in base.named_parameters():
                p.copy_(start[key] + record.normal(generator, *p.shape, std=0.2, digits=9))
        base.save_pretrained(name)
    models = {name: read(name) for name in ["base", "a", "b", "c"]}
    layout = [[name, list(models["base"][name].shape)] for name in sorted(models["base"])]
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, num_threads=1)
    cases = []
    for i, (title, config) in enumerate(CASES.items()):
        run_merge(MergeConfiguration.model_validate(config), f"out-{i}", options)
        merged = read(f"out-{i}")
        own = sorted(merged) != [name for name, _ in layout]
        cases.append({
            "title": title,
            "config": yaml.safe_dump(config, default_flow_style=None, sort_keys=False),
            **({"layout": [[name, list(merged[name].shape)] for name in sorted(merged)]} if own else {}),
            "weights": blob(merged),
        })
config = {key: value for key, value in CONFIG.to_diff_dict().items() if key != "transformers_version"}
record.write(
    "merge", SEED,
    {
        "config": {**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "layout": layout,
        "models": {name: blob(tensors) for name, tensors in models.items()},
        "cases": cases,
    },
    modules=["transformers"],
    note=f"mergekit {importlib.metadata.version('mergekit')}; weights are base64 of float32, tensors by name",
)
