"""losses-layers: forward values and input gradients of torch.nn.functional layers and losses."""

import torch
import torch.nn.functional as F
from record import normal, write

SEED = 6
g = torch.Generator().manual_seed(SEED)
ROWS = []


def draw(*shape, std=1.0):
    return normal(g, *shape, std=std, digits=2)


def whole(values):
    return torch.tensor(values, dtype=torch.int64)


def add(op, inputs, options=None, fixed=None, note=None, call=None):
    """One call of F.<op>(*inputs, *fixed, **options): gradients of sum(output * gradOutput) for every input.

    `fixed` holds the tensors without gradient (class ids, targets).
    """
    options, fixed = options or {}, fixed or {}
    function = call or getattr(F, op)

    def evaluate(dtype, grad=None):
        leaves = {n: x.to(dtype, copy=True).requires_grad_() for n, x in inputs.items()}
        rest = [x.to(dtype) if x.is_floating_point() else x for x in fixed.values()]
        out = function(*leaves.values(), *rest, **options)
        grad = (draw(*out.shape) if out.ndim else torch.tensor(1.0)) if grad is None else grad
        out.backward(grad.to(dtype))
        return out.detach(), {n: x.grad for n, x in leaves.items()}, grad

    out, grads, grad = evaluate(torch.float32)
    exact, exact_grads, _ = evaluate(torch.float64, grad)
    worst = max((a - b).abs().max().item() for a, b in [(out, exact), *((grads[n], exact_grads[n]) for n in grads)])
    if worst > 2e-6:
        print(f"  {op} {options}: float32 vs float64 {worst:.1e}")
    row = {"op": op, "options": options, "inputs": {**inputs, **fixed}}
    if note:
        row["note"] = note
    ROWS.append({**row, "output": out, "gradOutput": grad, "gradients": grads})


def main() -> None:
    # layers over the last axis
    x = draw(2, 3, 6)
    add("layer_norm", {"input": x, "weight": draw(6), "bias": draw(6)}, {"eps": 1e-5},
        call=lambda x, w, b, eps: F.layer_norm(x, (6,), w, b, eps))
    add("layer_norm", {"input": x}, {"eps": 1e-3}, note="no scale, no shift", call=lambda x, eps: F.layer_norm(x, (6,), None, None, eps))
    add("rms_norm", {"input": x, "weight": draw(6)}, {"eps": 1e-6}, call=lambda x, w, eps: F.rms_norm(x, (6,), w, eps))
    add("group_norm", {"input": draw(2, 6, 3, 2), "weight": draw(6), "bias": draw(6)}, {"num_groups": 3, "eps": 1e-5},
        call=lambda x, w, b, num_groups, eps: F.group_norm(x, num_groups, w, b, eps))

    # pointwise
    x = torch.cat([draw(2, 8, std=2.0).flatten(), torch.tensor([0.0, 6.5, -6.5, 12.0, -12.0])])
    add("gelu", {"input": x}, {"approximate": "none"})
    add("gelu", {"input": x}, {"approximate": "tanh"})
    add("silu", {"input": x})
    add("softplus", {"input": x}, {"beta": 1.0, "threshold": 20.0})
    add("softmax", {"input": draw(2, 3, 5, std=3.0)}, {"dim": -1})
    add("softmax", {"input": draw(2, 3, 5, std=3.0)}, {"dim": 1})
    add("log_softmax", {"input": draw(2, 5, std=3.0)}, {"dim": -1})

    # losses
    logits, labels = draw(6, 5, std=2.0), whole([0, 4, -100, 2, -100, 1])
    for options in (
        {"reduction": "mean", "ignore_index": -100}, {"reduction": "sum", "ignore_index": -100},
        {"reduction": "none", "ignore_index": -100},
        {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.1},
        {"reduction": "sum", "ignore_index": -100, "label_smoothing": 0.1},
    ):
        add("cross_entropy", {"input": logits}, options, {"target": labels})
    add("cross_entropy", {"input": logits}, {"reduction": "mean"}, {"target": labels, "weight": torch.tensor([1.0, 0.5, 2.0, 1.5, 0.25])},
        note="class weights: the mean divides by the sum of the targets' weights", call=lambda x, t, w, reduction: F.cross_entropy(x, t, w, reduction=reduction))
    add("cross_entropy", {"input": draw(2, 4, 3)}, {"reduction": "mean"}, {"target": whole([[0, 3, 1], [2, 2, 0]])}, note="classes on axis 1")
    add("cross_entropy", {"input": logits}, {"reduction": "mean"}, {"target": F.softmax(draw(6, 5), -1)}, note="target is a distribution per row")
    a, b = draw(2, 5, std=2.0), draw(2, 5, std=2.0)
    gap = (a - b).abs()
    assert all((gap - kink).abs().min() > 1e-3 for kink in (0.0, 0.5, 1.0)), "a value sits on a kink"
    for reduction in ("mean", "sum"):
        add("mse_loss", {"input": a, "target": b}, {"reduction": reduction})
        add("l1_loss", {"input": a, "target": b}, {"reduction": reduction})
        add("huber_loss", {"input": a, "target": b}, {"reduction": reduction, "delta": 1.0})
    add("huber_loss", {"input": a, "target": b}, {"reduction": "mean", "delta": 0.5})
    add("smooth_l1_loss", {"input": a, "target": b}, {"reduction": "mean", "beta": 0.5})
    add("binary_cross_entropy_with_logits", {"input": draw(2, 5, std=3.0)}, {"reduction": "mean"}, {"target": torch.rand(2, 5, generator=g).round(decimals=2)})
    add("binary_cross_entropy_with_logits", {"input": draw(2, 5, std=3.0)}, {"reduction": "sum"},
        {"target": (torch.rand(2, 5, generator=g) > 0.5).float(), "pos_weight": torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])},
        call=lambda x, t, w, reduction: F.binary_cross_entropy_with_logits(x, t, pos_weight=w, reduction=reduction))
    log_q, p = F.log_softmax(draw(3, 4), -1), F.softmax(draw(3, 4), -1)
    add("kl_div", {"input": log_q}, {"reduction": "batchmean"}, {"target": p}, note="input log q, target p")
    add("kl_div", {"input": log_q}, {"reduction": "sum", "log_target": True}, {"target": F.log_softmax(draw(3, 4), -1)}, note="input log q, target log p")
    u, v = draw(3, 5), draw(3, 5)
    add("cosine_similarity", {"x1": u, "x2": v}, {"dim": -1, "eps": 1e-8})
    add("cosine_embedding_loss", {"input1": u, "input2": v}, {"margin": 0.2, "reduction": "mean"}, {"target": torch.tensor([1, -1, -1])})

    # convolutions
    add("conv1d", {"input": draw(2, 4, 7), "weight": draw(6, 2, 3), "bias": draw(6)}, {"stride": 2, "padding": 2, "dilation": 1, "groups": 2})
    add("conv1d", {"input": draw(1, 2, 8), "weight": draw(3, 2, 3)}, {"stride": 1, "padding": 0, "dilation": 2, "groups": 1})
    add("conv2d", {"input": draw(1, 2, 5, 4), "weight": draw(3, 2, 3, 2), "bias": draw(3)}, {"stride": (2, 1), "padding": (1, 0)})
    add("conv_transpose1d", {"input": draw(2, 4, 5), "weight": draw(4, 3, 4), "bias": draw(3)}, {"stride": 2, "padding": 1, "output_padding": 1})
    add("conv_transpose1d", {"input": draw(1, 4, 4), "weight": draw(4, 1, 3)}, {"stride": 1, "padding": 0, "groups": 2, "dilation": 2})

    # resampling and pooling
    image = draw(1, 2, 4, 3)
    add("interpolate", {"input": image}, {"size": (7, 6), "mode": "nearest"})
    add("interpolate", {"input": image}, {"scale_factor": 2.0, "mode": "nearest"})
    add("interpolate", {"input": image}, {"size": (7, 6), "mode": "bilinear", "align_corners": False})
    add("interpolate", {"input": image}, {"size": (2, 2), "mode": "bilinear", "align_corners": False}, note="shrinks, no antialiasing")
    grid = torch.cat([normal(g, 1, 3, 4, 2, std=0.62, digits=3).flatten(), torch.tensor([1.3, 0.2, -1.6, -1.6, 0.97, -0.97, 0.01, 0.99])]).reshape(1, 4, 4, 2)
    for pixel in ((grid + 1) * torch.tensor([3, 4]) / 2 - 0.5, (grid + 1) * torch.tensor([2, 3]) / 2):
        assert (pixel - pixel.round()).abs().min() > 1e-3, "a grid point sits on a pixel: its gradient is two-sided"
    add("grid_sample", {"input": image, "grid": grid}, {"mode": "bilinear", "padding_mode": "zeros", "align_corners": False})
    add("grid_sample", {"input": image, "grid": grid}, {"mode": "bilinear", "padding_mode": "zeros", "align_corners": True})
    square = normal(g, 1, 2, 5, 5)
    assert all(len(plane.unique()) == 25 for plane in square[0]), "equal values make the maximum ambiguous"
    add("max_pool2d", {"input": square}, {"kernel_size": 2, "stride": 2, "padding": 0})
    add("max_pool2d", {"input": square}, {"kernel_size": 3, "stride": 2, "padding": 1})
    add("avg_pool2d", {"input": square}, {"kernel_size": 2, "stride": 2, "padding": 0})
    add("avg_pool2d", {"input": square}, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": True})
    add("avg_pool2d", {"input": square}, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False})

    write("losses-layers", SEED, {"cases": ROWS}, note=(
        "op and options are torch.nn.functional's names; gradients are of sum(output * gradOutput); "
        "an input without an entry in gradients (class ids, fixed targets) takes none"
    ))


if __name__ == "__main__":
    main()
