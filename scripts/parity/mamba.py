"""mamba: transformers' MambaForCausalLM, tiny, with weights by the rule of by_rule.py: logits, loss, gradients in
short, the state after all tokens, greedy tokens after prompts of several lengths, and LoRA by PEFT.

    python scripts/parity/mamba.py                  writes test/parity/mamba.json
    python scripts/parity/mamba.py check FOLDER     reads a saved folder and prints how far its logits are off
"""

import json
import sys

import torch
from record import next_token_loss, token_ids, write  # first: it moves this folder back in sys.path
from by_rule import fill, gradients, numbers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM

PROMPTS = [2, 9, 5]
NEW = 8
MAMBA = dict(model_type="mamba", vocab_size=23, hidden_size=12, state_size=4, num_hidden_layers=2)
CASES = {
    "plain": dict(MAMBA),
    "biased": dict(MAMBA, use_bias=True, use_conv_bias=False, conv_kernel=3, expand=3, time_step_rank=2,
                   tie_word_embeddings=False, layer_norm_epsilon=1e-3),
}


def build(config: dict):
    config = dict(config)
    settings = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(settings).float()
    fill(model)
    return model.eval()


@torch.no_grad()
def greedy(model, prompt: torch.Tensor) -> torch.Tensor | None:
    """None where two tokens are so close that rounding could choose."""
    ids = prompt.long()[None]
    for _ in range(NEW):
        last = model(ids, use_cache=False).logits[:, -1]
        top = last.topk(2).values[0]
        if (top[0] - top[1]).item() < 5e-3:
            return None
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    made = model.generate(prompt.long()[None], max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
    # transformers limits the step sizes of whole sequences, and forgets to with a cache.
    limits = getattr(model.config, "time_step_limit", (0.0, float("inf")))
    assert torch.equal(made, ids) or limits[0] > 0, "cached and uncached greedy differ"
    return ids[0, len(prompt):].int()


def continued(model, vocab: int, n: int, seed: int) -> dict:
    for i in range(50):
        prompt = token_ids(seed + 1000 * i, vocab, n)
        tokens = greedy(model, prompt)
        if tokens is not None:
            return {"prompt": prompt, "tokens": tokens}
    raise AssertionError("no prompt is continued without close calls")


def lora(config: dict, targets: list[str], ids: torch.Tensor) -> dict:
    """Logits with an adapter whose numbers follow the rule, under the names of PEFT's file."""
    model = get_peft_model(build(config), LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(numbers(name.replace(".default", ""), tuple(p.shape)))
        logits = model.eval()(ids[:, :-1].long()).logits
    names = sorted(get_peft_model_state_dict(model))
    return {"targets": targets, "names": names, "logits": logits}


def record(config: dict, seed: int, targets: list[str] | None) -> dict:
    model = build(config)
    vocab = config["vocab_size"]
    ids = token_ids(seed, vocab, 2, 12)
    logits = model(ids[:, :-1].long(), use_cache=False).logits
    loss = next_token_loss(logits, ids)
    loss.backward()
    with torch.no_grad():
        cache = model(ids[:, :-1].long(), use_cache=True).cache_params
    before = model.config.conv_kernel - 1
    state = {}
    for i, layer in enumerate(cache.layers):
        conv, ssm = layer.conv_states, layer.recurrent_states
        conv, ssm = (x[0] if isinstance(x, (dict, list)) else x for x in (conv, ssm))
        state[f"{i}.conv"], state[f"{i}.ssm"] = conv[..., -before:], ssm
    return {
        "config": config,
        "newConfig": json.loads(model.config.to_json_string(use_diff=False)),
        "inputs": {"ids": ids},
        "logits": logits.detach(),
        "loss": loss.item(),
        "gradients": gradients(model),
        "state": state,
        "greedy": [continued(model, vocab, n, seed + n) for n in PROMPTS],
        **({"lora": lora(config, targets, ids)} if targets else {}),
    }


def check(cases: dict, folder: str) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
    config = next(c for c in cases.values() if c.get("use_bias", False) == model.config.use_bias)
    ids = token_ids(7, config["vocab_size"], 2, 12).long()
    with torch.no_grad():
        mine, theirs = build(config)(ids).logits, model.eval()(ids).logits
    print(f"{folder}: {type(model).__name__}, largest difference of logits {(mine - theirs).abs().max().item():.1e}")


def main(name: str, cases: dict, seed: int, targets: list[str]) -> None:
    if sys.argv[1:2] == ["check"]:
        return check(cases, sys.argv[2])
    body = {
        case: record(config, seed + 20 * i, targets if i == 0 else None) for i, (case, config) in enumerate(cases.items())
    }
    write(name, seed, {"cases": body}, ["transformers", "peft"], note=(
        "weights by the rule of by_rule.py; inputs ids[:, :-1], targets ids[:, 1:], mean cross-entropy; state is what "
        "the cache holds after ids[:, :-1], of the convolution the last kernel - 1 columns; the numbers of lora follow "
        "the rule under the names of the file"
    ))


if __name__ == "__main__":
    main("mamba", CASES, 300, ["in_proj", "x_proj"])
