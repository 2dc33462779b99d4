# SPDX-License-Identifier: Apache-2.0
"""Pipelines of sounds answer as upstream's do on the plain model; what is no sound is refused by name."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from ipu_core import IPUConfig, pipeline
from ipu_core.cli import main
from ipu_core.errors import InputError
from torch.utils import _pytree as pytree

wavfile = pytest.importorskip("scipy.io.wavfile")
RATE = 16000
IPUS = pytest.mark.parametrize("ipu_config", [IPUConfig(), IPUConfig(layers_per_ipu=[1, 1, 1, 1])], ids=["1", "4"])
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (40, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.5,
}
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


def sound(seconds, seed=0):
    """Return a sound that is not the same twice."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * 300 * time * (1 + time)) * 0.5 + draw.normal(size=len(time)) * 0.1).astype(np.float32)


SOUNDS = [sound(0.1, 1), sound(0.1, 2), sound(0.15, 3)]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    path = tmp_path_factory.mktemp("letters") / "vocab.json"
    path.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    return transformers.Wav2Vec2CTCTokenizer(str(path))


def wav2vec2(head, **more):
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(vocab_size=len(LETTERS), pad_token_id=0, **SIZE, **CONVOLUTIONS, **more)
    return getattr(transformers, head)(config).eval()


def assert_equal(found, expected):
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5) if isinstance(theirs, float) else ours == theirs


@IPUS
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.turns(4)
def test_ctc_hears_what_upstream_hears(letters, ipu_config, norm):
    model = wav2vec2("Wav2Vec2ForCTC", feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    more = {"tokenizer": letters, "feature_extractor": transformers.Wav2Vec2FeatureExtractor()}
    task = "automatic-speech-recognition"
    ours, theirs = pipeline(task, model, ipu_config, **more), transformers.pipeline(task, model, **more)
    calls = ({}, {"batch_size": 2}, {"chunk_length_s": 0.1, "stride_length_s": 0.02}, {"return_timestamps": "char"})
    for options in calls:
        found = ours([each.copy() for each in SOUNDS], **options)
        assert_equal(found, theirs([each.copy() for each in SOUNDS], **options))
    assert any(one["text"] for one in found)


def test_lengths_of_sounds_are_exact_and_the_log_says_so(letters, caplog):
    caplog.set_level(logging.INFO, "ipu_core.pipelines")
    more = {"tokenizer": letters, "feature_extractor": transformers.Wav2Vec2FeatureExtractor()}
    ours = pipeline("automatic-speech-recognition", wav2vec2("Wav2Vec2ForCTC"), **more)
    ours(SOUNDS[0])
    assert [shape.length for shape in ours.shapes] == [None]
    assert "no mask of tokens hides padding: lengths are as they come" in caplog.text


@IPUS
@pytest.mark.turns(4)
def test_sounds_are_classified_as_by_upstream(ipu_config):
    model = wav2vec2("Wav2Vec2ForSequenceClassification", num_labels=3)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    ours = pipeline("audio-classification", model, ipu_config, feature_extractor=extractor)
    theirs = transformers.pipeline("audio-classification", model, feature_extractor=extractor)
    for options in ({}, {"batch_size": 2, "top_k": 2}):
        assert_equal(ours(SOUNDS, **options), theirs(SOUNDS, **options))


@pytest.fixture(scope="module")
def whisper():
    """A multilingual Whisper that hears two seconds at once, with its tokenizer."""
    torch.manual_seed(0)
    words = {chr(character): number for number, character in enumerate([*range(97, 123), 288])}
    vocabulary = {**words, **{token: len(words) + place for place, token in enumerate(SPECIAL)}}
    times = [f"<|{place * 0.02:.2f}|>" for place in range(1501)]
    tokenizer = transformers.WhisperTokenizer(vocab=words, merges=[], pad_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens(times)
    number = tokenizer.convert_tokens_to_ids
    assert len(tokenizer) >= len(vocabulary)
    ends = {"pad_token_id": number(SPECIAL[0]), "bos_token_id": number(SPECIAL[0]), "eos_token_id": number(SPECIAL[0])}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=100,
        max_target_positions=48,
        decoder_start_token_id=number(SPECIAL[1]),
        **ends,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    generation = {
        **ends,
        "decoder_start_token_id": number(SPECIAL[1]),
        "no_timestamps_token_id": number("<|notimestamps|>"),
        "prev_sot_token_id": number("<|startofprev|>"),
        "lang_to_id": {"<|en|>": number("<|en|>"), "<|de|>": number("<|de|>")},
        "task_to_id": {"transcribe": number("<|transcribe|>"), "translate": number("<|translate|>")},
        "is_multilingual": True,
        "max_initial_timestamp_index": 50,
        "max_length": 24,
    }
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    return model, {"tokenizer": tokenizer, "feature_extractor": extractor}


@IPUS
@pytest.mark.turns(4)
def test_whisper_writes_what_upstream_writes(whisper, ipu_config):
    model, more = whisper
    task = "automatic-speech-recognition"
    ours, theirs = pipeline(task, model, ipu_config, **more), transformers.pipeline(task, model, **more)
    short = [sound(0.5, 1), sound(1.5, 2), sound(1.0, 3)]
    for options in ({}, {"batch_size": 2}, {"return_timestamps": True, "generate_kwargs": {"language": "de"}}):
        found = ours(short, **options)
        assert_equal(found, theirs(short, **options))
    assert all(one["text"] for one in found)
    long = sound(5.0)
    assert_equal(ours(long, return_timestamps=True), theirs(long, return_timestamps=True))


@pytest.fixture
def hears(letters):
    more = {"tokenizer": letters, "feature_extractor": transformers.Wav2Vec2FeatureExtractor()}
    return pipeline("automatic-speech-recognition", wav2vec2("Wav2Vec2ForCTC"), **more)


def test_wave_files_of_any_kind_are_read(tmp_path, hears):
    expected = hears(SOUNDS[0])
    stereo = np.stack([SOUNDS[0], SOUNDS[0]], axis=1)
    for name, samples in {"mono": SOUNDS[0], "stereo": stereo, "16 bits": (stereo * 32767).astype(np.int16)}.items():
        wavfile.write(tmp_path / f"{name}.wav", RATE, samples)
        assert hears(str(tmp_path / f"{name}.wav")) == expected, name
    assert hears((tmp_path / "mono.wav").read_bytes()) == expected
    assert hears([str(tmp_path / "mono.wav")] * 3, batch_size=2) == [expected] * 3


def test_what_is_no_sound_is_refused(tmp_path, hears):
    (tmp_path / "broken.wav").write_bytes(b"RIFF of nothing")
    (tmp_path / "text.txt").write_text("words")
    wavfile.write(tmp_path / "slow.wav", 8000, SOUNDS[0])
    wavfile.write(tmp_path / "silent.wav", RATE, np.zeros(0, dtype=np.int16))
    cases = {
        "gone.wav": "there is no sound `.*gone.wav`",
        "broken.wav": "`.*broken.wav` cannot be read as a wave file",
        "text.txt": "`.*text.txt` is no wave file",
        "slow.wav": "has 8000 samples a second and the model takes 16000; upstream resamples with torchaudio",
        "silent.wav": "`.*silent.wav` has no samples",
    }
    if transformers.utils.is_torchaudio_available():
        del cases["slow.wav"]
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            hears(str(tmp_path / name))
    with pytest.raises(InputError, match="was given None"):
        hears(None)


def test_the_command_line_hears(tmp_path, letters, capsys):
    model = tmp_path / "model"
    wav2vec2("Wav2Vec2ForCTC").save_pretrained(model)
    letters.save_pretrained(model)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(model)
    wavfile.write(tmp_path / "one.wav", RATE, SOUNDS[0])
    task = "automatic-speech-recognition"
    assert main(["pipeline", task, "--model", str(model), "--json", str(tmp_path / "one.wav")]) == 0
    expected = transformers.pipeline(task, str(model))(SOUNDS[0].copy())
    assert json.loads(capsys.readouterr().out) == expected
