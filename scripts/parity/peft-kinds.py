"""IA3, VeRA, LoHa, LoKr, AdaLoRA, OFT and BOFT: folders written by peft, with what it computes of them.

    python scripts/parity/peft-kinds.py                writes test/parity/peft-kinds/ and test/parity/peft-kinds.json
    python scripts/parity/peft-kinds.py ours FOLDER    reads the folders that the tests saved with
                                                       PLASTICITY_KEEP_PEFT=FOLDER, and writes test/parity/peft-ours.json:
                                                       the hash of each file and the logits that peft gives with it

Decoders are those of llama-train and gpt2-train; the network of convolutions is a ResNet filled by by_rule.py.
"""

import hashlib
import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import record
import torch
from by_rule import gradients, numbers, pattern
from record import ADAMW, PARITY, next_token_loss, normal, token_ids, train, write
from transformers import ResNetConfig, ResNetForImageClassification
from vision import fill

import peft.tuners.boft.layer as boft_layer
import peft.tuners.loha.layer as loha_layer
from peft import (
    AdaLoraConfig, BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model,
)

SEED = 21
SPEC = {**ADAMW, "lr": 1e-2}
NET = dict(
    num_channels=2, embedding_size=4, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic",
    id2label={0: "low", 1: "mid", 2: "high"}, label2id={"low": 0, "mid": 1, "high": 2},
)


class BlockDiagonal:
    """What BOFT's CUDA extension computes, in plain torch: without it peft sets the number of factors to 1."""

    def forward(self, blocks):
        return [torch.stack([torch.block_diag(*one) for one in blocks])]

    def backward(self, gradient, blocks):
        n, count, size, _ = blocks.shape
        parts = gradient.view(n, count, size, count, size)
        return [torch.stack([parts[:, i, :, i, :] for i in range(count)], 1)]


boft_layer._FBD_CUDA = BlockDiagonal()


def core_weight(t1, w1a, w1b, t2, w2a, w2b, scale):
    """LoHa's weight of an effective convolution as plain operations: peft's own backward pass of it takes the core of
    the other factor for the gradients of hada_w1_a and hada_w2_a, and is not the derivative of its forward pass."""
    return torch.einsum("ijkl,jr,ip->prkl", t1, w1b, w1a) * torch.einsum("ijkl,jr,ip->prkl", t2, w2b, w2a) * scale


def decoder(name: str):
    base = import_module(f"{name}-train").build()
    base.name_or_path = base.config._name_or_path = f"hf-{name}"
    return base


def network():
    torch.manual_seed(SEED)
    base = ResNetForImageClassification(ResNetConfig(**NET)).eval()
    fill(base)
    return base


def pixels() -> torch.Tensor:
    return numbers("pixels", (2, 2, 24, 24)) * 2


def adapter_values(model: torch.nn.Module, seed: int) -> None:
    """Every trained number random: at first the adapters do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            if "lora_magnitude" in name:
                p.mul_(1 + normal(generator, *p.shape, std=0.2))
            elif "ia3_l" in name or "boft_s" in name:
                p.copy_(1 + normal(generator, *p.shape, std=0.2))
            else:
                p.copy_(normal(generator, *p.shape, std=0.2))


def plain(name: str) -> str:
    return name.replace(".default", "")


def file_name(name: str) -> str:
    return plain(name).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


LLAMA = ["q_proj", "v_proj", "down_proj"]
DECODERS = {
    "ia3": ("llama", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3-gpt2": ("gpt2", IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)),
    "vera": ("llama", VeraConfig(r=6, target_modules=LLAMA, projection_prng_key=5, d_initial=0.3)),
    "vera-seed": ("gpt2", VeraConfig(r=5, target_modules=["c_attn"], save_projection=False, projection_prng_key=3, fan_in_fan_out=True)),
    "loha": ("llama", LoHaConfig(r=2, alpha=3, target_modules=LLAMA, rank_pattern={"v_proj": 4}, alpha_pattern={"down_proj": 5})),
    "lokr": ("llama", LoKrConfig(r=2, alpha=3, target_modules=LLAMA, rank_pattern={"v_proj": 1})),
    "lokr-both": ("llama", LoKrConfig(
        r=1, alpha=2, target_modules=LLAMA, decompose_both=True, decompose_factor=4, exclude_modules=["layers.1.mlp.down_proj"],
    )),
    "adalora": ("llama", AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=6, lora_alpha=16, target_modules=LLAMA)),
    "adalora-gpt2": ("gpt2", AdaLoraConfig(init_r=3, target_r=3, total_step=9, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)),
    "oft": ("llama", OFTConfig(oft_block_size=4, target_modules=LLAMA)),
    "oft-cayley": ("llama", OFTConfig(
        r=3, oft_block_size=0, target_modules=LLAMA, use_cayley_neumann=False, block_share=True,
    )),
    "oft-coft": ("llama", OFTConfig(oft_block_size=8, target_modules=LLAMA, coft=True, eps=0.4, num_cayley_neumann_terms=7)),
    "boft": ("llama", BOFTConfig(boft_block_size=4, target_modules=LLAMA)),
    "boft-butterfly": ("llama", BOFTConfig(boft_block_size=0, boft_block_num=4, boft_n_butterfly_factor=3, target_modules=LLAMA)),
}
CONV = ["convolution"]
NETWORKS = {
    "conv-lora": LoraConfig(r=2, lora_alpha=4, target_modules=CONV),
    "conv-dora": LoraConfig(r=2, lora_alpha=4, target_modules=CONV, use_dora=True),
    "conv-ia3": IA3Config(target_modules=[*CONV, "layer.1.convolution"], feedforward_modules=["layer.1.convolution"]),
    "conv-loha": LoHaConfig(r=2, target_modules=CONV),
    "conv-loha-core": LoHaConfig(r=2, target_modules=CONV, use_effective_conv2d=True),
    "conv-lokr": LoKrConfig(r=1, target_modules=CONV),
    "conv-lokr-core": LoKrConfig(r=1, target_modules=CONV, use_effective_conv2d=True),
    "conv-adalora": AdaLoraConfig(init_r=2, target_r=1, total_step=9, target_modules=CONV),
}


def loss_of(ids, with_penalty):
    """AdaLoRA adds its penalty to a loss that the model computes itself."""
    if with_penalty:
        return lambda m: m(input_ids=ids.long(), labels=ids.long()).loss
    return lambda m: next_token_loss(m(ids[:, :-1].long()).logits, ids)


def save(model, name: str) -> Path:
    folder = PARITY / "peft-kinds" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
    return folder


def merged_weights(model) -> dict:
    """Weight and bias of the second adapted layer with the adapter written in."""
    path = [n for n, m in model.base_model.model.named_modules() if hasattr(m, "base_layer")][1]
    merged = dict(model.merge_and_unload().named_modules())
    return {f"{path}.{k}": v for k, v in merged[path].named_parameters()}


def allocate(model, ids) -> None:
    """A few steps in which ranks are chosen, so that the folder holds fewer."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(1, 7):
        optimizer.zero_grad()
        model(input_ids=ids.long(), labels=ids.long()).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)


def record_decoder(name: str, base_name: str, config, seed: int) -> dict:
    config.task_type = "CAUSAL_LM"
    ids = token_ids(seed, import_module(f"{base_name}-train").CONFIG["vocab_size"], 1, 7)
    inputs = ids[:, :-1].long()
    model = get_peft_model(decoder(base_name), config).eval()
    adapter_values(model, seed)
    if name == "adalora":
        allocate(model, ids)
    with torch.no_grad():
        logits = model(inputs).logits  # with coft this pulls the numbers back, as every pass does
    folder = save(model, name)
    with torch.no_grad():
        again = PeftModel.from_pretrained(decoder(base_name), folder).eval()
        assert torch.allclose(again(inputs).logits, logits, atol=1e-5), name
        difference = (logits - decoder(base_name)(inputs).logits).abs().max()
        merged = merged_weights(again)
    print(f"{name}: changes logits by {difference:.3f}")
    body = {"base": f"hf-{base_name}", "inputs": {"ids": ids}, "logits": logits, "mergedWeights": merged}
    if name == "adalora":  # trains the whole ranks on, which the folder does not hold
        return body
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    final = [trainable[0], trainable[-1], trainable[len(trainable) // 2]]
    trained = train(model, loss_of(ids, name.startswith("adalora")), SPEC, (), list(dict.fromkeys(final)))
    trained["finalWeights"] = {plain(n): v for n, v in trained["finalWeights"].items()}
    return {**body, "losses": trained["losses"], "finalWeights": trained["finalWeights"]}


def record_network(name: str, config, seed: int) -> dict:
    model = get_peft_model(network(), config).eval()
    adapter_values(model, seed)
    folder = save(model, name)
    with torch.no_grad():
        logits = model(pixel_values=pixels()).logits
        again = PeftModel.from_pretrained(network(), folder).eval()
        difference = (logits - network()(pixel_values=pixels()).logits).abs().max()
        assert torch.allclose(again(pixel_values=pixels()).logits, logits, atol=1e-5), name
        merged = again.merge_and_unload()(pixel_values=pixels()).logits
    print(f"{name}: changes logits by {difference:.3f}, merge by {(merged - logits).abs().max():.1e}")
    own = loha_layer.make_weight_cp
    loha_layer.make_weight_cp = core_weight
    given = model(pixel_values=pixels()).logits
    loha_layer.make_weight_cp = own
    assert torch.allclose(given, logits, atol=1e-5), name
    (given * pattern(given.shape)).sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    return {"logits": logits, "gradients": {file_name(n): g for n, g in gradients(model).items() if n in trained}}


def schedule() -> dict:
    """AdaLoRA's allocator over ten steps, weights and gradients by by_rule.py under `<step>.<name>`, `… gradient`."""
    options = dict(init_r=4, target_r=1, tinit=2, tfinal=2, deltaT=2, beta1=0.8, beta2=0.7, total_step=10)
    config = AdaLoraConfig(**options, target_modules=["q_proj", "v_proj"], layers_to_transform=[0])
    model = get_peft_model(decoder("llama"), config)
    trained = {plain(n): p for n, p in model.named_parameters() if p.requires_grad}
    steps = []
    for step in range(1, 11):
        for name, p in trained.items():
            p.data.copy_(numbers(f"{step}.{name}", tuple(p.shape)))
            p.grad = numbers(f"{step}.{name} gradient", tuple(p.shape))
        budget, chosen = model.base_model.rankallocator.budget_schedule(step)
        model.base_model.update_and_allocate(step)
        steps.append({
            "budget": budget, "chosen": bool(chosen),
            "values": {n: p.detach().clone() for n, p in trained.items() if "lora_E" in n},
        })
    return {"options": options, "shapes": {n: list(p.shape) for n, p in trained.items()}, "steps": steps}


def random_numbers() -> dict:
    """What torch draws: VeRA's projections come from such a generator."""
    generator = torch.Generator().manual_seed(1234)
    first = torch.empty(700).uniform_(-0.25, 0.25, generator=generator)
    second = torch.empty(8).uniform_(-1.5, 1.5, generator=generator)
    return {"seed": 1234, "first": first[:8].clone(), "last": first[-8:].clone(), "second": second}


def ours(folder: Path) -> None:
    cases = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        about = json.loads((path / "about.json").read_text())
        base = decoder(about["base"].removeprefix("hf-"))
        model = PeftModel.from_pretrained(base, path).eval()
        ids = torch.tensor(about["ids"]).reshape(about["shape"])
        with torch.no_grad():
            logits = model(ids).logits
        own = torch.tensor(about["logits"]).reshape(logits.shape)
        bare = (logits - decoder(about["base"].removeprefix("hf-"))(ids).logits).abs().max()
        print(f"{path.name}: logits differ by {(logits - own).abs().max():.1e}, from the base by {bare:.2f}")
        cases[path.name] = {
            "sha256": hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest(),
            "configSha256": hashlib.sha256((path / "adapter_config.json").read_bytes()).hexdigest(),
            "logits": logits,
        }
    write("peft-ours", SEED, {"cases": cases}, ["transformers", "peft"], note=(
        "hashes of files that the tests wrote and peft read, and the logits that it gave with them"
    ))


def main() -> None:
    if sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]))
        return
    decoders = {n: record_decoder(n, base, config, SEED + i) for i, (n, (base, config)) in enumerate(DECODERS.items())}
    networks = {n: record_network(n, config, SEED + i) for i, (n, config) in enumerate(NETWORKS.items())}
    written = ResNetConfig(**NET).to_diff_dict()
    written["architectures"] = ["ResNetForImageClassification"]
    keep = {k: written[k] for k in sorted(written) if k not in ("transformers_version", "dtype")}
    write("peft-kinds", SEED, {
        "decoders": decoders, "network": json.loads(json.dumps(keep, default=str)), "networks": networks,
        "schedule": schedule(), "random": random_numbers(),
    }, ["transformers", "peft"], note=(
        "inputs ids[:, :-1], targets ids[:, 1:]; five AdamW steps from the saved adapter; pixels and the network by by_rule.py"
    ))


if __name__ == "__main__":
    main()
