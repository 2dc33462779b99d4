# SPDX-License-Identifier: Apache-2.0
"""Write down speech with an encoder-decoder: Whisper.

The data has the columns `audio` (wave files, see waves.py) and `text`. ::

    python examples/speech_recognition_whisper.py --output_dir out --predict_with_generate
    python examples/speech_recognition_whisper.py --output_dir out --model openai/whisper-tiny --layers_per_ipu 4,4 \
        --data recordings --language english --predict_with_generate
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import corpus
import metrics
import numpy as np
import sequences
import task
import transformers
import waves
from ipu_models_speech.collators import SpecAugmentCollator
from ipu_trainer import IPUSeq2SeqTrainer, IPUSeq2SeqTrainingArguments

NOTES = {"a": 150.0, "b": 300.0, "c": 500.0, "d": 800.0}


@dataclass
class Options(task.Options):
    """What is said, in which language."""

    language: str | None = field(default=None, metadata={"help": "The language, for a model that knows several."})


def sample(draw: random.Random) -> task.Row:
    """Play two notes, each of which has a letter."""
    text = "".join(draw.choices(list(NOTES), k=2))
    return {"audio": waves.tones(draw, [NOTES[letter] for letter in text], 16000), "text": text}


def encode(rows: task.Row, *, processor: Any, start: int, length: int) -> task.Row:
    """Make spectrograms [B, mels, frames], and labels [B, length], padded with -100.

    The token that starts every target is no label: the model puts it in front of them.
    """
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    features = extractor([np.asarray(row) for row in rows["wave"]], sampling_rate=extractor.sampling_rate)
    if "text" not in rows:
        return dict(features)
    targets = tokenizer(rows["text"], truncation=True, max_length=length + 1, padding="max_length")
    labels = np.array(sequences.ignoring_padding(targets["input_ids"], targets["attention_mask"]))
    begun = bool((labels[:, 0] == start).all())
    return {**features, "labels": (labels[:, 1:] if begun else labels[:, :length]).tolist()}


def tiny_processor() -> Any:
    """Make a feature extractor for a second of sound, and a tokenizer of a few letters."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *NOTES])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=special[0])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    return transformers.WhisperProcessor(extractor, tokenizer)


def main(argv: Sequence[str] | None = None) -> task.Outcome:
    """Train, evaluate and predict."""
    tiny = {
        "max_length": 4,
        "learning_rate": 5e-3,
        "num_train_epochs": 5,
        "layers_per_ipu": "1,1",
        "generation_max_length": 6,
    }
    options, args = task.command_line(argv, options=Options, arguments=IPUSeq2SeqTrainingArguments, tiny=tiny)
    data = corpus.read(options, sample, "audio", target="text", load=waves.loaded)
    processor = tiny_processor() if options.model is None else task.pretrained(transformers.AutoProcessor, options)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    data, _ = waves.with_waves(data, rate=extractor.sampling_rate, max_seconds=extractor.chunk_length)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50,
        max_target_positions=16,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        init_std=0.1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = task.model(transformers.AutoModelForSpeechSeq2Seq, options, config)
    if options.language is not None:
        tokenizer.set_prefix_tokens(language=options.language, task="transcribe")
        model.generation_config.language, model.generation_config.task = options.language, "transcribe"
    encoded = corpus.encoded(
        data, encode, processor=processor, start=model.config.decoder_start_token_id, length=options.max_length
    )

    return task.run(
        options,
        args,
        model,
        encoded,
        trainer_class=IPUSeq2SeqTrainer,
        processing_class=processor,
        data_collator=SpecAugmentCollator(model, transformers.default_data_collator),
        eval_data_collator=transformers.default_data_collator,
        **sequences.scoring(args, tokenizer, lambda texts, split: metrics.transcription(texts, data[split]["text"])),
    )


if __name__ == "__main__":
    task.start(main)
