"""peft-lora, peft-lora-gpt2 and peft-lora-patterns (ranks and alphas by pattern): folders written by peft itself for the models of llama-train and gpt2-train,
with logits, the merged model's logits, and five AdamW steps of the adapter alone."""

import shutil
from importlib import import_module

import torch
from record import ADAMW, PARITY, next_token_loss, normal, token_ids, train, write  # first: it moves this folder back in sys.path

from peft import LoraConfig, PeftModel, get_peft_model

SEED = 3
SPEC = {**ADAMW, "lr": 1e-2}


def adapter_values(model: torch.nn.Module, seed: int) -> None:
    """Both factors random: peft's zero lora_B would make the adapter do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_magnitude" in name:
                p.mul_(1 + normal(generator, *p.shape, std=0.2))
            elif "lora_" in name:
                p.copy_(normal(generator, *p.shape, std=0.2))
            elif "trainable_tokens" in name:
                p.add_(normal(generator, *p.shape, std=0.2))


def plain(name: str) -> str:
    return name.replace(".default.", ".").replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def record(name: str, base_name: str, targets: list[str], seed: int, final: list[str], **options) -> None:
    source = import_module(f"{base_name}-train")
    base = source.build()
    base.name_or_path = base.config._name_or_path = f"hf-{base_name}"
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, bias="none", task_type="CAUSAL_LM",
        fan_in_fan_out=base_name == "gpt2", **options,
    )
    model = get_peft_model(base, config).eval()
    adapter_values(model, seed)

    folder = PARITY / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        print(f"test/parity/{name}/{path.name}  {path.stat().st_size / 1024:.1f} KiB")

    ids = token_ids(seed, source.CONFIG["vocab_size"], 2, 9)
    inputs = ids[:, :-1].long()
    with torch.no_grad():
        logits = model(inputs).logits
        reloaded = PeftModel.from_pretrained(source.build(), folder).eval()
        assert torch.equal(reloaded(inputs).logits, logits), "the saved adapter reads back differently"
        merged_model = reloaded.merge_and_unload()
        merged = merged_model(inputs).logits
        base_logits = source.build()(inputs).logits
    print(f"  adapter changes logits by {(logits - base_logits).abs().max():.3f}, merge by {(merged - logits).abs().max():.1e}")
    long = [next(n for n, _ in model.named_parameters() if plain(n) == f) for f in final]
    trained = train(model, lambda m: next_token_loss(m(inputs).logits, ids), SPEC, long, long)
    for part in ("gradients", "finalWeights"):
        trained[part] = {plain(n): v for n, v in trained[part].items()}
    module = dict(merged_model.named_modules())[final[0].removeprefix("base_model.model.").split(".lora_")[0]]
    write(name, seed, {
        "base": {"weights": f"same as {base_name}-train.json initial weights", "folder": f"hf-{base_name}", "config": f"{base_name}-train.json config"},
        "adapter": {"folder": name, "r": 4, "alpha": 8, "targets": targets, **options},
        "inputs": {"ids": ids},
        "logits": logits,
        "mergedLogits": merged,
        "mergedWeights": {final[0].removeprefix("base_model.model.").split(".lora_")[0] + ".weight": module.weight},
        **trained,
    }, ["transformers", "peft"], note=(
        "inputs ids[:, :-1], targets ids[:, 1:]; logits, mergedLogits and mergedWeights are of the saved adapter; "
        "the five steps start from the saved adapter and train lora_A and lora_B only"
    ))


def main() -> None:
    at = "base_model.model.model.layers.{}.self_attn.{}.weight"
    record("peft-lora", "llama", ["q_proj", "v_proj"], SEED, [
        at.format(0, "q_proj.lora_A"), at.format(0, "q_proj.lora_B"), at.format(1, "v_proj.lora_B"),
    ])
    at = "base_model.model.transformer.h.{}.attn.c_attn.{}.weight"
    record("peft-lora-gpt2", "gpt2", ["c_attn"], SEED + 1, [
        at.format(0, "lora_A"), at.format(0, "lora_B"), at.format(1, "lora_B"),
    ])
    at = "base_model.model.model.layers.{}.{}.weight"
    record("peft-lora-patterns", "llama", ["q_proj", "v_proj", "down_proj"], SEED + 2, [
        at.format(0, "self_attn.q_proj.lora_A"), at.format(1, "self_attn.q_proj.lora_B"), at.format(1, "mlp.down_proj.lora_A"),
    ], rank_pattern={
        r"^model\.layers\.0\.self_attn\.q_proj": 2, "1.self_attn.(q|k)_proj": 3, r".*mlp\.down_.+": 1,
    }, alpha_pattern={"down_proj": 16, r"layers\.[1-9]\.self_attn\.\w+": 3}, use_rslora=True)
    at = "base_model.model.model.layers.{}.self_attn.{}.weight"
    pair = [at.format(0, "q_proj.lora_A"), at.format(1, "v_proj.lora_B")]
    record("peft-lora-dora", "llama", ["q_proj", "v_proj"], SEED + 3, [
        *pair, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    ], use_dora=True)
    record("peft-lora-dora-gpt2", "gpt2", ["c_attn"], SEED + 4, [
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
        "base_model.model.transformer.h.1.attn.c_attn.lora_magnitude_vector",
    ], use_dora=True)
    record("peft-lora-bias", "gpt2", ["c_attn"], SEED + 5, [
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
        "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight",  # not the bias: that of keys has no gradient
    ], lora_bias=True)
    record("peft-lora-embed", "llama", ["embed_tokens", "q_proj"], SEED + 6, [
        pair[0], "base_model.model.model.embed_tokens.lora_embedding_A", "base_model.model.model.embed_tokens.lora_embedding_B",
    ])
    record("peft-lora-tokens", "llama", ["q_proj", "v_proj"], SEED + 7, [
        *pair, "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
    ], trainable_token_indices=[2, 5, 11], exclude_modules=["layers.1.self_attn.q_proj"])


if __name__ == "__main__":
    main()
