"""Pictures resized by Pillow, and preprocessed by image processors of transformers.

    python scripts/parity/images.py        writes test/parity/images.json

Pictures are bytes floor(256 u) of the rule in by_rule.py under the name "<width>x<height>".
"""

import record
import numpy as np
import PIL
from by_rule import uniforms
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, ConvNextImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil

RESAMPLES = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
SIZES = [((13, 9), (5, 4)), ((13, 9), (17, 20)), ((40, 23), (9, 23)), ((6, 6), (6, 3)), ((31, 17), (4, 2)), ((9, 30), (8, 26))]

PROCESSORS = {
    "vit": (ViTImageProcessorPil, dict(size=dict(height=6, width=5)), [(13, 9)]),
    "vit-number": (ViTImageProcessorPil, dict(size=7, resample=3, do_normalize=False), [(4, 9)]),
    "clip": (CLIPImageProcessorPil, dict(size=dict(shortest_edge=8), crop_size=dict(height=8, width=8)), [(21, 10), (9, 14)]),
    "clip-odd": (CLIPImageProcessorPil, dict(size=7, crop_size=6, resample=2), [(13, 9), (9, 13)]),
    "clip-small": (CLIPImageProcessorPil, dict(size=5, crop_size=8), [(13, 9), (7, 7)]),
    "clip-raw": (CLIPImageProcessorPil, dict(size=6, crop_size=6, do_rescale=False, do_normalize=False), [(13, 9)]),
    "convnext": (ConvNextImageProcessorPil, dict(size=dict(shortest_edge=7), crop_pct=0.875, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]), [(13, 9), (9, 30)]),
    "deit": (DeiTImageProcessorPil, dict(size=dict(height=9, width=9), crop_size=dict(height=6, width=6)), [(13, 9)]),
    "bit": (BitImageProcessorPil, dict(size=dict(shortest_edge=6), crop_size=dict(height=6, width=6)), [(13, 9)]),
    "longest": (BitImageProcessorPil, dict(size=dict(shortest_edge=8, longest_edge=13), crop_size=dict(height=6, width=12)), [(13, 9), (40, 23), (31, 17)]),
}


def picture(width: int, height: int) -> np.ndarray:
    u = uniforms(f"{width}x{height}", width * height * 3)
    return np.floor(256 * u).astype(np.uint8).reshape(height, width, 3)


def resized(source, to, code):
    image = Image.fromarray(picture(*source)).resize(to, resample=code)
    return np.asarray(image).astype(np.int32)


def processed(make, options, sizes):
    processor = make(**options)
    config = {k: v for k, v in processor.to_dict().items() if v is not None and not k.startswith("_")}
    images = [Image.fromarray(picture(*size)) for size in sizes]
    pixels = [np.asarray(processor(image)["pixel_values"][0]).astype(np.float32) for image in images]
    return {"config": config, "pictures": [list(size) for size in sizes], "pixels": [record.Tensor(p) for p in pixels]}


record.write("images", 0, {
    "resizes": [
        {"from": list(source), "to": list(to), "resample": name, "bytes": record.Tensor(resized(source, to, code))}
        for source, to in SIZES for code, name in enumerate(RESAMPLES)
    ],
    "processors": {name: processed(*case) for name, case in PROCESSORS.items()},
}, modules=["transformers", "PIL"])
