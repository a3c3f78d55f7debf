"""optim: parameter values after 1, 2 and 5 steps on given gradients, from torch.optim; schedules from transformers."""

import torch
from record import normal, write
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
)

SEED = 5
STEPS = 5
KEEP = (1, 2, 5)
g = torch.Generator().manual_seed(SEED)


class Lion(torch.optim.Optimizer):
    """Written by hand from Algorithm 2 of Chen et al., arXiv:2302.06675; torch has no Lion."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * p.grad)
                p -= group["lr"] * (update + group["weight_decay"] * p)
                m.copy_(beta2 * m + (1 - beta2) * p.grad)


def run(make, start: dict, gradients: list[dict]) -> dict:
    params = {n: x.clone().requires_grad_() for n, x in start.items()}
    optimizer = make(list(params.values()))
    after = {}
    for step, grads in enumerate(gradients, 1):
        for n, p in params.items():
            p.grad = grads[n].clone()
        optimizer.step()
        if step in KEEP:
            after[str(step)] = {n: p.detach().clone() for n, p in params.items()}
    return after


def muon_float32(params, **options):
    """torch.optim.Muon with its Newton-Schulz iteration in float32: torch itself runs those five products in bfloat16."""
    import torch.optim._muon as module

    exact = module._zeropower_via_newtonschulz

    def in_float32(grad, ns_coefficients, ns_steps, eps):
        a, b, c = ns_coefficients
        x = grad.T if grad.size(0) > grad.size(1) else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if grad.size(0) > grad.size(1) else x

    optimizer = torch.optim.Muon(params, **options)
    plain_step = optimizer.step

    def step():
        module._zeropower_via_newtonschulz = in_float32
        try:
            plain_step()
        finally:
            module._zeropower_via_newtonschulz = exact

    optimizer.step = step
    return optimizer


def schedules() -> dict:
    warmup, total, base = 4, 20, 1e-3

    def values(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        schedule = make(optimizer)
        out = []
        for _ in range(total):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return out

    return {
        "note": "entry i is the rate used by step i (from 0): 20 steps, 4 of warm-up unless the name says otherwise, base 1e-3",
        "base": base, "warmupSteps": warmup, "totalSteps": total,
        "linear": values(lambda o: get_linear_schedule_with_warmup(o, warmup, total)),
        "linearNoWarmup": values(lambda o: get_linear_schedule_with_warmup(o, 0, total)),
        "cosine": values(lambda o: get_cosine_schedule_with_warmup(o, warmup, total)),
        "cosineNoWarmup": values(lambda o: get_cosine_schedule_with_warmup(o, 0, total)),
        "constant": values(lambda o: get_constant_schedule_with_warmup(o, warmup)),
        "inverseSqrt": values(lambda o: get_inverse_sqrt_schedule(o, warmup)),
        "inverseSqrtTimescale10": values(lambda o: get_inverse_sqrt_schedule(o, warmup, timescale=10)),
    }


def main() -> None:
    shapes = {"matrix": (3, 4), "vector": (5,)}
    start = {n: normal(g, *s) for n, s in shapes.items()}
    gradients = [{n: normal(g, *s) for n, s in shapes.items()} for _ in range(STEPS)]
    wide = {"wide": (3, 5), "tall": (6, 4)}
    wide_start = {n: normal(g, *s) for n, s in wide.items()}
    wide_gradients = [{n: normal(g, *s) for n, s in wide.items()} for _ in range(STEPS)]

    o = torch.optim
    loop = dict(foreach=False)
    rows = []

    def add(name, source, options, make, matrices=False, note=None):
        after = run(make, wide_start if matrices else start, wide_gradients if matrices else gradients)
        rows.append({"optimizer": name, "source": source, "options": options, **({"note": note} if note else {}),
                     **({"problem": "matrices"} if matrices else {}), "after": after})

    t = "torch.optim."
    add("sgd", t + "SGD", {"lr": 0.1}, lambda p: o.SGD(p, lr=0.1, **loop))
    add("sgd", t + "SGD", {"lr": 0.1, "momentum": 0.9}, lambda p: o.SGD(p, lr=0.1, momentum=0.9, **loop))
    add("sgd", t + "SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weightDecay": 0.01},
        lambda p: o.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01, **loop))
    add("sgd", t + "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weightDecay": 0.01},
        lambda p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, **loop))
    add("adamw", t + "AdamW", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.01},
        lambda p: o.AdamW(p, lr=0.01, weight_decay=0.01, **loop))
    add("adamw", t + "AdamW", {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-6, "weightDecay": 0.1},
        lambda p: o.AdamW(p, lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, **loop))
    add("adam", t + "Adam", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weightDecay": 0.1},
        lambda p: o.Adam(p, lr=0.01, weight_decay=0.1, **loop), note="weight decay added to the gradient")
    add("adafactor", t + "Adafactor", {"lr": 0.01, "beta2Decay": -0.8, "eps": [None, 1e-3], "d": 1.0, "weightDecay": 0.0},
        lambda p: o.Adafactor(p, lr=0.01, **loop), note="eps1 None is float32's machine epsilon 1.1920929e-7")
    add("adafactor", t + "Adafactor", {"lr": 0.1, "beta2Decay": -0.5, "eps": [1e-30, 1e-3], "d": 1.5, "weightDecay": 0.05},
        lambda p: o.Adafactor(p, lr=0.1, beta2_decay=-0.5, eps=(1e-30, 1e-3), d=1.5, weight_decay=0.05, **loop))
    add("lion", "by hand, arXiv:2302.06675 Algorithm 2", {"lr": 0.01, "betas": [0.9, 0.99], "weightDecay": 0.1},
        lambda p: Lion(p, 0.01, (0.9, 0.99), 0.1), note="not a library's numbers: the ten published lines in torch, in this script")
    coefficients = [3.4445, -4.775, 2.0315]
    for adjust in ("original", "match_rms_adamw"):
        options = {"lr": 0.02, "weightDecay": 0.1, "momentum": 0.95, "nesterov": True, "nsCoefficients": coefficients,
                   "nsSteps": 5, "eps": 1e-7, "adjustLr": adjust}
        call = dict(lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn=adjust)
        add("muon", t + "Muon", options, lambda p: o.Muon(p, **call), True,
            note="Newton-Schulz in bfloat16, as torch does: compare to about 1e-2 of the update")
        add("muon", t + "Muon with its Newton-Schulz rewritten in float32", options, lambda p: muon_float32(p, **call), True,
            note="for a float32 implementation; everything but the five products is torch's own code")

    write("optim", SEED, {
        "start": start, "gradients": gradients,
        "matrices": {"start": wide_start, "gradients": wide_gradients},
        "optimizers": rows, "schedules": schedules(),
    }, ["transformers"], note="gradients[i] is given to step i + 1; a row with problem 'matrices' reads start and gradients there")


if __name__ == "__main__":
    main()
