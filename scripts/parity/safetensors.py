"""Records files written by the safetensors library: test/parity/safetensors.json.

Run: python -P scripts/parity/safetensors.py > test/parity/safetensors.json
(-P, or this file shadows the library of the same name.)
Needs safetensors, torch. Values are fixed, no seed.
"""

import base64
import json
import sys

import safetensors
import torch
from safetensors.torch import save


def recorded(value):
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def describe(tensors):
    return [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "values": [
                str(v) if tensor.dtype == torch.int64 else recorded(v)
                for v in tensor.flatten().tolist()
            ],
        }
        for name, tensor in tensors.items()
    ]


inf, nan = float("inf"), float("nan")
cases = {
    "every type that a Tensor holds": {
        "z.float32": torch.tensor([[1.5, -0.0, inf], [-inf, nan, 3.4e38]]),
        "a.float32": torch.tensor([1e-45, 0.1]),
        "float64": torch.tensor([0.1, -1e300, 5e-324], dtype=torch.float64),
        "float16": torch.tensor([0.1, 65504.0, -6e-8, inf], dtype=torch.float16),
        "bfloat16": torch.tensor([[0.1], [-3e38]], dtype=torch.bfloat16),
        "int64": torch.tensor([2**63 - 1, -(2**63), 7], dtype=torch.int64),
        "int32": torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    },
    "empty tensors and rank 0": {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0),
        "no rows": torch.zeros((0, 3), dtype=torch.bfloat16),
        "yes": torch.tensor(True),
    },
    "names that need escapes and order by code point": {
        'quote " and \\ and /': torch.tensor([1.0]),
        "tab\tnewline\nbell\x07": torch.tensor([2.0]),
        "\U0001f600 above the plane": torch.tensor([3.0]),
        "\uffee below it": torch.tensor([4.0]),
        "": torch.tensor([5.0]),
        "__proto__": torch.tensor([6.0]),
        "delete\x7f": torch.tensor([7.0]),
    },
    "no tensors": {},
}

out = {
    "script": "scripts/parity/safetensors.py",
    "versions": {
        "python": sys.version.split()[0],
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
    },
    "files": [
        {
            "title": title,
            "metadata": metadata,
            "tensors": describe(tensors),
            "base64": base64.b64encode(save(tensors, metadata=metadata)).decode(),
        }
        for title, tensors in cases.items()
        # The library writes metadata in random order, so a single key each.
        for metadata in (None, {"format": "pt"})
    ],
    "bytesOnly": {
        "tensors": [["u16", "U16", [2]], ["e4m3", "F8_E4M3", [3]], ["c64", "C64", [1]]],
        "base64": base64.b64encode(
            save(
                {
                    "u16": torch.tensor([1, 65535], dtype=torch.uint16),
                    "e4m3": torch.tensor([1.0, 2.0, 448.0]).to(torch.float8_e4m3fn),
                    "c64": torch.tensor([1 + 2j], dtype=torch.complex64),
                }
            )
        ).decode(),
        "hex": {"u16": "0100ffff", "e4m3": "38407e", "c64": "0000803f00000040"},
    },
}
json.dump(out, sys.stdout, indent=1)
print()
