# SPDX-License-Identifier: Apache-2.0
"""Generation on ranks against the plain model's: tokens, scores and random numbers, on two and four processes."""

import pytest
import rank_generation
import torch
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import GenerationModeError, IncompatibleIPUConfigError
from ranks import needs_the_engine, run_ranks

REFUSED = {
    "batch": "CacheError: `in_flight=2` groups cannot share a batch of 3 evenly",
    "prompt": "RankMismatchError: the prompt differs between ranks",
    "length": "RankMismatchError: `max_.*` differs between ranks: .* on rank 0, .* on rank 1",
    "use_cache": "GenerationModeError: `LlamaForCausalLM` runs all tokens in each step",
    "guidance_scale": "GenerationModeError: `guidance_scale` runs the model once more in each step",
    "hidden_states": "GenerationModeError: `output_hidden_states` and `output_attentions` are of each step",
    "world": "IncompatibleIPUConfigError: there are 2 ranks, and .* are 4 IPUs",
}


def assert_equal(found):
    assert [found[name] for name in ("greedy", "ending", "sampled")] == [[], [], []]
    assert found["stopped early"] and found["captures"] == 2


@pytest.mark.turns(3)
def test_two_ranks_generate_as_the_plain_model_and_refuse_what_they_do_not():
    first, second = run_ranks(2, rank_generation.two_ranks)
    for found in (first, second):
        assert_equal(found["llama"])
        held, whole = found["llama"]["cache"]
        assert held == whole / 2
        assert found["beams"] == []
        assert found["trained"]["is_equal"]
        for name, message in REFUSED.items():
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(found["refused"][name])
    assert first["trained"]["returns"] and not second["trained"]["returns"]
    # The prompt, each step's tokens, and the end.
    assert (first["trained"]["streamed"], second["trained"]["streamed"]) == (2 + rank_generation.NEW_TOKENS, 0)


@pytest.mark.turns(16)
@pytest.mark.parametrize(("kind", "in_flight"), [("gpt2", 4), ("llama", 1), ("llama", 2)])
def test_four_ranks_generate_as_the_plain_model(kind, in_flight):
    for found in run_ranks(4, rank_generation.equal_runs, kind, 4, in_flight):
        assert_equal(found)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes 2 CUDA devices, one a rank")
def test_two_ranks_with_a_card_each_generate_as_the_plain_model():
    assert run_ranks(2, rank_generation.same_on_cards) == [True, True]


@pytest.mark.turns(16)
def test_two_ranks_generate_with_encoders_and_each_keeps_the_attentions_of_its_layers():
    results = run_ranks(2, rank_generation.encoders)
    for name in (f"{kind}, {beams} beams" for kind in ("t5", "whisper") for beams in (1, 2)):
        assert all(found[name] for found in results), name
        first, second = (found[f"{name}, here"] for found in results)
        # Keys and values of two attentions of a layer to its own tokens, and of two to the encoder.
        assert first == [True, True, False, False] * 2 and second == [False, False, True, True] * 2


@needs_the_engine
def test_several_tokens_a_call_and_several_stages_an_ipu_are_refused_on_ranks():
    llama = to_pipelined(rank_generation.make("llama"), IPUConfig())
    with pytest.raises(GenerationModeError, match="`tokens_per_call=4` lets a host wait for its devices less often"):
        generation_model(llama, engine="distributed", tokens_per_call=4)
    twice = to_pipelined(rank_generation.make("llama"), IPUConfig(layers_per_ipu=[4], inference_stages_per_ipu=2))
    with pytest.raises(IncompatibleIPUConfigError, match="`inference_stages_per_ipu=2` has each token pass a rank"):
        generation_model(twice, engine="distributed")
