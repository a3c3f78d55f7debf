"""vit-train: a small vision transformer of plain torch.nn parts, label smoothing, five Nesterov SGD steps."""

import torch
from record import SGD, normal, seed_weights, train, weights, write
from torch import nn

SEED = 7
CONFIG = dict(
    imageSize=8, patchSize=4, channels=3, dModel=8, nHeads=2, dFf=16, nLayers=2, nClasses=5,
    layerNormEps=1e-5, activation="gelu (erf)", normFirst=True, labelSmoothing=0.1,
)


class Vit(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, tokens = c["dModel"], (c["imageSize"] // c["patchSize"]) ** 2 + 1
        self.patch = nn.Conv2d(c["channels"], d, c["patchSize"], stride=c["patchSize"])
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.pos = nn.Parameter(torch.zeros(1, tokens, d))
        layer = nn.TransformerEncoderLayer(
            d, c["nHeads"], c["dFf"], dropout=0.0, activation="gelu", layer_norm_eps=c["layerNormEps"],
            batch_first=True, norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, c["nLayers"], enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d, eps=c["layerNormEps"])
        self.head = nn.Linear(d, c["nClasses"])

    def forward(self, x):  # (B, C, H, W) → (B, nClasses)
        x = self.patch(x).flatten(2).transpose(1, 2)  # (B, patches, d)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        return self.head(self.norm(self.encoder(x))[:, 0])


def main() -> None:
    model = Vit(CONFIG)
    seed_weights(model, SEED)
    g = torch.Generator().manual_seed(SEED)
    images, labels = normal(g, 3, 3, 8, 8, digits=2), torch.tensor([4, 0, 2], dtype=torch.int32)
    initial = weights(model)
    with torch.no_grad():
        logits = model(images)

    def loss_of(m):
        return nn.functional.cross_entropy(m(images.to(m.pos.dtype)), labels.long(), label_smoothing=CONFIG["labelSmoothing"])

    body = {
        "config": CONFIG,
        "weights": initial,
        "inputs": {"images": images, "labels": labels},
        "logits": logits,
        **train(model, loss_of, SGD,
                ["patch.weight", "cls", "encoder.layers.0.self_attn.in_proj_weight"],
                ["patch.weight", "pos", "encoder.layers.1.linear2.weight"]),
    }
    write("vit-train", SEED, body, note="in_proj_weight stacks q, k, v rows; the model and its forward are in the script")


if __name__ == "__main__":
    main()
