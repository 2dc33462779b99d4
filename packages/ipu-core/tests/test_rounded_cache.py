# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept as integers of 8 bits give the tokens of a plain model whose cache rounds them."""

import pytest
import torch
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import GenerationModeError
from ipu_core.upstream import CACHE
from test_generation import HEADS, SIZE, lively
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
)

BART = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32}
BART_LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


class RoundingCache(DynamicCache):
    """Upstream's cache of states that were rounded."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(rounded(keys), rounded(values), *args, **kwargs)


def rounded(states):
    scales = states.abs().amax(-1, keepdim=True) / 127
    return (states / scales).round() * scales


@pytest.fixture(scope="module")
def llama():
    return lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.turns(3)
@pytest.mark.parametrize("layers_per_ipu", [[2], [1, 1]])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 12}], ids=",".join)
def test_tokens_are_those_of_a_rounding_cache(llama, ids, layers_per_ipu, options):
    generator = generation_model(to_pipelined(llama, IPUConfig(layers_per_ipu=layers_per_ipu)), cache_dtype="int8")
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, **options}
    torch.manual_seed(5)
    wanted = llama.generate(ids, **{CACHE: RoundingCache(config=llama.config)}, **options)
    torch.manual_seed(5)
    assert torch.equal(generator.generate(ids, **options), wanted)


def test_what_an_encoder_gave_is_rounded_too(ids):
    model = lively(BartForConditionalGeneration(BartConfig(**BART, **BART_LAYERS)))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1])), cache_dtype="int8")
    options = {"max_new_tokens": 10, "do_sample": False}
    cache = EncoderDecoderCache(RoundingCache(config=model.config), RoundingCache(config=model.config))
    assert torch.equal(generator.generate(ids, **options), model.generate(ids, **{CACHE: cache}, **options))


def test_it_takes_about_a_quarter_of_the_memory(llama, ids):
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[2]))
    held = []
    for dtype in (None, "int8"):
        generator = generation_model(pipelined, cache_dtype=dtype, max_length=16)
        generator.generate(ids, max_new_tokens=4, do_sample=False)
        held.append(generator.decoder.num_bytes)
    size = SIZE["hidden_size"] // HEADS["num_attention_heads"]
    assert held[1] / held[0] == (size + 4) / (4 * size)


def test_a_second_turn_goes_on_in_it(llama, ids):
    generator = generation_model(
        to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1])), cache_dtype="int8", max_length=24
    )
    options = {"do_sample": False, "eos_token_id": None}
    first = generator.generate(ids, max_new_tokens=4, return_dict_in_generate=True, **options)
    more = torch.cat([first.sequences, ids], dim=1)
    found = generator.generate(more, **{CACHE: first[CACHE]}, max_new_tokens=5, **options)
    assert torch.equal(found, generator.generate(more, max_new_tokens=5, **options))


def test_other_dtypes_and_no_cache_are_refused(llama, ids):
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[2]))
    with pytest.raises(ValueError, match="`cache_dtype='int4'`"):
        generation_model(pipelined, cache_dtype="int4")
    with pytest.raises(GenerationModeError, match="`use_cache=False` keeps no keys and values"):
        generation_model(pipelined, cache_dtype="int8").generate(ids, max_new_tokens=2, use_cache=False)
