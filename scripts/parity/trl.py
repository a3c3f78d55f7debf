"""Losses and gradients of TRL's trainers: test/parity/trl.json.

    python scripts/parity/trl.py [a folder with the unpacked wheel of trl 0.11.4, for PPO]

The model is a table: the logits of the next token are the row of the last one, so that a whole trainer's
loss (shifts, masks, mismatched pairs) runs on a few numbers. `student` is trained, `reference` frozen. TRL's
own methods are called on an object that has only the settings they read. PPO was in TRL up to 0.11 in this
form; its three functions are taken from that wheel's source as they stand.
"""

import ast
import sys
import types
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import record
import torch
import torch.nn.functional as F
import trl.trainer.dpo_trainer as dpo_module
import trl.trainer.kto_trainer as kto_module
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

SEED, V = 20260701, 9
generator = torch.Generator().manual_seed(SEED)
student = record.normal(generator, V, V, std=1.2)
reference = record.normal(generator, V, V, std=1.2)

CHOSEN = [([1, 2], [3, 4, 0]), ([5], [6, 7]), ([2, 8, 3], [1, 0])]
REJECTED = [([1, 2], [4, 0]), ([5], [2, 2, 8, 0]), ([2, 8, 3], [7])]
LABELS = [True, False, True, False, False]
JUDGED = [([1, 2], [3, 4, 0]), ([5], [6, 7]), ([2, 8, 3], [1, 0]), ([4, 4], [5, 6, 1]), ([7], [8, 0])]


def tensors(sequences):
    """input_ids, attention_mask and completion_mask, padded at the end."""
    longest = max(len(p) + len(c) for p, c in sequences)
    rows = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for prompt, completion in sequences:
        pad = longest - len(prompt) - len(completion)
        rows["input_ids"].append(prompt + completion + [0] * pad)
        rows["attention_mask"].append([1] * (longest - pad) + [0] * pad)
        rows["completion_mask"].append([0] * len(prompt) + [1] * len(completion) + [0] * pad)
    return {name: torch.tensor(value) for name, value in rows.items()}


class Table:
    """What TRL's losses ask of a model with a fused head."""

    training = True

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, input_ids, labels=None, **_):
        logits = self.weight[input_ids]
        if labels is None:
            return SimpleNamespace(logits=logits)
        targets = labels[:, 1:]
        logps = logits[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=torch.where(targets == -100, zeros, logps), entropy=zeros, mean_logits=zeros,
            is_top1=zeros.bool(),
        )


class Accelerator:
    device = torch.device("cpu")
    num_processes = 1

    def gather_for_metrics(self, x):
        return x

    gather = gather_for_metrics

    def reduce(self, x, reduction="sum"):
        return x

    def unwrap_model(self, model):
        return model


@contextmanager
def nothing(*_, **__):
    yield


for module in (dpo_module, kto_module):
    module.disable_gradient_checkpointing = nothing
    module.is_peft_model = lambda _: False


def base(**settings):
    return SimpleNamespace(
        accelerator=Accelerator(), _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1, precompute_ref_logps=False,
        ref_model=Table(reference), args=SimpleNamespace(
            gradient_checkpointing_kwargs=None, center_rewards_coefficient=None, delta=None,
            use_bias_correction_kl=False),
        model=SimpleNamespace(training=True), **settings)


def case(options, loss_of, **more):
    """A loss of the student's table and its gradient."""
    weight = student.clone().requires_grad_()
    loss = loss_of(weight)
    loss.backward()
    return {"options": options, "loss": loss.detach(), "gradient": weight.grad.clone(), **more}


def dpo(options, types_, weights=None, **more):
    own = base(ld_alpha=None, f_divergence_type="reverse_kl", loss_types=types_, use_weighting=False,
               loss_weights=weights or [1.0] * len(types_), label_smoothing=0.0, **more)
    return case(options, lambda w: DPOTrainer._compute_loss(own, Table(w), tensors(CHOSEN + REJECTED), False))


def robust(options, beta, smoothing):
    own = base(ld_alpha=None, f_divergence_type="reverse_kl", loss_types=["robust"], use_weighting=False,
               loss_weights=[1.0], label_smoothing=smoothing, beta=beta)
    return case(options, lambda w: DPOTrainer._compute_loss(own, Table(w), tensors(CHOSEN + REJECTED), False))


def kto(options, beta, good, bad):
    own = base(calculate_KL=True, beta=beta, desirable_weight=good, undesirable_weight=bad, loss_type="kto")
    own._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, own)
    completions = [c for _, c in JUDGED]
    others = [completions[-1], *completions[:-1]]
    kl = {f"KL_{k}": v for k, v in tensors([(p, o) for (p, _), o in zip(JUDGED, others)]).items()}
    batch = {**tensors(JUDGED), **kl, "label": torch.tensor(LABELS)}
    made = case(options, lambda w: KTOTrainer._compute_loss(own, Table(w), batch, False))
    return {**made, "kl": own._metrics["train"]["kl"][-1]}


def mean_logps(trainer, weight, sequences):
    batch = tensors(sequences)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return trainer.get_batch_logps(weight[batch["input_ids"]], labels, average_log_prob=True)


def orpo(options, beta):
    own = SimpleNamespace(beta=beta, accelerator=Accelerator())

    def loss(w):
        chosen, rejected = mean_logps(ORPOTrainer, w, CHOSEN), mean_logps(ORPOTrainer, w, REJECTED)
        batch = tensors(CHOSEN)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        nll = F.cross_entropy(w[batch["input_ids"]][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return nll - ORPOTrainer.odds_ratio_loss(own, chosen, rejected)[0].mean()

    return case(options, loss)


def simpo(options, beta, gamma, smoothing):
    own = SimpleNamespace(alpha=0.0, beta=beta, simpo_gamma=gamma, label_smoothing=smoothing,
                          loss_type="simpo", accelerator=Accelerator())
    return case(options, lambda w: CPOTrainer.cpo_loss(
        own, mean_logps(CPOTrainer, w, CHOSEN), mean_logps(CPOTrainer, w, REJECTED))[0].mean())


def jsd(options, beta, temperature):
    batch = tensors(JUDGED)
    ids = batch["input_ids"]
    labels = ids.masked_fill(batch["completion_mask"] == 0, -100)[:, 1:]
    return case(options, lambda w: GKDTrainer.generalized_jsd_loss(
        w[ids][:, :-1], reference[ids][:, :-1], labels, beta=beta, temperature=temperature))


def reward(options, center, margin):
    rewards = record.normal(generator, 6, 1, std=1.5).requires_grad_()
    own = base()
    own.args.center_rewards_coefficient = center
    inputs = {"attention_mask": torch.ones(6, 2)}
    if margin:
        inputs["margin"] = torch.full((3,), margin)
    model = lambda **_: SimpleNamespace(logits=rewards)
    own.accelerator.gather = lambda x: x
    loss = RewardTrainer.compute_loss(own, model, inputs)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    return {"options": options, "rewards": rewards.detach().flatten(), "loss": loss.detach(),
            "gradient": rewards.grad.flatten().clone()}


ADVANTAGES = torch.tensor([0.7, -1.1, 0.4, -0.2, 1.3])
OLD_NOISE = record.normal(generator, 5, 3, std=0.3)


def grpo(options, loss_type, beta, low=0.2, high=0.2, max_length=4, level="token"):
    """Prompts and completions apart, as the trainer has them: padded left and right."""
    longest = [max(len(s[i]) for s in JUDGED) for i in (0, 1)]
    left = torch.tensor([[0] * (longest[0] - len(p)) + p for p, _ in JUDGED])
    right = torch.tensor([c + [0] * (longest[1] - len(c)) for _, c in JUDGED])
    mask = torch.tensor([[1] * len(c) + [0] * (longest[1] - len(c)) for _, c in JUDGED])
    ids = torch.cat([left, right], 1)

    def logps(weight):
        logits = weight[ids][:, -longest[1] - 1 : -1]
        return logits.log_softmax(-1).gather(2, right.unsqueeze(2)).squeeze(2)

    own = base(top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level,
               beta=beta, loss_type=loss_type, epsilon_low=low, epsilon_high=high, use_vllm=False,
               current_gradient_accumulation_steps=1, max_completion_length=max_length,
               _entropy_bonus_enabled=False)
    own.args.steps_per_generation = 1
    own._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        logps(model.weight), torch.zeros_like(right, dtype=torch.float32), None)
    old = logps(student).detach() + OLD_NOISE
    inputs = {"prompt_ids": left, "prompt_mask": torch.ones_like(left), "completion_ids": right,
              "completion_mask": mask, "advantages": ADVANTAGES, "old_per_token_logps": old,
              "ref_per_token_logps": logps(reference), "num_items_in_batch": mask.sum()}
    made = case(options, lambda w: GRPOTrainer._compute_loss(own, Table(w), inputs))
    return {**made, "old": [record.Tensor(row[: len(c)]) for row, (_, c) in zip(old, JUDGED)]}


def methods(path, names, scope):
    """Functions of a source file by name, as they stand, in a scope of our own."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope


def ppo(wheel):
    import typing

    scope = {"torch": torch, "F": F, **vars(typing)}
    methods(f"{wheel}/trl/core.py", {"masked_mean", "masked_var", "masked_whiten", "clip_by_value",
                                     "entropy_from_logits", "flatten_dict"}, scope)
    scope["nested"] = {}
    scope["MutableMapping"] = dict
    from collections.abc import MutableMapping
    scope["MutableMapping"] = MutableMapping
    methods(f"{wheel}/trl/trainer/ppo_trainer.py", {"compute_advantages", "loss"}, scope)
    config = SimpleNamespace(whiten_rewards=False, gamma=0.97, lam=0.9, cliprange=0.2, cliprange_value=0.2,
                             vf_coef=0.1, ratio_threshold=10.0)
    own = SimpleNamespace(config=config)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    values = record.normal(generator, 3, 4)
    rewards = record.normal(generator, 3, 4)
    logits = record.normal(generator, 3, 4, 5)
    old = record.normal(generator, 3, 4, std=0.4, mean=-1.5)
    logps = (old + record.normal(generator, 3, 4, std=0.25)).requires_grad_()
    predicted = (values + record.normal(generator, 3, 4, std=0.3)).requires_grad_()
    kept, advantages, returns = scope["compute_advantages"](own, values, rewards, mask)
    policy, value, _ = scope["loss"](own, old, kept, logits, predicted, logps, mask, advantages, returns)
    (policy + value).backward()
    return {"options": {"gamma": config.gamma, "lambda": config.lam, "clip": config.cliprange,
                        "valueClip": config.cliprange_value, "valueWeight": config.vf_coef},
            "mask": mask, "values": values, "rewards": rewards, "old": old, "logps": logps.detach(),
            "predicted": predicted.detach(), "advantages": advantages, "returns": returns,
            "policyLoss": policy.detach(), "valueLoss": value.detach(),
            "gradient": {"logps": logps.grad, "predicted": predicted.grad}}


body = {
    "student": student,
    "reference": reference,
    "chosen": [{"prompt": p, "completion": c} for p, c in CHOSEN],
    "rejected": [{"prompt": p, "completion": c} for p, c in REJECTED],
    "judged": [{"prompt": p, "completion": c, "label": l} for (p, c), l in zip(JUDGED, LABELS)],
    "dpo": [
        dpo({"beta": 0.1}, ["sigmoid"], beta=0.1),
        dpo({"beta": 0.5}, ["sigmoid"], beta=0.5),
        dpo({"beta": 0.5, "loss": "hinge"}, ["hinge"], beta=0.5),
        dpo({"beta": 0.3, "sftWeight": 0.7}, ["sigmoid", "sft"], [1.0, 0.7], beta=0.3),
        robust({"beta": 0.4, "loss": "robust", "labelSmoothing": 0.15}, 0.4, 0.15),
    ],
    "ipo": [dpo({"beta": 0.1}, ["ipo"], beta=0.1), dpo({"beta": 0.6}, ["ipo"], beta=0.6)],
    "kto": [
        kto({"beta": 0.1}, 0.1, 1.0, 1.0),
        kto({"beta": 0.6, "desirableWeight": 1.4, "undesirableWeight": 0.8}, 0.6, 1.4, 0.8),
    ],
    "orpo": [orpo({"beta": 0.1}, 0.1), orpo({"beta": 0.8}, 0.8)],
    "simpo": [
        simpo({"beta": 2.0, "gamma": 1.0}, 2.0, 1.0, 0.0),
        simpo({"beta": 0.1, "gamma": 0.5, "labelSmoothing": 0.1}, 0.1, 0.5, 0.1),
    ],
    "distill": [
        jsd({"divergence": "forward"}, 0.0, 1.0),
        jsd({"divergence": "reverse", "temperature": 0.7}, 1.0, 0.7),
        jsd({"divergence": "jsd", "beta": 0.5}, 0.5, 1.0),
        jsd({"divergence": "jsd", "beta": 0.2, "temperature": 2.0}, 0.2, 2.0),
    ],
    "reward": [reward({}, None, 0.0), reward({"center": 0.05, "margin": 0.4}, 0.05, 0.4)],
    "advantages": ADVANTAGES,
    "grpo": [
        grpo({"normalize": "sequence", "beta": 0.0}, "grpo", 0.0),
        grpo({"normalize": "sequence", "beta": 0.04}, "grpo", 0.04),
        grpo({"normalize": "length", "beta": 0.1, "maxLength": 4, "clipHigh": 0.28}, "dr_grpo", 0.1, high=0.28),
        grpo({"normalize": "token", "beta": 0.02}, "bnpo", 0.02),
        grpo({"normalize": "token", "beta": 0.0}, "dapo", 0.0),
        grpo({"normalize": "sequence", "beta": 0.02, "ratio": "sequence"}, "grpo", 0.02, level="sequence"),
    ],
}
if len(sys.argv) > 1:
    body["ppo"] = ppo(sys.argv[1])
record.write("trl", SEED, body, modules=("trl", "transformers"),
             note="PPO's functions are those of trl 0.11.4")
