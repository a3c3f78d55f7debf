"""decoders/<case>.json: tiny causal language models of transformers whose weights follow a rule (`rule_weights`,
test/support/rule-weights.ts), so that a record holds inputs, logits, loss, gradients in brief and greedy tokens.

Of every gradient: its norm, its product with a vector of the rule, the largest |number|, and eight numbers.

    python scripts/parity/decoders.py                 writes test/parity/decoders/
    python scripts/parity/decoders.py CASE            writes one
"""

import copy
import sys

import numpy as np
import torch
from record import next_token_loss, token_ids, write  # first: it moves this folder back in sys.path
from transformers import AutoConfig, AutoModelForCausalLM

M = 0xFFFFFFFF
TOKENS = 10
PROMPTS = [3, 9, 6]
NEW = 9

COMMON = dict(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=None, pad_token_id=None,
)
LLAMA = {**COMMON, "model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def long_rope(n: int) -> dict:
    return {
        "rope_type": "longrope",
        "short_factor": [1 + 0.1 * i for i in range(n)],
        "long_factor": [1.5 + 2.0 * i for i in range(n)],
    }


# Written as older config.json files are; transformers turns them into its own form, which is recorded too.
CASES = {
    "qwen2": {**COMMON, "model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True,
              "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**COMMON, "model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 6, "attention_bias": False,
              "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None},
    "mistral": {**COMMON, "model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 3, "head_dim": None,
                "tie_word_embeddings": False},
    "gemma3": {**COMMON, "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 6, "rope_theta": 1000000.0,
               "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
               "sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 9,
               "final_logit_softcapping": 3.0, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
    "phi3": {**COMMON, "model_type": "phi3", "rope_theta": 10000.0, "sliding_window": 5, "tie_word_embeddings": False},
    # Ten tokens are more than the eight of the original context; prompts cross it while they grow.
    "phi3-long": {**COMMON, "model_type": "phi3", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                  "hidden_size": 32, "original_max_position_embeddings": 8, "rope_scaling": long_rope(2),
                  "sliding_window": None, "tie_word_embeddings": True},
    "gpt-neox": {**COMMON, "model_type": "gpt_neox", "num_key_value_heads": None, "rotary_pct": 0.5, "rotary_emb_base": 10000,
                 "use_parallel_residual": True, "hidden_act": "gelu", "tie_word_embeddings": False},
    "gpt-neox-serial": {**COMMON, "model_type": "gpt_neox", "num_key_value_heads": None, "rotary_pct": 1.0,
                        "rotary_emb_base": 5000, "use_parallel_residual": False, "hidden_act": "gelu_new",
                        "attention_bias": False, "tie_word_embeddings": True},
    "llama-bias": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama-linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama-dynamic": {**LLAMA, "max_position_embeddings": 6, "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    "llama-yarn": {**LLAMA, "hidden_size": 48, "rope_scaling": YARN},
    "llama-yarn-mscale": {**LLAMA, "hidden_size": 48, "rope_scaling": {
        **YARN, "beta_fast": 4, "beta_slow": 0.5, "mscale": 0.7, "mscale_all_dim": 1.4, "truncate": False}},
    "llama-longrope": {**LLAMA, "rope_scaling": {**long_rope(2), "original_max_position_embeddings": 32}},
}


def rule_numbers(name: str, size: int) -> np.ndarray:
    """`size` numbers in [-1, 1), float64: murmur3's finalizer on FNV-1a of the name plus a stride."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & M
    x = (np.arange(size, dtype=np.uint64) * 0x9E3779B1 + seed) & M
    x ^= x >> np.uint64(16)
    x = (x * 0x85EBCA6B) & M
    x ^= x >> np.uint64(13)
    x = (x * 0xC2B2AE35) & M
    x ^= x >> np.uint64(16)
    return (x >> np.uint64(8)).astype(np.float64) / 2**23 - 1


@torch.no_grad()
def rule_weights(model: torch.nn.Module, norm_mean: float) -> None:
    """Matrices ±0.4; scales of norms about `norm_mean` and biases about 0, ±0.3."""
    for name, p in model.named_parameters():
        u = rule_numbers(name, p.numel())
        if p.ndim >= 2:
            values = 0.4 * u
        else:
            values = 0.3 * u + (norm_mean if name.endswith("weight") else 0)
        p.copy_(torch.from_numpy(values.astype(np.float32)).reshape(p.shape))


def build(config: dict):
    # A copy: transformers writes into the objects that it is given.
    config = {k: copy.deepcopy(v) for k, v in config.items() if not (k == "num_key_value_heads" and v is None)}
    kind = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config), attn_implementation="eager").float()
    rule_weights(model, 0.0 if kind.startswith("gemma") else 1.0)
    return model.eval()


@torch.no_grad()
def greedy(model, prompt: torch.Tensor) -> torch.Tensor | None:
    """None where two tokens are so close that rounding could choose."""
    ids, gap = prompt.long()[None], 1.0
    for _ in range(NEW):
        last = model(ids, use_cache=False).logits[:, -1]
        top = last.topk(2).values[0]
        gap = min(gap, (top[0] - top[1]).item())
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    if gap < 5e-3:
        return None
    made = model.generate(prompt.long()[None], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(made, ids) or model.config.rope_parameters.get("rope_type") == "dynamic", "cached and uncached greedy differ"
    return ids[0, len(prompt):].int()


def continued(model, vocab: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    for i in range(50):
        prompt = token_ids(seed + 1000 * i, vocab, n)
        tokens = greedy(model, prompt)
        if tokens is not None:
            return prompt, tokens
    raise AssertionError("no prompt is continued without close calls")


def brief(name: str, g: torch.Tensor) -> dict:
    flat = g.double().flatten()
    at = [int(k * (flat.numel() - 1) / 7) for k in range(8)]
    along = torch.from_numpy(rule_numbers(f"{name}:gradient", flat.numel()))
    return {
        "norm": np.float32(flat.norm().item()),
        "product": np.float32((flat * along).sum().item()),
        "largest": np.float32(flat.abs().max().item()),
        "at": at,
        "values": [np.float32(flat[i].item()) for i in at],
    }


def record(case: str, seed: int) -> None:
    config = CASES[case]
    model = build(config)
    ids = token_ids(seed, config["vocab_size"], 2, TOKENS + 1)
    logits = model(ids[:, :-1].long()).logits
    loss = next_token_loss(logits, ids)
    loss.backward()
    prompts, tokens = zip(*(continued(model, config["vocab_size"], n, seed + 1 + n) for n in PROMPTS))
    with torch.no_grad():
        early = model(ids[:, :5].long()).logits
    body = {
        "config": config,
        "newConfig": {k: v for k, v in model.config.to_diff_dict().items() if k != "transformers_version"},
        "normMean": 0 if config["model_type"].startswith("gemma") else 1,
        "inputs": {"ids": ids},
        "logits": logits.detach(),
        "early": early,
        "loss": np.float32(loss.item()),
        "gradients": {n: brief(n, p.grad) for n, p in model.named_parameters()},
        "greedy": {"prompts": list(prompts), "tokens": list(tokens)},
    }
    write(f"decoders/{case}", seed, body, ["transformers"], note=(
        "weights by the rule of rule_weights; inputs ids[:, :-1], targets ids[:, 1:], mean cross-entropy; early is logits of ids[:, :5]; "
        "config as older files have it, newConfig as transformers writes it"
    ))


def main() -> None:
    for i, case in enumerate(CASES):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            record(case, 100 + 20 * i)


if __name__ == "__main__":
    main()
