"""gguf-quants.json: blocks of every type that is read, and what the gguf package makes of them.

Bytes are random but for the float16 scales, which are finite. Of the float32 results the CRC-32 of all
bytes and the first eight are kept; for the types that are written, floats and the bytes they become.
"""

import base64
import zlib

import record  # first: it moves this folder back in sys.path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

SEED = 20
READ = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split()
WRITTEN = "F16 BF16 Q8_0 Q4_0".split()
# Where the float16 numbers of a block lie.
HALVES = {"F16": [0], "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0]}


def text(data: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(data).tobytes()).decode()


def main() -> None:
    rng = np.random.default_rng(SEED)
    body: dict = {"read": {}, "written": {}}
    for name in READ:
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = {1: 64, 32: 12, 256: 4}[elements]
        data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for at in HALVES.get(name, []):
            scale = (rng.standard_normal(blocks) * 10.0 ** rng.integers(-6, 3, blocks)).astype(np.float16)
            scale[0] = np.float16(6e-8) if at == 0 else scale[0]  # subnormal
            data[:, at : at + 2] = scale.view(np.uint8).reshape(blocks, 2)
        if name in ("F32", "BF16"):
            floats = rng.standard_normal(blocks).astype(np.float32)
            data = floats.view(np.uint8).reshape(blocks, 4)[:, 4 - size :].copy()
        row = data.reshape(1, -1)
        numbers = dequantize(row, kind)
        assert np.isfinite(numbers).all(), name
        body["read"][name] = {
            "bytes": text(row),
            "crc32": zlib.crc32(numbers.astype("<f4").tobytes()),
            "first": record.Tensor(numbers.reshape(-1)[:8]),
        }
    floats = (rng.standard_normal((1, 384)) * np.repeat(10.0 ** rng.integers(-5, 3, 12), 32)).astype(np.float32)
    floats[0, :32] = 0
    floats[0, 32:64] = rng.integers(-8, 9, 32) / 16  # ties of rounding
    floats[0, 64:68] = [1, -1, 1, -1]
    body["floats"] = text(floats)
    for name in WRITTEN:
        # quantize of BF16 and F16 gives rows of their own types.
        body["written"][name] = text(quantize(floats, GGMLQuantizationType[name]))
    record.write("gguf-quants", SEED, body, modules=(), note="gguf 0.19.0, gguf.quants")


main()
