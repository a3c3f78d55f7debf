"""How every parity fixture is written: encoding, header, seeded weights and the five-step training record.

Run a script with a Python that has torch, transformers, peft, safetensors and numpy:

    python scripts/parity/gpt2-train.py        writes test/parity/gpt2-train.json

Fixtures are facts of other people's code. Nothing in the product, its tests or CI needs Python.

Numbers are the shortest decimals that parse back to the same float32 (at most nine significant digits).
"""

import copy
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.dont_write_bytecode = True
HERE = str(Path(__file__).resolve().parent)
if sys.path[0] == HERE:  # behind the installed packages: safetensors.py here has a library's name
    sys.path.append(sys.path.pop(0))
if os.environ.get("PYTHONHASHSEED") != "0":  # peft writes target_modules in set order
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
PARITY = ROOT / "test" / "parity"

torch.set_num_threads(1)
torch.set_default_dtype(torch.float32)
torch.use_deterministic_algorithms(True)


class Tensor:
    """A tensor on its way into a fixture: printed on one line."""

    def __init__(self, value):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype == np.float64:
            raise TypeError("float64 tensor in a float32 fixture")
        integer = array.dtype.kind in "biu"
        self.dtype = "int32" if integer else "float32"
        self.array = array.astype(np.int32 if integer else np.float32)
        if not integer and not np.isfinite(self.array).all():
            raise ValueError("JSON has no infinity and no NaN: record finite numbers")

    def line(self) -> str:
        data = ",".join(number(x) for x in self.array.reshape(-1))
        shape = ",".join(str(n) for n in self.array.shape)
        return f'{{"shape":[{shape}],"dtype":"{self.dtype}","data":[{data}]}}'


def number(x) -> str:
    if isinstance(x, (np.integer, int)):
        return str(int(x))
    if isinstance(x, np.floating) and x.dtype == np.float32:
        text = str(x)
    else:
        text = repr(float(x))
    return text.removesuffix(".0").replace("e-0", "e-").replace("e+0", "e+")


def encode(value, indent=0) -> str:
    if isinstance(value, torch.Tensor):
        value = Tensor(value)
    if isinstance(value, Tensor):
        return value.line()
    pad = "  " * (indent + 1)
    if isinstance(value, dict):
        if not value:
            return "{}"
        rows = [f"{pad}{json.dumps(k)}: {encode(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * indent + "}"
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, (int, float, str, bool, type(None), np.number)) for v in value):
            return "[" + ", ".join(encode(v) for v in value) + "]"
        rows = [pad + encode(v, indent + 1) for v in value]
        return "[\n" + ",\n".join(rows) + "\n" + "  " * indent + "]"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return number(value)


def versions(*modules) -> dict:
    import importlib

    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", *modules):
        found[name] = importlib.import_module(name).__version__
    return found


def write(name: str, seed: int, body: dict, modules=(), note: str | None = None) -> None:
    made = {
        "script": f"scripts/parity/{Path(sys.argv[0]).name}",
        "seed": seed,
        "versions": versions(*modules),
        "compute": "float32, CPU, one thread",
    }
    if note:
        made["note"] = note
    path = PARITY / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(encode({"name": name, "made": made, **body}) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.1f} KiB")


def save_folder(model, name: str, generation_config=None) -> None:
    """A complete model folder as transformers writes it: config, generation config, safetensors."""
    if generation_config is not None:
        model.generation_config = generation_config
    model.save_pretrained(PARITY / name)
    for path in sorted((PARITY / name).iterdir()):
        path.chmod(0o644)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.1f} KiB")


# ---- seeded values -------------------------------------------------------------------------------


def normal(generator: torch.Generator, *shape, std=1.0, mean=0.0, digits=3) -> torch.Tensor:
    """Normal values rounded to a few decimals, so that fixtures stay small and exact to read."""
    draw = torch.randn(*shape, generator=generator, dtype=torch.float64) * std + mean
    return (torch.round(draw, decimals=digits) + 0.0).float()


def seed_weights(model: torch.nn.Module, seed: int, std=0.25, digits=3) -> None:
    """Replaces every floating parameter: matrices N(0, std²), norm scales about 1, other vectors about 0.

    Wider than a usual start on purpose: a start of 0.02 leaves softmax and gelu almost linear, and then a
    wrong scale or a wrong mask hides below the tolerance. Parameters listed in `model.keep_init` stay.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = getattr(model, "keep_init", ())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(name.endswith(k) for k in keep):
                p.copy_(torch.round(p.double(), decimals=digits).float())
            elif p.ndim >= 2:
                p.copy_(normal(generator, *p.shape, std=std, digits=digits))
            else:
                scale = name.endswith("weight")
                p.copy_(normal(generator, *p.shape, std=0.1, mean=1.0 if scale else 0.0, digits=digits))


def weights(model: torch.nn.Module, skip=()) -> dict:
    """State dict without the second name of a tied tensor."""
    seen, out = set(), {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen or name in skip:
            continue
        seen.add(id(value))
        out[name] = value.detach().clone()
    return out


# ---- five optimiser steps ------------------------------------------------------------------------

ADAMW = {"type": "AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01}
SGD = {"type": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weightDecay": 1e-3}


def make_optimizer(spec: dict, parameters):
    if spec["type"] == "AdamW":
        return torch.optim.AdamW(
            parameters, lr=spec["lr"], betas=tuple(spec["betas"]), eps=spec["eps"],
            weight_decay=spec["weightDecay"], foreach=False, fused=False,
        )
    return torch.optim.SGD(
        parameters, lr=spec["lr"], momentum=spec["momentum"], nesterov=spec["nesterov"],
        weight_decay=spec["weightDecay"], foreach=False, fused=False,
    )


def train(model, loss_of, spec, gradients=(), final=(), clip=None, after=None, steps=5) -> dict:
    """Losses before each of `steps` updates and one after; gradients of step 1 (before clipping).

    `after(model)` returns what else to record once the five updates are done, before the last loss.
    `losses64` is the same run in float64 from the same float32 weights: what exact arithmetic would give.
    """
    losses64 = _run(copy.deepcopy(model).double(), loss_of, spec, (), (), clip, None, steps)["losses"]
    record = _run(model, loss_of, spec, gradients, final, clip, after, steps)
    record["losses"] = [np.float32(x) for x in record["losses"]]
    worst = max(abs(float(a) - b) / abs(b) for a, b in zip(record["losses"], losses64))
    print(f"  losses {[round(float(x), 6) for x in record['losses']]}  float32 vs float64 {worst:.1e}")
    return {"optimizer": {**spec, **({"clipGlobalNorm": clip} if clip else {})},
            "losses": record["losses"], "losses64": losses64, **record["rest"]}


def _run(model, loss_of, spec, gradients, final, clip, after, steps):
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(spec, trainable.values())
    losses, rest, norms = [], {}, []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        losses.append(loss.item())
        if step == 0 and gradients:
            rest["gradients"] = {n: trainable[n].grad.clone() for n in gradients}
        if clip:
            norms.append(torch.nn.utils.clip_grad_norm_(trainable.values(), clip).item())
        optimizer.step()
    if after:
        rest.update(after(model))
    with torch.no_grad():
        losses.append(loss_of(model).item())
    if clip:
        rest["gradientNorms"] = [np.float32(x) for x in norms]
    if final:
        rest["finalWeights"] = {n: trainable[n].detach().clone() for n in final}
    return {"losses": losses, "rest": rest}


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits (B, T, V) for ids[:, 1:], ids (B, T+1)."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long())


def token_ids(seed: int, vocab: int, *shape) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed)).int()
