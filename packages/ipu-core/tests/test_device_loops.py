# SPDX-License-Identifier: Apache-2.0
"""A device loop, which looks at its tokens once in several steps, gives all that upstream's loop gives at each."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import GenerationModeError
from ipu_core.generation import loops
from ipu_core.upstream import CACHE
from test_generation import EOS, HEADS, SIZE, lively
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

BART = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
BART_LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
KEPT = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@pytest.fixture(scope="module")
def llama():
    return lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))


@pytest.fixture(scope="module")
def bart():
    model = lively(BartForConditionalGeneration(BartConfig(**BART, **BART_LAYERS)))
    model.generation_config.update(decoder_start_token_id=2, forced_bos_token_id=9, forced_eos_token_id=EOS)
    return model


@pytest.fixture(scope="module", params=["llama", "bart"])
def models(request):
    """Return a model, its generator of rows and that of three beams, both of four tokens per call."""
    model = request.getfixturevalue(request.param)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1]))
    options = {"batch_size": 2, "max_length": 24, "prefill_chunk_size": 4, "tokens_per_call": 4}
    return model, *(generation_model(pipelined, num_beams=beams, **options) for beams in (1, 3))


@pytest.fixture
def ids():
    return torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))


def both(model, generator, ids, **options):
    """Generate with both from the same random numbers; give what they do, and the next random number of each."""
    results = []
    for which in (model, generator):
        torch.manual_seed(2)
        results += which.generate(ids, **options), torch.rand(())
    wanted, next_wanted, found, next_found = results
    assert torch.equal(next_found, next_wanted), "other random numbers were drawn"
    return wanted, found


def only_these(batch, ids):
    return [7, 20, 30, 40]


ROWS = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.7, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.3},
    {"do_sample": True, "min_p": 0.05, "typical_p": 0.9, "eta_cutoff": 0.01, "epsilon_cutoff": 0.01},
    {"do_sample": False, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "renormalize_logits": True},
    {"do_sample": False, "suppress_tokens": [17, 18], "begin_suppress_tokens": [11], "bad_words_ids": [[11, 12], [13]]},
    {"do_sample": False, "sequence_bias": {(14, 15): 9.0, (16,): 4.0}, "exponential_decay_length_penalty": (3, 1.5)},
    {"do_sample": False, "remove_invalid_values": True, "prefix_allowed_tokens_fn": only_these},
    {"do_sample": False, "use_cache": False},
]
BEAMS = [
    {"do_sample": False},
    {"do_sample": False, "early_stopping": True, "num_return_sequences": 2},
    {"do_sample": False, "early_stopping": "never", "length_penalty": 1.7, "no_repeat_ngram_size": 2},
    {"do_sample": True, "top_k": 12, "length_penalty": -0.5},
    {"do_sample": False, "use_cache": False},
]


@pytest.mark.parametrize("options", ROWS, ids=",".join)
def test_rows_are_upstreams(models, ids, options):
    model, rows, _ = models
    for eos in (EOS, [EOS, *range(20, 26)]):
        wanted, found = both(model, rows, ids, max_new_tokens=11, eos_token_id=eos, **options)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", BEAMS, ids=",".join)
def test_beams_are_upstreams(models, ids, options):
    model, _, beams = models
    for eos in (EOS, [EOS, *range(20, 26)]):
        wanted, found = both(model, beams, ids, max_new_tokens=11, num_beams=3, eos_token_id=eos, **options)
        assert torch.equal(found, wanted)


def test_penalties_of_an_encoders_tokens(bart, ids):
    generator = generation_model(to_pipelined(bart, IPUConfig(layers_per_ipu=[-1])), tokens_per_call=4)
    options = {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2, "do_sample": False}
    wanted, found = both(bart, generator, ids, max_new_tokens=9, **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_logits_and_origins(models, ids, num_beams):
    model, rows, beams = models
    generator = rows if num_beams == 1 else beams
    options = {"max_new_tokens": 11, "num_beams": num_beams, "eos_token_id": [EOS, *range(20, 26)], "do_sample": False}
    wanted, found = both(model, generator, ids, **options, **KEPT)
    assert type(found) is type(wanted)
    assert torch.equal(found.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(wanted[name])
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(wanted[name]), atol=1e-5, rtol=1e-5)
    if num_beams > 1:
        assert torch.equal(found.beam_indices, wanted.beam_indices)
        torch.testing.assert_close(found.sequences_scores, wanted.sequences_scores, atol=1e-5, rtol=1e-5)


def test_sequences_that_end_in_the_middle_of_a_call(models, ids):
    model, rows, _ = models
    plain = model.generate(ids, max_new_tokens=11, do_sample=False, eos_token_id=None)
    start = plain.shape[1] - 11
    ends = plain[0, start + 1].item(), plain[1, start + 5].item()
    wanted, found = both(model, rows, ids, max_new_tokens=11, do_sample=False, eos_token_id=list(ends))
    assert torch.equal(found, wanted)
    assert wanted.shape[1] < plain.shape[1]
    assert (wanted == 0).any(), "no pads"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_second_turn_goes_on_in_the_cache(llama, ids, num_beams):
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1]))
    generator = generation_model(pipelined, max_length=32, tokens_per_call=4)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    first = [
        which.generate(ids[:1], eos_token_id=[*range(8, 40)], return_dict_in_generate=True, **options)
        for which in (llama, generator)
    ]
    assert torch.equal(first[0].sequences, first[1].sequences)
    assert first[1][CACHE].get_seq_length() == first[0][CACHE].get_seq_length()
    if num_beams == 1:
        more = torch.cat([first[0].sequences, ids[1:]], dim=1)
        second = [
            which.generate(more, **{CACHE: result[CACHE]}, **options)
            for which, result in zip((llama, generator), first, strict=True)
        ]
        assert torch.equal(*second)


def test_criteria_are_asked_for_each_token(models, ids):
    model, rows, _ = models

    class Even(transformers.StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, 6:].sum(dim=1) % 9 == 0

    criteria = transformers.StoppingCriteriaList([Even()])
    wanted, found = both(model, rows, ids, max_new_tokens=12, do_sample=False, stopping_criteria=criteria)
    assert torch.equal(found, wanted)


def test_a_streamer_gets_each_token(models, ids):
    model, rows, _ = models

    class Kept(transformers.generation.BaseStreamer):
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    kept = [Kept(), Kept()]
    for which, streamer in zip((model, rows), kept, strict=True):
        which.generate(ids, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert kept[0].values == kept[1].values


def test_the_host_looks_once_a_call(llama, ids, monkeypatch):
    generator = generation_model(to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1])), tokens_per_call=4)
    looks = []
    looked = loops._surplus
    monkeypatch.setattr(loops, "_surplus", lambda ends: looks.append(len(ends)) or looked(ends))
    generator.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert looks == [4, 4, 2]


def test_no_tokens_per_call_are_refused(llama):
    with pytest.raises(ValueError, match="tokens_per_call=0"):
        generation_model(to_pipelined(llama, IPUConfig(layers_per_ipu=[2])), tokens_per_call=0)


def test_a_loop_of_ones_own_beside_ours_is_refused(models, ids):
    with pytest.raises(GenerationModeError, match="custom_generate"):
        models[1].generate(ids, max_new_tokens=2, custom_generate=lambda *args, **kwargs: None)


def test_processes_in_step_are_refused(models, ids):
    with pytest.raises(GenerationModeError, match="synced_gpus"):
        models[1].generate(ids, max_new_tokens=2, synced_gpus=True)
