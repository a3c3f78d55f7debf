"""attention: torch's scaled_dot_product_attention under seven kinds of mask, and transformers' rotate_half RoPE."""

import torch
import torch.nn.functional as F
from record import normal, write
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SEED = 4
B, H, T, D = 2, 2, 6, 4
g = torch.Generator().manual_seed(SEED)


def draw(*shape):
    return normal(g, *shape, digits=2)


def backward(f, inputs: dict, grad: torch.Tensor):
    leaves = {n: x.clone().requires_grad_() for n, x in inputs.items()}
    out = f(**leaves)
    out.backward(grad.to(out.dtype))
    return out.detach(), {n: x.grad for n, x in leaves.items()}


def case(name, inputs, grad, mask=None, note=None, **options):
    """One call: output, and the gradient of sum(output * gradOutput) for q, k and v."""
    out, grads = backward(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options), inputs, grad)
    exact_mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    exact, exact_grads = backward(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=exact_mask, **options),
        {n: x.double() for n, x in inputs.items()}, grad,
    )
    worst = max((a - b).abs().max().item() for a, b in [(out, exact), *((grads[n], exact_grads[n]) for n in grads)])
    print(f"  {name}: float32 vs float64 {worst:.1e}")
    row = {"options": {("isCausal" if k == "is_causal" else "enableGqa" if k == "enable_gqa" else k): v for k, v in options.items()}}
    if mask is not None:
        row["mask"] = mask
    if note:
        row["note"] = note
    return {**row, "output": out, "gradients": grads}


def main() -> None:
    full = {n: draw(B, H, T, D) for n in "qkv"}
    grad = draw(B, H, T, D)
    cases = {"causal": case("causal", full, grad, is_causal=True)}

    keep = torch.rand(B, 1, T, T, generator=g) < 0.5
    keep |= torch.eye(T, dtype=torch.bool)  # no row without a key
    cases["booleanMask"] = case("booleanMask", full, grad, keep, note="1 keeps, 0 hides; shape (B, 1, T, T)")

    hidden = keep.clone()
    hidden[0, 0, 2] = False
    cases["rowWithoutKeys"] = case("rowWithoutKeys", full, grad, hidden, note="row 2 of batch 0 sees no key: torch gives 0 there")

    cases["additiveMask"] = case("additiveMask", full, grad, draw(1, H, T, T), note="added to the scaled scores; shape (1, H, T, T)")
    cases["scale"] = case("scale", full, grad, scale=0.3, note="scale instead of 1/sqrt(D)")

    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    window = (j <= i) & (j > i - 3)
    cases["slidingWindow"] = case("slidingWindow", full, grad, window, note="window 3: key j with i - 3 < j <= i")

    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)])
    bias = slopes[:, None, None] * (j - i).clamp(max=0)
    alibi = torch.where(j <= i, bias, torch.tensor(-1e9))[None]
    cases["alibi"] = case("alibi", full, grad, alibi, note="slope 2^(-8(h+1)/H) times (j - i), future at -1e9")

    grouped = {"q": draw(B, 4, T, D), "k": full["k"], "v": full["v"]}
    grouped_grad = draw(B, 4, T, D)
    gqa = case("gqa", grouped, grouped_grad, is_causal=True, enable_gqa=True, note="4 query heads, 2 key heads: query head h reads key head h // 2")
    cases["gqa"] = {"inputs": {"q": grouped["q"]}, "gradOutput": grouped_grad, **gqa}

    cross = {"q": draw(B, H, 3, D), "k": full["k"], "v": full["v"]}
    cross_grad = draw(B, H, 3, D)
    cases["cross"] = {"inputs": {"q": cross["q"]}, "gradOutput": cross_grad, **case("cross", cross, cross_grad, note="3 queries, 6 keys, no mask")}

    position_ids = torch.tensor([[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 100]])
    head_dim, theta = 8, 10000.0
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    angles = position_ids[..., None].double() * inverse
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos().float(), angles.sin().float()
    rotary = {"q": draw(B, 2, T, head_dim), "k": draw(B, 1, T, head_dim)}
    rotary_grad = {"q": draw(B, 2, T, head_dim), "k": draw(B, 1, T, head_dim)}
    leaves = {n: x.clone().requires_grad_() for n, x in rotary.items()}
    q, k = apply_rotary_pos_emb(leaves["q"], leaves["k"], cos, sin)
    ((q * rotary_grad["q"]).sum() + (k * rotary_grad["k"]).sum()).backward()
    rope = {
        "headDim": head_dim, "theta": theta, "note": "rotate_half: pair i with i + headDim / 2; angles computed in float64",
        "positionIds": position_ids, "inputs": rotary, "gradOutput": rotary_grad,
        "output": {"q": q.detach(), "k": k.detach()}, "gradients": {n: x.grad for n, x in leaves.items()},
    }
    write("attention", SEED, {
        "inputs": full, "gradOutput": grad, "cases": cases, "rope": rope,
    }, ["transformers"], note="layout (B, H, T, D); a case reads the shared q, k, v and gradOutput unless it lists its own")


if __name__ == "__main__":
    main()
