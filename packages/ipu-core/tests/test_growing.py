# SPDX-License-Identifier: Apache-2.0
"""Later calls of a generator that are longer, or that begin with something else than tokens, give the plain tokens."""

import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import CacheError, GenerationModeError

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
NEW = {"max_new_tokens": 4, "do_sample": False}
TWO, FOUR = IPUConfig(layers_per_ipu=[1, 1]), IPUConfig(layers_per_ipu=[1, 1, 1, 1])


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SMALL, vocab_size=64, pad_token_id=0, eos_token_id=None, initializer_range=0.3, **options
    )
    return transformers.LlamaForCausalLM(config).eval()


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        **{"vocab_size": 64, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2},
        decoder_start_token_id=0,
        initializer_factor=3.0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def bart():
    torch.manual_seed(0)
    config = transformers.BartConfig(
        **{"vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32},
        **{"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"max_position_embeddings": 24, "init_std": 0.3, "forced_eos_token_id": None},
    )
    return transformers.BartForConditionalGeneration(config).eval()


def tokens(length, seed=0):
    return torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(seed + length))


def assert_plain(model, generator, *given, **asked):
    assert torch.equal(generator.generate(*given, **NEW, **asked), model.generate(*given, **NEW, **asked))


def test_a_longer_prompt_gets_programs_for_a_power_of_two(caplog):
    caplog.set_level(logging.INFO, "ipu_core.generation")
    model = llama(max_position_embeddings=48)
    generator = generation_model(to_pipelined(model, TWO))
    lengths = []
    for prompt in (6, 20, 10, 27, 40, 5):
        assert_plain(model, generator, tokens(prompt))
        lengths.append(generator.decoder.sizes.max_length)
    assert lengths == [10, 32, 32, 32, 48, 48]  # the model's own length at most
    assert caplog.text.count("take the place of those for") == 2


def test_a_length_that_was_given_is_kept():
    generator = generation_model(to_pipelined(llama(), TWO), max_length=16)
    generator.generate(tokens(6), **NEW)
    with pytest.raises(CacheError, match="this is compiled for `max_length=16`: shorten the prompt"):
        generator.generate(tokens(20), **NEW)


@pytest.mark.parametrize("make", [t5, bart])
@pytest.mark.parametrize("masked", [False, True])
def test_sources_of_other_lengths(make, masked):
    model = make()
    generator = generation_model(to_pipelined(model, FOUR))
    for length in (7, 12, 3, 20):
        mask = torch.ones(2, length, dtype=torch.long)
        mask[0, length - 2 :] = 0
        assert_plain(model, generator, tokens(length), **({"attention_mask": mask} if masked else {}))
    assert generator.decoder.sizes.source_length == (32 if make is t5 else 24)
    assert len(generator.executors) <= 2


@pytest.mark.parametrize("how", [{}, {"tokens_per_call": 3}, {"in_flight": 2}])
def test_embeddings_begin_what_tokens_go_on_with(how):
    model = llama()
    embeds = model.get_input_embeddings()(tokens(6)).detach()
    generator = generation_model(to_pipelined(model, TWO), **how)
    assert_plain(model, generator, inputs_embeds=embeds)
    assert_plain(model, generator, inputs_embeds=embeds * 1.5, attention_mask=torch.ones(2, 6, dtype=torch.long))
    assert_plain(model, generator, tokens(6))


def test_embeddings_of_a_source():
    model = t5()
    embeds = model.get_input_embeddings()(tokens(6)).detach()
    assert_plain(model, generation_model(to_pipelined(model, FOUR)), inputs_embeds=embeds)


@pytest.mark.parametrize("how", [{}, {"tokens_per_call": 3}])
@pytest.mark.parametrize("asked", [{}, {"negative_prompt_ids": tokens(4, 1)}, {"use_cache": False}])
def test_guidance_runs_a_second_sequence(how, asked):
    model = llama()
    generator = generation_model(to_pipelined(model, TWO), **how)
    for scale in (1.5, 3.0):
        assert_plain(model, generator, tokens(6), guidance_scale=scale, **asked)


def phi3():
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}
    config = transformers.Phi3Config(
        **SMALL,
        **{"vocab_size": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.3},
        **{"max_position_embeddings": 64, "original_max_position_embeddings": 10},
        rope_parameters={**rope, "original_max_position_embeddings": 10, "rope_theta": 10000.0},
    )
    return transformers.Phi3ForCausalLM(config).eval()


@pytest.mark.parametrize("how", [{}, {"tokens_per_call": 3}, {"in_flight": 2}])
def test_a_model_that_begins_a_new_cache_is_refused_there_and_nowhere_else(how):
    model = phi3()
    generator = generation_model(to_pipelined(model, TWO), max_length=32, prefill_chunk_size=16, **how)
    assert_plain(model, generator, tokens(5))
    assert_plain(model, generator, tokens(12))
    with pytest.raises(GenerationModeError, match="`Phi3ForCausalLM` begins a new cache at 11 tokens"):
        generator.generate(tokens(9), **NEW)


def test_every_class_of_transformers_that_prepares_its_steps_is_listed():
    """The page of generation says of each what becomes of it: a new one has to be looked at."""
    page = (Path(__file__).parents[3] / "docs/design/generation.md").read_text(encoding="utf-8")
    defined = re.compile(r"^class (\w+)\(|^    def prepare_inputs_for_generation\(", re.MULTILINE)
    section = page.partition("## Models that prepare")[2].partition("\n## ")[0]
    found, listed = set(), set(re.findall(r"`(\w+)`", section))
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        name = None
        for match in defined.finditer(file.read_text(encoding="utf-8")):
            found |= set() if match[1] else {name}
            name = match[1] or name
    assert len(found) > 50
    assert not found - listed, f"not on the page: {sorted(found - listed)}"


def test_no_value_is_read_to_see_what_is_cached(monkeypatch):
    model = llama()
    forward = type(model.model.embed_tokens).forward

    def real_values_alone(self, ids):
        assert not (type(ids) is torch.Tensor and ids.shape == (1, 1)), "a real forward of one token"
        return forward(self, ids)

    monkeypatch.setattr(type(model.model.embed_tokens), "forward", real_values_alone)
    generation_model(to_pipelined(model, TWO)).generate(tokens(6), **NEW)


@pytest.mark.parametrize("make", [llama, t5])
@pytest.mark.parametrize("asked", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_hidden_states_and_attentions_of_each_step(make, asked):
    model = make()
    model.set_attn_implementation("eager")
    config = TWO if make is llama else FOUR
    options = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True, **asked}
    generator = generation_model(to_pipelined(model, config), max_length=20, prefill_chunk_size=4)
    for length in (6, 9):
        ours = generator.generate(tokens(length), **NEW, **options)
        theirs = model.generate(tokens(length), **NEW, **options)
        assert torch.equal(ours.sequences, theirs.sequences)
        for name in ("hidden_states", "attentions", "decoder_hidden_states", "decoder_attentions", "cross_attentions"):
            wanted, found = getattr(theirs, name, None), getattr(ours, name, None)
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
        for name in ("encoder_hidden_states", "encoder_attentions"):
            torch.testing.assert_close(getattr(ours, name, None), getattr(theirs, name, None), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("how", [{"tokens_per_call": 3}, {"in_flight": 2}])
def test_loops_of_several_tokens_keep_logits_alone(how):
    generator = generation_model(to_pipelined(llama(), TWO), **how)
    with pytest.raises(GenerationModeError, match="`output_hidden_states` and .* are of each step"):
        generator.generate(tokens(6), output_hidden_states=True, return_dict_in_generate=True, **NEW)
