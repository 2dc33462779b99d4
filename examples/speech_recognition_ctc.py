# SPDX-License-Identifier: Apache-2.0
"""Write down speech with connectionist temporal classification: Wav2Vec2 or HuBERT.

The data has the columns `audio` (wave files, see waves.py) and `text`. ::

    python examples/speech_recognition_ctc.py --output_dir out
    python examples/speech_recognition_ctc.py --output_dir out --model facebook/wav2vec2-base --new_vocabulary \
        --freeze_feature_encoder --layers_per_ipu 3,3,3,3 --data recordings --max_seconds 10
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
import datasets
import metrics
import numpy as np
import task
import torch
import transformers
import waves
from ipu_models_speech.collators import SpecAugmentCollator

NOTES = {"a": 150.0, "b": 300.0, "c": 500.0, "d": 800.0}


@dataclass
class Options(task.Options):
    """What is said, and how long."""

    max_seconds: float | None = field(
        default=None, metadata={"help": "The length every recording gets; by default that of the longest."}
    )
    new_vocabulary: bool = field(
        default=False, metadata={"help": "Learn the letters of the data, for a checkpoint that knows none."}
    )
    freeze_feature_encoder: bool = field(default=False, metadata={"help": "Leave the convolutions as they are."})


def sample(draw: random.Random) -> task.Row:
    """Play two to four notes, each of which has a letter."""
    text = "".join(draw.choices(list(NOTES), k=draw.randint(2, 4)))
    return {"audio": waves.tones(draw, [NOTES[letter] for letter in text], 2000), "text": text}


def processor_of(options: Options, data: datasets.DatasetDict, folder: str) -> Any:
    """Load feature extractor and tokenizer of `--model`; without one, or its letters, make them."""
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=2000, return_attention_mask=True)
    if options.model is not None:
        extractor = task.pretrained(transformers.AutoFeatureExtractor, options)
    if options.model is None or options.new_vocabulary:
        letters = sorted({letter for text in data["train"]["text"] for letter in text} - {" "})
        words = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *letters])}
        path = Path(folder, "vocab.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None)
    else:
        tokenizer = task.pretrained(transformers.AutoTokenizer, options)
    return transformers.Wav2Vec2Processor(extractor, tokenizer)


def encode(rows: task.Row, *, processor: Any, samples: int, length: int) -> task.Row:
    """Make waves [B, samples] and letters [B, length], padded with -100."""
    encoded = processor.feature_extractor(
        [np.asarray(row)[:samples] for row in rows["wave"]],
        sampling_rate=processor.feature_extractor.sampling_rate,
        padding="max_length",
        max_length=samples,
    )
    if "text" not in rows:
        return dict(encoded)
    labels = processor.tokenizer(rows["text"])["input_ids"]
    for row, letters in enumerate(labels):
        if len(letters) > length:
            raise corpus.WrongRowError(row, f"has {len(letters)} letters, and --max_length={length}: raise it")
    return {**encoded, "labels": [ids + [metrics.IGNORED] * (length - len(ids)) for ids in labels]}


def best(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the likeliest letter of each frame, [B, F, V] -> [B, F]."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {"max_length": 4, "learning_rate": 5e-3, "num_train_epochs": 6, "layers_per_ipu": "2,2"}
    options, args = task.command_line(argv, options=Options, tiny=tiny, max_length=256)
    data = corpus.read(options, sample, "audio", target="text", load=waves.loaded)
    processor = processor_of(options, data, args.output_dir)
    data, samples = waves.with_waves(
        data, rate=processor.feature_extractor.sampling_rate, max_seconds=options.max_seconds
    )
    letters = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[32, 32],
        conv_kernel=[10, 4],
        conv_stride=[10, 4],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.1,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.02,
        mask_time_length=2,
    )
    model = task.model(
        transformers.AutoModelForCTC, options, config, ctc_loss_reduction="mean", ctc_zero_infinity=True, **letters
    )
    if options.freeze_feature_encoder:
        model.freeze_feature_encoder()
    encoded = corpus.encoded(data, encode, processor=processor, samples=samples, length=options.max_length)

    def said(prediction: Any, split: str) -> list[str]:
        return processor.tokenizer.batch_decode(np.maximum(prediction.predictions, 0))

    return task.run(
        options,
        args,
        model,
        encoded,
        processing_class=processor,
        data_collator=SpecAugmentCollator(model, transformers.default_data_collator),
        eval_data_collator=transformers.default_data_collator,
        preprocess_logits_for_metrics=best,
        score=lambda prediction, split: metrics.transcription(said(prediction, split), data[split]["text"]),
        answers=said,
    )


if __name__ == "__main__":
    task.start(main)
