"""convbn-train: convolutions, batch norm, pooling and group norm of plain torch.nn, five AdamW steps."""

import torch
from record import ADAMW, normal, seed_weights, train, weights, write
from torch import nn

SEED = 8
SPEC = {**ADAMW, "lr": 1e-2}
LAYERS = [
    ("conv1", nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)),  # (3, 8, 8) → (4, 4, 4)
    ("bn1", nn.BatchNorm2d(4)),
    ("relu1", nn.ReLU()),
    ("depthwise", nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)),
    ("bn2", nn.BatchNorm2d(4, eps=1e-3, momentum=0.2)),
    ("relu2", nn.ReLU()),
    ("up", nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)),  # → (6, 8, 8)
    ("max", nn.MaxPool2d(2)),  # → (6, 4, 4)
    ("avg", nn.AvgPool2d(2)),  # → (6, 2, 2)
    ("gn", nn.GroupNorm(2, 6)),
    ("flat", nn.Flatten()),
    ("fc", nn.Linear(24, 5)),
]


def main() -> None:
    from collections import OrderedDict

    model = nn.Sequential(OrderedDict(LAYERS))
    seed_weights(model, SEED)
    g = torch.Generator().manual_seed(SEED)
    images, labels = normal(g, 4, 3, 8, 8, digits=2), torch.tensor([4, 0, 2, 1], dtype=torch.int32)
    initial = weights(model)
    with torch.no_grad():
        before = {n: b.clone() for n, b in model.named_buffers()}
        logits = model(images)
        for n, b in model.named_buffers():
            b.copy_(before[n])

    def loss_of(m):
        return nn.functional.cross_entropy(m(images.to(m.fc.weight.dtype)), labels.long())

    def after(m):
        buffers = {n: b.clone().int() if b.dtype == torch.int64 else b.clone() for n, b in m.named_buffers()}
        with torch.no_grad():
            out = m.eval()(images)
        m.train()
        return {"buffersAfter": buffers, "evalLogitsAfter": out}

    body = {
        "config": {"layers": [f"{n}: {layer}" for n, layer in LAYERS]},
        "weights": initial,
        "inputs": {"images": images, "labels": labels},
        "logits": logits,
        **train(model, loss_of, SPEC,
                ["conv1.weight", "depthwise.weight", "up.weight"], ["conv1.weight", "bn2.weight", "up.weight"], after=after),
    }
    write("convbn-train", SEED, body, note=(
        "logits is the training-mode output before any step; buffersAfter and evalLogitsAfter are taken after five "
        "updates, so after five training-mode forwards; running_var takes the unbiased variance"
    ))


if __name__ == "__main__":
    main()
