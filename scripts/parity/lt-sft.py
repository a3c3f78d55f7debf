"""lt-sft: sparse differences by LT-SFT's rules (arXiv:2110.07560, section 3), transcribed to plain torch on the model
of llama-train: parameters themselves are trained, gradients masked, weights and optimiser set back by hand."""

from importlib import import_module

import torch
from record import next_token_loss, token_ids, write  # first: it moves this folder back in sys.path

SEED = 73
RATE, CLIP = 1e-2, 1.0


def phase(model, free, start, ids, steps, l1, mask=None):
    """Trains all free parameters from where they are, rate falling to 0; gradients outside the mask are 0."""
    total = sum(p.numel() for p in free.values())
    optimizer = torch.optim.AdamW(free.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (steps - step) / steps
        optimizer.zero_grad()
        loss = next_token_loss(model(ids[:, :-1].long()).logits, ids)
        if l1:
            loss = loss + l1 / total * sum((p - start[n]).abs().sum() for n, p in free.items())
        loss.backward()
        for n, p in free.items():
            if mask is not None:
                p.grad *= mask[n]
        torch.nn.utils.clip_grad_norm_(free.values(), CLIP)
        optimizer.step()


def case(source, ids, around: int, rounds: int, lengths: list[int], l1: float) -> dict:
    model = source.build()
    for p in model.parameters():
        p.requires_grad_(False)
    free = {n: p.requires_grad_(True) for n, p in model.named_parameters() if "norm" not in n}
    zero = {n: p.detach().clone() for n, p in free.items()}
    mask = {n: torch.zeros_like(p) for n, p in free.items()}
    counts, gaps = [], []
    for i in range(rounds):
        full, sparse = lengths[2 * i:2 * i + 2]
        begin = {n: p.detach().clone() for n, p in free.items()}
        phase(model, free, zero, ids, full, l1)
        moved = torch.cat([(p.detach() - zero[n]).abs()[mask[n] == 0] for n, p in free.items()]).sort(descending=True).values
        # The number next to the wanted one behind which the widest gap lies: rounding must not decide.
        window = moved[around - 40:around + 40]
        k = around - 40 + int((window[:-1] - window[1:]).argmax()) + 1 if i == 0 else counts[0]
        counts.append(k)
        gaps.append(float((moved[k - 1] - moved[k]) / moved[k]))
        for n, p in free.items():
            mask[n] = torch.maximum(mask[n], ((p.detach() - zero[n]).abs() >= moved[k - 1]).float() * (mask[n] == 0))
            p.data.copy_(begin[n])
        phase(model, free, zero, ids, sparse, l1, mask)
    print(f"  {rounds} rounds, K {counts}, gaps {gaps}")
    assert sum(int(m.sum()) for m in mask.values()) == sum(counts)
    delta = {}
    for n, p in free.items():
        index = mask[n].reshape(-1).nonzero().reshape(-1)
        assert ((p.detach() - zero[n]).reshape(-1)[mask[n].reshape(-1) == 0] == 0).all()
        delta[n] = {"index": index.int(), "value": (p.detach() - zero[n]).reshape(-1)[index]}
    with torch.no_grad():
        loss = next_token_loss(model(ids[:, :-1].long()).logits, ids)
    return {"params": sum(counts), "rounds": rounds, "lengths": lengths, "l1": l1, "delta": delta, "loss": float(loss)}


def main() -> None:
    source = import_module("llama-train")
    ids = token_ids(SEED, source.CONFIG["vocab_size"], 4, 11)
    write("lt-sft", SEED, {
        "base": "hf-llama", "ids": ids, "learningRate": RATE, "clipNorm": CLIP,
        "cases": [case(source, ids, 300, 1, [6, 6], 0.0), case(source, ids, 150, 2, [3, 3, 3, 3], 0.5)],
    }, ["transformers"], note="inputs ids[:, :-1], targets ids[:, 1:]; norms frozen; linear decay begins anew with each phase")


if __name__ == "__main__":
    main()
