"""adapter-algebra: what peft's add_weighted_adapter makes of three LoRA adapters on the model of llama-train, and
what its convert_to_lora makes of a LoHa and of a LoRA."""

import warnings
from importlib import import_module

import torch
from record import normal, write  # first: it moves this folder back in sys.path

from peft import LoHaConfig, LoraConfig, convert_to_lora, get_peft_model

SEED = 17
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SOURCE = import_module("llama-train")
warnings.filterwarnings("ignore")


def config(targets: list[str], rank: int, alpha: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")


def fill(model: torch.nn.Module, parts: tuple[str, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in parts):
                p.copy_(normal(generator, *p.shape, std=0.3, digits=5))
                assert len(p.abs().unique()) == p.numel(), "equal magnitudes: which is kept is not settled"


def numbers(model: torch.nn.Module, name: str) -> dict:
    return {
        key.removeprefix("base_model.model.").replace(f".{name}.", ".").removesuffix(f".{name}"): p.detach().contiguous()
        for key, p in model.named_parameters() if key.endswith(f".{name}") or f".{name}." in key
    }


def algebra() -> dict:
    model = get_peft_model(SOURCE.build(), config([Q, DOWN], 2, 4), adapter_name="a")
    model.add_adapter("b", config([Q, DOWN], 2, 3))
    model.add_adapter("c", config([Q], 3, 3))
    fill(model, (".lora_",), SEED)
    pair, weights, density = ["a", "b"], [0.7, -0.4], 0.4
    cases = []
    for method, options in [
        ("linear", {}), ("cat", {}), ("svd", {}), ("svd", {"svd_rank": 3}),
        ("ties", {}), ("ties", {"majority_sign_method": "frequency"}), ("ties_svd", {}),
        ("ties_svd", {"majority_sign_method": "frequency", "svd_rank": 4}),
        ("magnitude_prune", {}), ("magnitude_prune_svd", {}),
    ]:
        if "ties" in method or "prune" in method:
            options = {**options, "density": density}
        name = f"made{len(cases)}"
        model.add_weighted_adapter(pair, weights, name, combination_type=method, **options)
        cases.append({"adapters": pair, "weights": weights, "method": method, **options, "made": numbers(model, name)})
    for method in ("cat", "svd"):
        name = f"made{len(cases)}"
        model.add_weighted_adapter(["a", "b", "c"], [1.0, 0.5, 2.0], name, combination_type=method)
        cases.append({"adapters": ["a", "b", "c"], "weights": [1.0, 0.5, 2.0], "method": method, "made": numbers(model, name)})
    made = {
        name: {"rank": model.peft_config[name].r, "alpha": model.peft_config[name].lora_alpha, "params": numbers(model, name)}
        for name in ("a", "b", "c")
    }
    return {"adapters": made, "cases": cases}


def converted(kind: str) -> dict:
    if kind == "loha":
        made = LoHaConfig(r=2, alpha=4, target_modules=[Q, DOWN])
    else:
        made = config([Q, DOWN], 4, 6)
    model = get_peft_model(SOURCE.build(), made)
    fill(model, (".hada_", ".lora_"), SEED + 1)
    cases = []
    for rank in (2, 0.6, 0.99):
        found, state = convert_to_lora(model, rank)
        cases.append({
            "rank": rank,
            "ranks": {key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): p.shape[0]
                      for key, p in state.items() if "lora_A" in key},
            "made": {key.removeprefix("base_model.model."): p for key, p in state.items()},
        })
        print(f"  {kind} to {rank}: {cases[-1]['ranks']}")
    return {"params": numbers(model, "default"), "cases": cases}


def main() -> None:
    write("adapter-algebra", SEED, {
        "base": "hf-llama",
        "targets": [Q, DOWN],
        **algebra(),
        "loha": converted("loha"),
        "lora": converted("lora"),
    }, ["transformers", "peft"], note=(
        "factors of svd kinds and of conversions hold up to the sign of each direction; alpha is the rank in all that "
        "is made; loha has r 2 and alpha 4, lora r 4 and alpha 6"
    ))


if __name__ == "__main__":
    main()
