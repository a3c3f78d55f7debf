"""lstm-train: embedding, two-layer nn.LSTM and linear, five AdamW steps; a one-layer nn.GRU's output."""

import torch
from record import ADAMW, next_token_loss, normal, seed_weights, token_ids, train, weights, write
from torch import nn

SEED = 9
CONFIG = dict(vocabSize=29, dEmbed=6, dHidden=8, nLayers=2)
SPEC = {**ADAMW, "lr": 1e-2}


class Lstm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c["vocabSize"], c["dEmbed"])
        self.lstm = nn.LSTM(c["dEmbed"], c["dHidden"], num_layers=c["nLayers"], batch_first=True)
        self.head = nn.Linear(c["dHidden"], c["vocabSize"])

    def forward(self, ids):  # (B, T) → (B, T, vocabSize)
        return self.head(self.lstm(self.embed(ids))[0])


def gru_record() -> dict:
    gru = nn.GRU(6, 5, batch_first=True)
    seed_weights(gru, SEED + 1)
    g = torch.Generator().manual_seed(SEED + 1)
    x, h0 = normal(g, 2, 7, 6, digits=2), normal(g, 1, 2, 5, digits=2)
    x.requires_grad_()
    out, h = gru(x, h0)
    grad = normal(g, *out.shape, digits=2)
    out.backward(grad)
    return {
        "config": {"dInput": 6, "dHidden": 5}, "weights": weights(gru), "inputs": {"x": x, "h0": h0},
        "output": out, "lastHidden": h, "gradOutput": grad,
        "gradients": {"x": x.grad, "weight_hh_l0": gru.weight_hh_l0.grad},
    }


def main() -> None:
    model = Lstm(CONFIG)
    seed_weights(model, SEED)
    ids = token_ids(SEED, CONFIG["vocabSize"], 2, 9)
    initial = weights(model)
    with torch.no_grad():
        logits = model(ids[:, :-1])
        _, (h, c) = model.lstm(model.embed(ids[:, :-1]))
    body = {
        "config": CONFIG,
        "weights": initial,
        "inputs": {"ids": ids},
        "logits": logits,
        "lastHidden": h, "lastCell": c,
        **train(model, lambda m: next_token_loss(m(ids[:, :-1]), ids), SPEC,
                ["embed.weight", "lstm.weight_hh_l0", "lstm.bias_ih_l1"],
                ["embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l1"]),
        "gru": gru_record(),
    }
    write("lstm-train", SEED, body, note=(
        "inputs ids[:, :-1], targets ids[:, 1:]; torch's gate order: LSTM i, f, g, o; GRU r, z, n"
    ))


if __name__ == "__main__":
    main()
