"""Weights that both sides compute, so that a fixture need not hold them, and gradients in short.

A number of a tensor follows from the tensor's name and its place: h = fnv1a(name) + 2654435769 · place, mixed
by the finaliser of MurmurHash3, as u = (h >> 8) / 2^24 in [0, 1). Matrices take 0.8 u - 0.4, vectors
0.2 u - 0.1, and one more where the name ends in a norm's "weight". `test/support/by-rule.ts` does the same.
"""

import numpy as np
import torch


def fnv1a(name: str) -> int:
    h = 0x811C9DC5
    for c in name.encode("utf-16-le")[::2]:
        h = ((h ^ c) * 0x01000193) & 0xFFFFFFFF
    return h


def uniforms(name: str, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        h = np.uint32(fnv1a(name)) + np.uint32(2654435769) * np.arange(count, dtype=np.uint32)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)).astype(np.float64) / 2**24


def numbers(name: str, shape) -> torch.Tensor:
    u = uniforms(name, int(np.prod(shape)))
    values = 0.8 * u - 0.4 if len(shape) >= 2 else 0.2 * u - 0.1 + (1 if name.endswith("weight") else 0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill(model: torch.nn.Module) -> None:
    """Every parameter by the rule, under the first of its names."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(numbers(name, tuple(p.shape)))


def pattern(shape) -> torch.Tensor:
    """What outputs are multiplied by in the loss of a fixture."""
    return numbers("the loss", tuple(shape)) if len(shape) >= 2 else numbers("the loss", (1, *shape))[0]


def gradients(model: torch.nn.Module, samples=3) -> dict:
    """Of each tensor: its norm, its largest, and values at a few places, in one list."""
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad if p.grad is not None else torch.zeros_like(p)
        flat = grad.reshape(-1)
        at = [(k * 7919 + 13) % flat.numel() for k in range(samples)]
        found[name] = [flat.norm().item(), flat.abs().max().item(), *(flat[i].item() for i in at)]
        found[name] = [np.float32(x) for x in found[name]]
    return found
