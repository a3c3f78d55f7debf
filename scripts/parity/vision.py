"""ViT, CLIP and ResNet: outputs and gradients of tiny models in transformers.

    python scripts/parity/vision.py                  writes test/parity/vision.json
    python scripts/parity/vision.py check FOLDER     loads what the tests saved with PLASTICITY_KEEP_VISION=FOLDER
"""

import json
import sys
from pathlib import Path

import record
import torch
from by_rule import fnv1a, numbers, pattern
from transformers import (
    CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig,
    CLIPVisionModel, CLIPVisionModelWithProjection, ResNetConfig, ResNetForImageClassification, ResNetModel,
    ViTConfig, ViTForImageClassification, ViTModel,
)

SEED = 11
LABELS = dict(id2label={0: "ant", 1: "bee", 2: "cat"}, label2id={"ant": 0, "bee": 1, "cat": 2})
VIT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
)
TEXT = dict(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
    max_position_embeddings=12, projection_dim=10, bos_token_id=30, eos_token_id=31, pad_token_id=1,
)
SEEN = dict(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=10, patch_size=4,
    projection_dim=10,
)
CLIP = dict(text_config=TEXT, vision_config=SEEN, projection_dim=10)
NET = dict(embedding_size=6, hidden_sizes=[8, 12], depths=[2, 2])

CASES = [
    ("vit", ViTModel, ViTConfig(**VIT)),
    ("vit-classification", ViTForImageClassification, ViTConfig(**VIT, **LABELS)),
    ("vit-oblong", ViTForImageClassification, ViTConfig(
        **{**VIT, "image_size": [8, 12], "patch_size": [4, 2], "qkv_bias": False, "num_channels": 1}, **LABELS)),
    ("clip", CLIPModel, CLIPConfig(**CLIP)),
    ("clip-vision", CLIPVisionModel, CLIPVisionConfig(**SEEN)),
    ("clip-vision-projection", CLIPVisionModelWithProjection, CLIPVisionConfig(**SEEN)),
    ("clip-text", CLIPTextModel, CLIPTextConfig(**TEXT)),
    ("clip-text-projection", CLIPTextModelWithProjection, CLIPTextConfig(**TEXT)),
    # As in openai's checkpoints before the id was corrected: the largest id ends a text.
    ("clip-text-old", CLIPTextModelWithProjection, CLIPTextConfig(**{**TEXT, "eos_token_id": 2, "bos_token_id": 0})),
    ("resnet", ResNetModel, ResNetConfig(**NET, layer_type="basic")),
    ("resnet-basic", ResNetForImageClassification, ResNetConfig(**NET, layer_type="basic", **LABELS)),
    ("resnet-bottleneck", ResNetForImageClassification, ResNetConfig(**NET, layer_type="bottleneck", **LABELS)),
    ("resnet-v1", ResNetForImageClassification, ResNetConfig(
        **NET, layer_type="bottleneck", downsample_in_bottleneck=True, downsample_in_first_stage=True, **LABELS)),
]


def published(model, name: str) -> str:
    """The name in checkpoints: of ViT another than that of the module."""
    if isinstance(model, (CLIPTextModel, CLIPVisionModel)):
        return ("text_model." if isinstance(model, CLIPTextModel) else "vision_model.") + name
    if "ViT" not in type(model).__name__:
        return name
    name = name.replace("layers.", "encoder.layer.")
    for ours, theirs in [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"),
                         ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
                         ("mlp.fc2", "output.dense")]:
        name = name.replace(ours, theirs)
    return name


def by_rule(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(fnv1a(name) % 100)
    return numbers(name, tuple(tensor.shape)) + (1 if name.endswith("running_var") else 0)


def buffers(model):
    return [(n, b) for n, b in model.named_buffers() if "position_ids" not in n]


def fill(model) -> None:
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *buffers(model)]:
            p.copy_(by_rule(published(model, name), p))


def gradients(model, samples=3) -> dict:
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad if p.grad is not None else torch.zeros_like(p)
        flat = grad.reshape(-1)
        at = [(k * 7919 + 13) % flat.numel() for k in range(samples)]
        short = [flat.norm().item(), flat.abs().max().item(), *(flat[i].item() for i in at)]
        found[published(model, name)] = [float(f"{x:.6g}") for x in short]
    return found


def inputs_of(model, config) -> dict:
    given = {}
    if not isinstance(model, (CLIPTextModel, CLIPTextModelWithProjection)):
        seen = getattr(config, "vision_config", config)
        size = getattr(seen, "image_size", 20)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        given["pixels"] = 4 * numbers("pixels", (2, seen.num_channels, height, width))
    if isinstance(model, (CLIPModel, CLIPTextModel, CLIPTextModelWithProjection)):
        ids = 3 + record.token_ids(SEED, 26, 3, 9)
        mask = torch.ones(3, 9, dtype=torch.int32)
        for row, length in enumerate([9, 6, 3]):
            ids[row, length - 1] = 31
            ids[row, length:] = 1
            mask[row, length:] = 0
        ids[:, 0] = 30
        given |= {"ids": ids.int(), "mask": mask}
    return given


def outputs_of(model, given) -> dict:
    call = {}
    if "pixels" in given:
        call["pixel_values"] = given["pixels"]
    if "ids" in given:
        call |= {"input_ids": given["ids"].long(), "attention_mask": given["mask"].long()}
    out = model(**call)
    if isinstance(model, CLIPModel):
        return {"images": out.image_embeds, "texts": out.text_embeds, "logits": out.logits_per_image}
    if "logits" in out:
        return {"logits": out.logits}
    pooled = next(out[k] for k in ("image_embeds", "text_embeds", "pooler_output") if k in out)
    hidden = out.last_hidden_state
    if isinstance(model, ResNetModel):
        return {"hidden": hidden.flatten(2).transpose(1, 2).flatten(0, 1), "pooled": pooled.flatten(1)}
    return {"hidden": hidden[given["mask"].bool()] if "mask" in given else hidden.flatten(0, 1), "pooled": pooled}


def measured(model, given) -> dict:
    model.zero_grad()
    results = outputs_of(model, given)
    loss = sum((value * pattern(value.shape)).sum() for value in results.values())
    loss.backward()
    return {
        "outputs": {k: v.detach() for k, v in results.items()},
        "loss": loss.item(),
        "gradients": gradients(model),
    }


def run(make, config):
    torch.manual_seed(SEED)
    config._attn_implementation = "eager"
    model = make(config).eval()
    fill(model)
    given = inputs_of(model, config)
    written = json.loads(json.dumps(config.to_diff_dict(), default=str))
    written["architectures"] = [make.__name__]
    keys = [k for k in written if k not in ("transformers_version", "dtype")]
    found = {
        "config": {k: written[k] for k in sorted(keys)},
        "inputs": {k: v for k, v in given.items() if k != "pixels"},
        **({"pixels": list(given["pixels"].shape)} if "pixels" in given else {}),
        **measured(model, given),
    }
    if buffers(model):
        # Batch statistics in the forward pass; the running ones move once.
        found["training"] = measured(model.train(), given)
        found["training"]["state"] = {n: b.int() if b.ndim == 0 else b for n, b in buffers(model)}
    return found


def check(folder: Path) -> None:
    for name, make, config in CASES:
        model, info = make.from_pretrained(folder / name, output_loading_info=True)
        wrong = {k: v for k, v in info.items() if v}
        assert not wrong, (name, wrong)
        for key, tensor in [*model.named_parameters(), *buffers(model)]:
            assert torch.equal(tensor, by_rule(published(model, key), tensor)), (name, key)
        for key, value in config.to_diff_dict().items():
            if key in ("transformers_version", "architectures", "dtype", "text_config", "vision_config"):
                continue
            assert getattr(model.config, key) == value, (name, key, getattr(model.config, key), value)
        print(f"{name}: {len(list(model.parameters()))} tensors equal")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "check":
        check(Path(sys.argv[2]))
    else:
        record.write(
            "vision", SEED, {"cases": {name: run(make, config) for name, make, config in CASES}},
            modules=["transformers"],
            note="weights by scripts/parity/by_rule.py under the names of checkpoints, pixels too, times four; "
                 "hidden states of padding are left out",
        )
