"""hydra: outputs, merged weights and subspace shares of Hydra's equations (arXiv:2309.06922), transcribed to NumPy
in double precision; the layers of the model of llama-train have no bias, so a layer with one stands beside it."""

import numpy as np
import torch
from record import write  # first: it moves this folder back in sys.path

SEED = 27


def branch(u, down, down_bias, up, up_bias):
    return (u @ down.T + down_bias) @ up.T + up_bias


def share(delta, weight, k):
    left, _, right = np.linalg.svd(weight)
    return np.linalg.norm(left[:, :k].T @ delta @ right[:k].T) / np.linalg.norm(delta)


def main() -> None:
    rng = np.random.default_rng(SEED)
    draw = lambda *shape: np.round(rng.normal(size=shape) * 0.5, 3)
    n, inputs, outputs, rank, seq_rank, scale, k = 5, 6, 4, 3, 2, 0.7, 2
    x = draw(n, inputs)
    weight, bias = draw(outputs, inputs), draw(outputs)
    par = {"down": draw(rank, inputs), "downBias": draw(rank), "up": draw(outputs, rank), "upBias": draw(outputs)}
    seq = {"down": draw(seq_rank, outputs), "downBias": draw(seq_rank), "up": draw(outputs, seq_rank), "upBias": draw(outputs)}

    frozen = x @ weight.T + bias
    y = frozen + scale * branch(x, *par.values()) + scale * branch(frozen, *seq.values())
    product = seq["up"] @ seq["down"]
    merged_weight = weight + scale * (par["up"] @ par["down"] + product @ weight)
    merged_bias = bias + scale * (
        product @ bias + par["up"] @ par["downBias"] + par["upBias"] + seq["up"] @ seq["downBias"] + seq["upBias"]
    )
    assert np.allclose(x @ merged_weight.T + merged_bias, y)
    f32 = lambda array: torch.from_numpy(np.asarray(array, np.float32))
    each = lambda record: {name: f32(value) for name, value in record.items()}
    write("hydra", SEED, {
        "rank": rank, "seqRank": seq_rank, "scale": scale, "k": k,
        "x": f32(x), "weight": f32(weight), "bias": f32(bias), "par": each(par), "seq": each(seq),
        "y": f32(y), "mergedWeight": f32(merged_weight), "mergedBias": f32(merged_bias),
        "parallel": float(share(par["up"] @ par["down"], weight, k)),
        "sequential": float(share(product @ weight, weight, k)),
    })


if __name__ == "__main__":
    main()
