# SPDX-License-Identifier: Apache-2.0
"""Classify images: ViT, ConvNeXt and others.

The data has the columns `image` and `label`; a folder of images for each label does too. ::

    python examples/image_classification.py --output_dir out
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import corpus
import metrics
import numpy as np
import task
import transformers
from PIL import Image


def sample(draw: random.Random) -> task.Row:
    """Draw stripes of a random width, colour and place, upright, flat or slanted."""
    label = draw.choice(["upright", "flat", "slanted"])
    x, y = np.meshgrid(np.arange(16), np.arange(16))
    across = {"upright": x, "flat": y, "slanted": x + y}[label]
    stripes = ((across + draw.randrange(8)) // draw.choice([2, 3, 4]) % 2)[..., None]
    colours = np.array([draw.randrange(128, 256) for _ in range(3)])
    return {"image": Image.fromarray((stripes * colours).astype(np.uint8)), "label": label}


def encode(rows: task.Row, *, processor: Any, names: list[Any]) -> task.Row:
    """Make pixels [B, channels, height, width], and classes."""
    pixels = processor([image.convert("RGB") for image in rows["image"]])["pixel_values"]
    return {"pixel_values": pixels, **({"labels": corpus.classes(rows["label"], names)} if "label" in rows else {})}


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"learning_rate": 2e-3, "num_train_epochs": 6, "layers_per_ipu": "1,1"}
    options, args = task.command_line(argv, tiny=tiny)
    data = corpus.read(options, sample, "image", target="label")
    names = corpus.class_names(data, "label")
    if options.model is None:
        processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    else:
        processor = task.pretrained(transformers.AutoImageProcessor, options, backend="pil")
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = task.model(transformers.AutoModelForImageClassification, options, config, **corpus.class_labels(names))
    encoded = corpus.encoded(data, encode, processor=processor, names=names)
    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=processor,
        score=lambda prediction, split: metrics.classification(prediction.predictions.argmax(-1), prediction.label_ids),
        answers=lambda prediction, split: [names[i] for i in prediction.predictions.argmax(-1)],
    )


if __name__ == "__main__":
    task.start(main)
