"""sketchtune: the sketch of a small matrix by LeanQuant's steps (arXiv:2407.10032) in NumPy in double precision, k-means
by scikit-learn; and the gradient of the values by torch's autograd."""

import numpy as np
import torch
from record import write  # first: it moves this folder back in sys.path

from sklearn.cluster import KMeans

SEED = 88


def main() -> None:
    rng = np.random.default_rng(SEED)
    rows, columns, groups, bits, damp, power, tokens = 4, 64, 2, 3, 0.01, 3.0, 40
    k, width = 2**bits, columns // groups
    # Without tails, so that no mean of equal steps is left without a number: there rules differ.
    weight = np.round(rng.uniform(-1, 1, size=(rows, columns)), 3)
    mix = rng.normal(size=(columns, columns)) / 4 + np.diag(rng.uniform(0.2, 2, columns))
    inputs = np.round(rng.normal(size=(tokens, columns)) @ mix, 3)
    moments = inputs.T @ inputs
    whole = moments + damp * np.mean(np.diag(moments)) * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(whole)).T
    assert np.allclose(factor.T @ factor @ whole, np.eye(columns))
    importance = np.diag(factor) ** -power

    values = np.zeros((rows, groups, k))
    for i in range(rows):
        for g in range(groups):
            part = weight[i, g * width:(g + 1) * width]
            start = np.linspace(part.min(), part.max(), k)[:, None]
            means = KMeans(k, init=start, n_init=1, max_iter=1000, tol=0, algorithm="lloyd")
            means.fit(part[:, None], sample_weight=importance[g * width:(g + 1) * width])
            values[i, g] = np.sort(means.cluster_centers_[:, 0])
    values = values.astype(np.float32).astype(np.float64)

    rest = weight.copy()
    codes = np.zeros((rows, columns), int)
    kept = np.zeros_like(weight)
    for j in range(columns):
        own = values[:, j // width]
        codes[:, j] = np.argmin(np.abs(own - rest[:, j:j + 1]), axis=1)
        kept[:, j] = own[np.arange(rows), codes[:, j]]
        error = (rest[:, j] - kept[:, j]) / factor[j, j]
        rest[:, j + 1:] -= np.outer(error, factor[j, j + 1:])
    relative = np.linalg.norm((weight - kept) @ inputs.T) / np.linalg.norm(weight @ inputs.T)

    s = torch.tensor(values, requires_grad=True)
    index = torch.tensor(codes).reshape(rows, groups, width)
    x = torch.tensor(inputs)
    target = torch.tensor(np.round(rng.normal(size=(tokens, rows)), 3))
    y = x @ torch.gather(s, 2, index).reshape(rows, columns).T
    loss = ((y - target) ** 2).mean()
    loss.backward()

    f32 = lambda array: torch.from_numpy(np.asarray(array, np.float32))
    write("sketchtune", SEED, {
        "bits": bits, "groupsPerRow": groups, "damp": damp, "power": power,
        "weight": f32(weight), "inputs": f32(inputs), "target": f32(target),
        "values": f32(values), "codes": torch.from_numpy(codes.reshape(rows, groups, width)),
        "error": float(relative), "loss": loss.item(), "gradient": f32(s.grad),
    }, ["sklearn"])


main()
