# SPDX-License-Identifier: Apache-2.0
"""Classify recordings, such as spoken commands: Wav2Vec2, HuBERT or Whisper.

The data has the columns `audio` (wave files, see waves.py) and `label`; a folder for each label does too. ::

    python examples/audio_classification.py --output_dir out
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import corpus
import metrics
import numpy as np
import task
import transformers
import waves
from ipu_models_speech.collators import SpecAugmentCollator

CALLS = {"owl": [150.0, 150.0], "cuckoo": [500.0, 300.0], "tit": [800.0, 500.0]}


@dataclass
class Options(task.Options):
    """How long a recording is."""

    max_seconds: float | None = field(
        default=None, metadata={"help": "The length every recording gets; by default that of the longest."}
    )


def sample(draw: random.Random) -> task.Row:
    """Play the two notes of a bird."""
    call = draw.choice(list(CALLS))
    return {"audio": waves.tones(draw, CALLS[call], 2000), "label": call}


def encode(rows: task.Row, *, extractor: Any, samples: int, names: list[Any]) -> task.Row:
    """Make waves [B, samples], or what the model reads in place of them, and classes."""
    encoded = extractor(
        [np.asarray(row)[:samples] for row in rows["wave"]],
        sampling_rate=extractor.sampling_rate,
        padding="max_length",
        max_length=samples,
    )
    return {**encoded, **({"labels": corpus.classes(rows["label"], names)} if "label" in rows else {})}


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"learning_rate": 3e-3, "num_train_epochs": 2, "layers_per_ipu": "2,2"}
    options, args = task.command_line(argv, options=Options, tiny=tiny)
    data = corpus.read(options, sample, "audio", target="label", load=waves.loaded)
    names = corpus.class_names(data, "label")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=2000, return_attention_mask=True)
    if options.model is not None:
        extractor = task.pretrained(transformers.AutoFeatureExtractor, options)
    data, samples = waves.with_waves(data, rate=extractor.sampling_rate, max_seconds=options.max_seconds)
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[32, 32],
        conv_kernel=[10, 5],
        conv_stride=[10, 5],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=32,
        initializer_range=0.1,
        hidden_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.02,
        mask_time_length=2,
    )
    model = task.model(transformers.AutoModelForAudioClassification, options, config, **corpus.class_labels(names))
    encoded = corpus.encoded(data, encode, extractor=extractor, samples=samples, names=names)
    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=extractor,
        data_collator=SpecAugmentCollator(model, transformers.default_data_collator),
        eval_data_collator=transformers.default_data_collator,
        score=lambda prediction, split: metrics.classification(prediction.predictions.argmax(-1), prediction.label_ids),
        answers=lambda prediction, split: [names[i] for i in prediction.predictions.argmax(-1)],
    )


if __name__ == "__main__":
    task.start(main)
