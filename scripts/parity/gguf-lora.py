"""gguf-lora.gguf: the adapter of peft-lora as llama.cpp's convert_lora_to_gguf.py writes it, by the
gguf package (0.19.0). Queries are permuted as its LlamaModel does.

    python scripts/parity/gguf-lora.py            writes test/parity/gguf-lora.gguf
    python scripts/parity/gguf-lora.py FILE       reads FILE and compares it with that one
"""

import json
import sys
from pathlib import Path

from record import PARITY  # first: it moves this folder back in sys.path

import gguf
import numpy as np
from safetensors.numpy import load_file

RECORDED = PARITY / "gguf-lora.gguf"


def permute(weights: np.ndarray, n_head: int, n_head_kv: int) -> np.ndarray:
    if n_head != n_head_kv:
        n_head = n_head_kv
    split = weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def record() -> None:
    config = json.loads((PARITY / "hf-llama" / "config.json").read_text())
    heads = config["num_attention_heads"]
    adapter = PARITY / "peft-lora"
    alpha = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    writer = gguf.GGUFWriter(RECORDED, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    for key in sorted(name for name in tensors if ".lora_A." in name):
        a, b = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
        path = key.removeprefix("base_model.model.").replace(".lora_A", "")
        if "q_proj" in path:
            b = permute(b, heads, heads)
        if "k_proj" in path:
            b = permute(b, heads, config["num_key_value_heads"])
        name = names.get_name(path, try_suffixes=(".weight",))
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def contents(path: Path) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return fields, {t.name: (t.tensor_type.name, t.data) for t in reader.tensors}


def compare(path: Path) -> None:
    (fields, tensors), (own_fields, own_tensors) = contents(RECORDED), contents(path)
    assert fields == own_fields, (fields, own_fields)
    assert tensors.keys() == own_tensors.keys(), (tensors.keys(), own_tensors.keys())
    for name, (kind, data) in tensors.items():
        assert kind == own_tensors[name][0] and np.array_equal(data, own_tensors[name][1]), name
    print(f"{path}: {len(fields)} fields and {len(tensors)} tensors are equal.")


if __name__ == "__main__":
    compare(Path(sys.argv[1])) if len(sys.argv) > 1 else record()
