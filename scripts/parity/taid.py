"""Records the distillation losses and TAID's schedule as the authors' release computes them.

    git clone https://github.com/SakanaAI/TAID
    python scripts/parity/taid.py <checkout> > test/parity/taid.json

Needs PyTorch. The release imports lightning for types alone and asks for a GPU: both are stood in for.
"""
import json
import sys
import types

import torch

lightning = types.ModuleType("lightning")
lightning.LightningModule = object
sys.modules["lightning"] = sys.modules["lightning.pytorch"] = lightning
for name in ("tensor", "zeros"):
    make = getattr(torch, name)
    setattr(torch, name, lambda *a, _make=make, device=None, **k: _make(*a, **k))
sys.path.insert(0, f"{sys.argv[1]}/src")
from distil_losses.fkl import forward_kl  # noqa: E402
from distil_losses.taid import TAID  # noqa: E402
from distil_losses.tvd import tvd  # noqa: E402

torch.manual_seed(7)
rows, vocab = 6, 9
student = (torch.randn(rows, vocab) * 2).requires_grad_()
teacher = torch.randn(rows, vocab) * 2
mask = torch.tensor([1.0, 1, 0, 1, 1, 0])


def value(loss):
    student.grad = None
    loss.backward()
    return {"loss": loss.item(), "gradient": student.grad.flatten().tolist()}


def taid_at(t):
    method = TAID()
    method.t = torch.tensor(t)
    return value(method.compute_loss(student[None], teacher[None], mask[None]))


losses = [3.1, 2.9, 3.0, 2.2, 2.0, 1.9, 1.95, 1.7, 1.2, 1.1]
schedules = {}
for name, options in {
    "paper": {},
    "fast": {"alpha": 0.2, "beta": 0.5},
    "linear": {"disable_adaptive": True},
    "short": {"t_start": 0.1, "t_end": 0.8, "alpha": 1.0, "beta": 0.9},
}.items():
    method = TAID(**options)
    ts = []
    for step, loss in enumerate(losses):
        method.update_t(torch.tensor(loss), step, len(losses))
        ts.append(method.t.item())
    schedules[name] = {"options": options, "t": ts}

print(
    json.dumps(
        {
            "made_with": {"torch": torch.__version__, "source": "SakanaAI/TAID, src/distil_losses"},
            "seed": 7,
            "shape": [rows, vocab],
            "student": student.detach().flatten().tolist(),
            "teacher": teacher.flatten().tolist(),
            "mask": mask.tolist(),
            "taid": {str(t): taid_at(t) for t in (0.0, 0.4, 0.75, 1.0)},
            "tvd": value(tvd(student[None], teacher[None], mask[None])),
            "fkl": value(forward_kl(student[None], teacher[None], mask[None])),
            "losses": losses,
            "schedules": schedules,
        }
    )
)
