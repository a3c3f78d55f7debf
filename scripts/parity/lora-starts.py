"""lora-starts: first numbers that peft gives LoRA with PiSSA, OLoRA and LoRA-GA on the models of llama-train and
gpt2-train, and LoftQ's decomposition on a weight in our blocks of four bits."""

from importlib import import_module

import numpy as np
import torch
from record import next_token_loss, normal, token_ids, write  # first: it moves this folder back in sys.path

from peft import LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.loftq_utils import _low_rank_decomposition

SEED = 21


def factors(model: torch.nn.Module) -> dict:
    return {
        name.removeprefix("base_model.model.").replace(".default.", "."): p.detach().contiguous()
        for name, p in model.named_parameters() if ".lora_" in name
    }


def start(base_name: str, init: str, targets: list[str], rank: int, alpha: int, **options) -> dict:
    source = import_module(f"{base_name}-train")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=init, task_type="CAUSAL_LM",
        fan_in_fan_out=base_name == "gpt2", **options,
    )
    base = source.build()
    ids = token_ids(SEED, source.CONFIG["vocab_size"], 3, 10)
    if init == "lora_ga":
        base.train()
        preprocess_loraga(base, config, lambda: next_token_loss(base(ids[:, :-1].long()).logits, ids).backward())
        base.eval()
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        apart = (model(ids[:, :-1].long()).logits - source.build()(ids[:, :-1].long()).logits).abs().max()
    print(f"  {base_name} {init}: logits move by {apart:.1e}")
    return {
        "base": f"hf-{base_name}", "init": init, "targets": targets, "rank": rank, "alpha": alpha,
        "rankStabilized": options.get("use_rslora", False), "ids": ids, "factors": factors(model),
    }


def four_bits(weight: np.ndarray) -> np.ndarray:
    """Blocks of 32 along a row: the entry furthest from 0 stands at -8 steps, others at the nearest, at most 7."""
    blocks = weight.astype(np.float32).reshape(-1, 32)
    furthest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)]
    scale = (furthest / np.float32(-8)).astype(np.float32)[:, None]
    steps = np.clip(np.floor(blocks.astype(np.float64) / scale + 0.5), -8, 7)
    return (steps * scale).astype(np.float32).reshape(weight.shape)


def loftq(rank: int, turns: int) -> dict:
    """The loop of peft's loftq_init, with its own decomposition and our quantiser."""
    weight = normal(torch.Generator().manual_seed(SEED), 12, 64, std=0.3)
    left = weight.clone()
    for turn in range(turns):
        base = torch.from_numpy(four_bits(left.numpy()))
        rest = weight - base
        found = _low_rank_decomposition(rest, reduced_rank=rank)
        if turn + 1 < turns:
            left = weight - found["L"] @ found["R"]
    plain = torch.from_numpy(four_bits(weight.numpy()))
    error = (weight - base - found["L"] @ found["R"]).norm() / weight.norm()
    print(f"  loftq: error {error:.4f}, of plain {(weight - plain).norm() / weight.norm():.4f}")
    return {
        "weight": weight, "rank": rank, "turns": turns, "base": base, "a": found["R"], "b": found["L"],
        "error": error.item(), "plainError": ((weight - plain).norm() / weight.norm()).item(),
    }


def main() -> None:
    some = ["q_proj", "k_proj", "down_proj"]
    write("lora-starts", SEED, {
        "cases": [
            start("llama", "pissa", some, 3, 6),
            start("llama", "pissa", ["v_proj"], 4, 6, use_rslora=True),
            start("llama", "olora", some, 3, 6),
            start("gpt2", "pissa", ["c_attn"], 2, 3),
            start("llama", "lora_ga", some, 4, 4, lora_ga_config=LoraGAConfig()),
        ],
        "loftq": loftq(4, 3),
    }, ["transformers", "peft"], note=(
        "factors hold up to the sign of each direction; of lora_ga only directions do, as peft scales B by the "
        "gradient's singular values; loftq is peft's loop with our blocks of four bits in place of bitsandbytes"
    ))


if __name__ == "__main__":
    main()
