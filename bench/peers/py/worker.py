"""PyTorch's side of the benchmark: one process, one work, JSON lines.

    python worker.py <work> <threads> <weights.safetensors or folder>

Prints {"ready": true, "version", "threads", "extra"}; answers {"steps": n} with {"ms", "loss"} (the decodes
also "tokens"); answers {"exit": true} with {"peakRssMb"} and ends. A step's time covers everything from zeroing
the gradients to reading the loss as a Python number.

Each work is a function (tensors) -> (step, extra), of a real model (folder) -> (step, extra). Where eager PyTorch offers two ways of doing the same
arithmetic, the faster one measured on this project's machine is the default, PEER_<CHOICE> in the environment
takes the other, and `extra` names the one in use.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def choice(name: str, default: str) -> str:
    return os.environ.get(f"PEER_{name.upper()}", default)


def adamw(parameters, lr: float):
    kind = choice("adamw", "fused")
    options = {"fused": kind == "fused", "foreach": kind == "foreach"}
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **options), {"adamw": kind}


def training_step(loss_of, optimizer=None, parameters=()):
    """Zero, forward, backward and, with an optimiser, update; returns the loss as a number."""
    parameters = list(parameters)

    def step() -> float:
        for p in parameters:
            p.grad = None
        loss = loss_of()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        return loss.item()

    return step


# ---- GPT of plain PyTorch ------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-LN transformer block; linears are (out, in) views of the file's (in, out) weights."""

    def __init__(self, tensors: dict, prefix: str, n_heads: int, fused_qkv: bool):
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = layer_norm(tensors, prefix + "ln_1"), layer_norm(tensors, prefix + "ln_2")
        if fused_qkv:
            self.qkv = linear(tensors, prefix + "attn.c_attn")
        else:
            self.q, self.k, self.v = (linear(tensors, prefix + "attn.c_attn", part) for part in range(3))
        self.proj = linear(tensors, prefix + "attn.c_proj")
        self.fc = linear(tensors, prefix + "mlp.c_fc")
        self.out = linear(tensors, prefix + "mlp.c_proj")

    def forward(self, x, cache=None):  # (B, T, D) → (B, T, D)
        b, t, d = x.shape
        h = self.ln_1(x)
        qkv = self.qkv(h).split(d, dim=-1) if hasattr(self, "qkv") else (self.q(h), self.k(h), self.v(h))
        q, k, v = (z.view(b, t, self.n_heads, d // self.n_heads).transpose(1, 2) for z in qkv)
        if cache is not None:  # [keys, values, length]: the new t positions go behind the first `length`
            end = cache[2] + t
            cache[0][:, :, cache[2] : end], cache[1][:, :, cache[2] : end] = k, v
            k, v, cache[2] = cache[0][:, :, :end], cache[1][:, :, :end], end
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, tensors: dict, n_heads: int, fused_qkv: bool = True):
        super().__init__()
        self.wte, self.wpe = nn.Parameter(tensors["wte.weight"]), nn.Parameter(tensors["wpe.weight"])
        n_layers = sum(name.endswith(".ln_1.weight") for name in tensors)
        self.blocks = nn.ModuleList(Block(tensors, f"h.{i}.", n_heads, fused_qkv) for i in range(n_layers))
        self.ln_f = layer_norm(tensors, "ln_f")

    def forward(self, ids):  # (B, T) → (B, T, V), head tied to wte
        x = F.embedding(ids, self.wte) + self.wpe[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte)

    def extend(self, ids, caches):  # (1, T) → (1, V): the logits after the last of T new tokens
        start = caches[0][2]
        x = F.embedding(ids, self.wte) + self.wpe[start : start + ids.shape[1]]
        for block, cache in zip(self.blocks, caches):
            x = block(x, cache)
        return F.linear(self.ln_f(x[:, -1]), self.wte)


def layer_norm(tensors: dict, name: str) -> nn.LayerNorm:
    module = nn.LayerNorm(len(tensors[name + ".weight"]), eps=1e-5)
    return fill(module, tensors[name + ".weight"], tensors[name + ".bias"])


def linear(tensors: dict, name: str, part: int | None = None) -> nn.Linear:
    """The Conv1D layer `name`, or one third of its outputs, as a Linear."""
    weight, bias = tensors[name + ".weight"], tensors[name + ".bias"]  # (in, out), (out)
    if part is not None:
        weight, bias = weight.chunk(3, dim=1)[part], bias.chunk(3)[part]
    return fill(nn.Linear(*weight.shape, device="meta"), weight.t(), bias)


def fill(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
    return module


def next_token_loss(model, ids):
    """Loss of ids[:, 1:] given ids[:, :-1]: a function of no arguments."""
    inputs, targets = ids[:, :-1].long().contiguous(), ids[:, 1:].long().reshape(-1)

    def loss_of():
        logits = model(inputs)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets)

    return loss_of


def gpt_fwdbwd(tensors):
    ids = tensors.pop("ids")
    model = Gpt(tensors, n_heads=4)
    return training_step(next_token_loss(model, ids), None, model.parameters()), {}


def gpt_adamw(tensors):
    ids = tensors.pop("ids")
    model = Gpt(tensors, n_heads=4)
    optimizer, extra = adamw(model.parameters(), 1e-3)
    return training_step(next_token_loss(model, ids), optimizer, model.parameters()), extra


# ---- LSTM, CNN -----------------------------------------------------------------------------------


class Lstm(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        vocab, width = tensors["embed.weight"].shape
        hidden = tensors["lstm.weight_hh_l0"].shape[1]
        self.embed = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocab)
        self.load_state_dict(tensors)

    def forward(self, ids):
        return self.head(self.lstm(self.embed(ids))[0])


def lstm_adamw(tensors):
    ids = tensors.pop("ids")
    model = Lstm(tensors)
    optimizer, extra = adamw(model.parameters(), 1e-3)
    return training_step(next_token_loss(model, ids), optimizer, model.parameters()), extra


class Cnn(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.fc = nn.Linear(128, 10)
        self.load_state_dict(tensors)

    def forward(self, x):  # (B, 3, 32, 32) → (B, 10)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean(dim=(2, 3)))


def cnn_sgd(tensors):
    x, y = tensors.pop("x"), tensors.pop("y").long()
    model = Cnn(tensors)
    layout, kind = choice("layout", "channels_last"), choice("sgd", "fused")
    if layout == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=kind == "fused", foreach=kind == "foreach")
    step = training_step(lambda: F.cross_entropy(model(x), y), optimizer, model.parameters())
    return step, {"layout": layout, "sgd": kind}


# ---- GPT-2 small ---------------------------------------------------------------------------------


def hf_gpt2(tensors):
    """transformers' GPT-2 of the file's shape, dropout 0, its parameters the file's own tensors."""
    import transformers

    vocab, width = tensors["wte.weight"].shape
    n_layers = sum(name.endswith(".ln_1.weight") for name in tensors)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=width, n_positions=tensors["wpe.weight"].shape[0], n_layer=n_layers, n_head=width // 64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    model.transformer.load_state_dict(tensors, strict=True, assign=True)
    model.lm_head.weight = model.transformer.wte.weight
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if left:
        raise RuntimeError(f"not in the weights file: {left}")
    return model, {"transformers": transformers.__version__, "attention": model.config._attn_implementation}


def gpt2small_lora(tensors):
    import peft

    ids = tensors.pop("ids")
    base, extra = hf_gpt2(tensors)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer, kind = adamw(trainable, 1e-4)
    loss_of = next_token_loss(lambda x: model(input_ids=x, use_cache=False).logits, ids)
    extra |= kind | {"peft": peft.__version__, "trainable": sum(p.numel() for p in trainable)}
    return training_step(loss_of, optimizer, trainable), extra


class Lora(nn.Module):
    """peft's LoRA linear: base(x) + B(A(x)) * alpha / r, A Kaiming, B zero."""

    def __init__(self, base: nn.Linear, r: int, alpha: int):
        super().__init__()
        self.base, self.scale = base, alpha / r
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x)) * self.scale


def gpt2small_lora_qv(tensors):
    ids = tensors.pop("ids")
    model = Gpt(tensors, n_heads=tensors["wte.weight"].shape[1] // 64, fused_qkv=False)
    model.requires_grad_(False)
    torch.manual_seed(0)
    for block in model.blocks:
        block.q, block.v = Lora(block.q, 8, 16), Lora(block.v, 8, 16)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer, extra = adamw(trainable, 1e-4)
    extra["trainable"] = sum(p.numel() for p in trainable)
    return training_step(next_token_loss(model, ids), optimizer, trainable), extra


def gpt2small_decode(tensors, n_prompt=128, n_new=128):
    prompt = tensors.pop("ids")[:1, :n_prompt].long()
    model, extra = hf_gpt2(tensors)
    return greedy(model, prompt, n_new, extra)


def greedy(model, prompt, n_new, extra):
    """As many tokens as are wanted, whatever they are; how: PEER_DECODE."""
    model.eval()
    how = choice("decode", "loop")

    @torch.inference_mode()
    def loop() -> list[int]:
        tokens, ids, cache = [], prompt, None
        for _ in range(n_new):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(ids.item())
        return tokens

    @torch.inference_mode()
    def generate() -> list[int]:
        mask = torch.ones_like(prompt)
        out = model.generate(prompt, attention_mask=mask, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=0)
        return out[0, prompt.shape[1] :].tolist()

    extra |= {"decode": how, "prompt": prompt.shape[1], "newTokens": n_new}
    return (loop if how == "loop" else generate), extra


def gpt2small_decode_plain(tensors, n_prompt=128, n_new=128):
    """The same decode without transformers: the plain model above and a cache laid out in advance."""
    prompt = tensors.pop("ids")[:1, :n_prompt].long()
    n_heads = tensors["wte.weight"].shape[1] // 64
    model = Gpt(tensors, n_heads=n_heads).eval()
    shape = (1, n_heads, n_prompt + n_new, 64)

    @torch.inference_mode()
    def step() -> list[int]:
        caches = [[torch.empty(shape), torch.empty(shape), 0] for _ in model.blocks]
        tokens, ids = [], prompt
        for _ in range(n_new):
            ids = model.extend(ids, caches).argmax(-1, keepdim=True)
            tokens.append(ids.item())
        return tokens

    return step, {"prompt": n_prompt, "newTokens": n_new}


# ---- a real model, from a folder that plasticity wrote -----------------------------------------------


def folder_model(folder: str):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, {"transformers": transformers.__version__, "attention": model.config._attn_implementation}


def task_of(folder: str) -> dict:
    return json.loads((Path(folder) / "bench.json").read_text())


def smollm2_lora(folder):
    import peft

    base, extra = folder_model(folder)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer, kind = adamw(trainable, 1e-4)
    ids = torch.tensor([row[:129] for row in task_of(folder)["rows"][:2]])
    loss_of = next_token_loss(lambda x: model(input_ids=x, use_cache=False).logits, ids)
    extra |= kind | {"peft": peft.__version__, "trainable": sum(p.numel() for p in trainable)}
    return training_step(loss_of, optimizer, trainable), extra


def smollm2_decode(folder):
    model, extra = folder_model(folder)
    return greedy(model, torch.tensor([task_of(folder)["prompt"]]), 128, extra)


FOLDER_WORKS = {"smollm2-lora": smollm2_lora, "smollm2-decode": smollm2_decode}

WORKS = {
    "gpt-fwdbwd": gpt_fwdbwd,
    "gpt-adamw": gpt_adamw,
    "lstm-adamw": lstm_adamw,
    "cnn-sgd": cnn_sgd,
    "gpt2small-lora": gpt2small_lora,
    "gpt2small-lora-qv": gpt2small_lora_qv,
    "gpt2small-decode": gpt2small_decode,
    "gpt2small-decode-plain": gpt2small_decode_plain,
}


# ---- the protocol --------------------------------------------------------------------------------


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError("no VmHWM in /proc/self/status: peak memory is read on Linux only")


def say(message: dict) -> None:
    print(json.dumps(message), flush=True)


def run(step, n: int) -> dict:
    ms, losses, tokens = [], [], None
    for _ in range(n):
        start = time.perf_counter()
        result = step()
        ms.append((time.perf_counter() - start) * 1000)
        if isinstance(result, list):
            tokens = result
        else:
            losses.append(result)
    return {"ms": ms, "loss": losses, **({"tokens": tokens} if tokens is not None else {})}


def main() -> None:
    known = WORKS | FOLDER_WORKS
    if len(sys.argv) != 4 or sys.argv[1] not in known:
        sys.exit(f"usage: worker.py <work> <threads> <weights.safetensors or folder>; work is one of {', '.join(known)}")
    work, threads, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(threads)
    import_rss = peak_rss_mb()
    step, extra = FOLDER_WORKS[work](path) if work in FOLDER_WORKS else WORKS[work](load_file(path))
    say({"ready": True, "version": f"torch {torch.__version__}", "threads": torch.get_num_threads(),
         "extra": {**extra, "importRssMb": import_rss}})
    for line in sys.stdin:
        if not line.strip():
            continue
        message = json.loads(line)
        if message.get("exit"):
            break
        say(run(step, int(message["steps"])))
    say({"peakRssMb": peak_rss_mb()})


if __name__ == "__main__":
    main()
