"""eva: ranks, alphas, targets and first numbers that peft's EVA gives LoRA on the model of llama-train.

Peft decomposes in a random subspace of twice as many directions as are kept: ranks here are such that this is the
whole space, or close to it.
"""

from importlib import import_module

import torch
from record import PARITY, write  # first: it moves this folder back in sys.path

from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import initialize_lora_eva_weights

SEED = 11
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."


def texts(generator: torch.Generator, vocab: int) -> list[list[list[int]]]:
    """Seven batches of six texts of uneven length; low ids are frequent, and a text keeps to a few words."""
    weights = 1 / torch.arange(1, vocab + 1, dtype=torch.float32)
    made = []
    for _ in range(7):
        lengths = torch.randint(6, 20, (6,), generator=generator).tolist()
        made.append([torch.multinomial(weights, n, True, generator=generator).tolist() for n in lengths])
    return made


def padded(batch: list[list[int]]) -> dict:
    longest = max(map(len, batch))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
    return {"input_ids": ids, "attention_mask": mask}


def case(source, batches, targets: list[str], rank: int, rho: float, **options) -> dict:
    config = LoraConfig(
        r=rank, lora_alpha=6, target_modules=targets, init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, **options), task_type="CAUSAL_LM",
    )
    model = get_peft_model(source.build(), config).eval()
    passes = []

    def forward(model, batch):
        passes.append(model(**batch))

    loader = [padded(batch) for batch in batches]
    initialize_lora_eva_weights(model, loader, forward_fn=forward, show_progress_bar=False)
    made = model.peft_config["default"]
    rows = {
        name.removeprefix(PREFIX).removesuffix(".lora_A.default.weight"): p
        for name, p in model.named_parameters() if ".lora_A." in name
    }
    used = len(passes) - 1  # the first pass only finds layers with the same input
    print(f"  {targets[0]}… r {rank}, rho {rho}: {used} batches, ranks {[p.shape[0] for p in rows.values()]}")
    return {
        "targets": targets, "rank": rank, "alpha": 6, "options": {"rho": rho, "tau": 0.99, **options},
        "batchesUsed": used, "rankPattern": made.rank_pattern, "alphaPattern": made.alpha_pattern,
        "targetModules": sorted(made.target_modules), "rows": rows,
    }


def main() -> None:
    source = import_module("llama-train")
    generator = torch.Generator().manual_seed(SEED)
    batches = texts(generator, source.CONFIG["vocab_size"])
    write("eva", SEED, {
        "base": "hf-llama",
        "texts": batches,
        "cases": [
            case(source, batches, ALL, 2, 2.0),
            case(source, batches, ["q_proj", "down_proj"], 8, 1.0),
            case(source, batches, ["o_proj", "down_proj"], 3, 2.0, whiten=True, adjust_scaling_factors=False),
        ],
    }, ["transformers", "peft"], note=(
        "padding is left out by attention_mask; no labels; rows are those of lora_A, lora_B is zero; whiten only "
        "where no layers share an input, since peft divides those several times"
    ))


if __name__ == "__main__":
    main()
