# SPDX-License-Identifier: Apache-2.0
"""Groups of sequences that go through the stages one behind the other give what upstream gives of the whole batch."""

import collections

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import CacheError, GenerationModeError
from ipu_core.runtime.replay import Replay
from ipu_core.schedule import FORWARD, Action
from ipu_core.upstream import CACHE
from test_device_loops import BEAMS, KEPT, ROWS, bart, both, llama  # noqa: F401
from test_generation import EOS, HEADS, SIZE, lively
from transformers import LlamaConfig, LlamaForCausalLM

ENDS = [EOS, *range(20, 26)]


@pytest.fixture(scope="module", params=["llama-4", "bart-1"])
def models(request):
    """Return a model, its generator of rows and that of three beams, both of two groups of two sequences."""
    name, tokens_per_call = request.param.split("-")
    model = request.getfixturevalue(name)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1]))
    options = {"batch_size": 4, "max_length": 24, "prefill_chunk_size": 4, "tokens_per_call": int(tokens_per_call)}
    return model, *(generation_model(pipelined, num_beams=beams, in_flight=2, **options) for beams in (1, 3))


@pytest.fixture
def ids():
    return torch.randint(8, 60, (4, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [row for row in ROWS if "prefix_allowed_tokens_fn" not in row], ids=",".join)
def test_rows_are_upstreams(models, ids, options):
    model, rows, _ = models
    wanted, found = both(model, rows, ids, max_new_tokens=11, eos_token_id=ENDS, **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", BEAMS, ids=",".join)
def test_beams_are_upstreams(models, ids, options):
    model, _, beams = models
    wanted, found = both(model, beams, ids, max_new_tokens=11, num_beams=3, eos_token_id=ENDS, **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_logits_and_origins(models, ids, num_beams):
    model, rows, beams = models
    options = {"max_new_tokens": 11, "num_beams": num_beams, "eos_token_id": ENDS, "do_sample": False}
    wanted, found = both(model, rows if num_beams == 1 else beams, ids, **options, **KEPT)
    assert type(found) is type(wanted)
    assert torch.equal(found.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(wanted[name])
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(wanted[name]), atol=1e-5, rtol=1e-5)
    if num_beams > 1:
        assert torch.equal(found.beam_indices, wanted.beam_indices)
        torch.testing.assert_close(found.sequences_scores, wanted.sequences_scores, atol=1e-5, rtol=1e-5)


def test_penalties_of_an_encoders_tokens(bart, ids):  # noqa: F811
    generator = generation_model(to_pipelined(bart, IPUConfig(layers_per_ipu=[-1])), tokens_per_call=4, in_flight=2)
    options = {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2, "do_sample": False}
    wanted, found = both(bart, generator, ids, max_new_tokens=9, **options)
    assert torch.equal(found, wanted)


def test_padded_prompts(models, ids):
    model, rows, _ = models
    mask = torch.ones_like(ids)
    for row, padded in enumerate((2, 0, 1, 3)):
        mask[row, :padded] = 0
    wanted, found = both(model, rows, ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)


def test_a_second_turn_goes_on_in_the_caches(llama, ids):  # noqa: F811
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1]))
    generator = generation_model(pipelined, max_length=32, tokens_per_call=4, in_flight=4)
    options = {"do_sample": False, "eos_token_id": None}
    first = [
        which.generate(ids, max_new_tokens=6, return_dict_in_generate=True, **options) for which in (llama, generator)
    ]
    assert first[1][CACHE].get_seq_length() == first[0][CACHE].get_seq_length()
    more = torch.cat([first[0].sequences, ids], dim=1)
    wanted, found = (
        which.generate(more, **{CACHE: result[CACHE]}, max_new_tokens=5, **options)
        for which, result in zip((llama, generator), first, strict=True)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", [{"weights": "int8"}, {"cache_dtype": "int8"}], ids=",".join)
def test_rounded_weights_and_caches_are_those_of_one_group(llama, ids, options):  # noqa: F811
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1]))
    found, wanted = (
        generation_model(pipelined, in_flight=groups, **options).generate(ids, max_new_tokens=8, do_sample=False)
        for groups in (2, 1)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("groups", "stages"), [(2, 2), (4, 2), (2, 1)])
def test_groups_run_one_behind_the_other_as_their_schedule_says(groups, stages, llama, ids, monkeypatch):  # noqa: F811
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[-1] * stages))
    generator = generation_model(pipelined, max_length=24, tokens_per_call=4, in_flight=groups)
    done = []
    plain = Replay.by_stage

    def by_stage(line):
        work, stage = plain(line), 0
        while True:
            done.append((stage, line))
            try:
                next(work)
            except StopIteration as end:
                return end.value
            yield
            stage += 1

    monkeypatch.setattr(Replay, "by_stage", by_stage)
    generator.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    schedule = generator.schedule(4)
    last = done[-4 * groups * schedule.num_stages :]
    lines = list(dict.fromkeys(line for _, line in last))
    tokens = collections.Counter()
    found = [[] for _ in schedule.actions]
    for stage, line in last:
        group = lines.index(line)
        found[schedule.stage_ipus[stage]].append(Action(stage, FORWARD, tokens[stage, group] * groups + group))
        tokens[stage, group] += 1
    assert tuple(map(tuple, found)) == schedule.actions


def test_groups_share_programs_and_their_code(ids):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], compile=True))
    generator = generation_model(pipelined, in_flight=2)
    wanted, found = both(model, generator, ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)
    assert generator.decoder.num_captures == 2


def test_what_cannot_be_shared_or_may_look_at_other_rows_is_refused(llama, ids):  # noqa: F811
    pipelined = to_pipelined(llama, IPUConfig(layers_per_ipu=[1, 1]))
    with pytest.raises(ValueError, match="in_flight=0"):
        generation_model(pipelined, in_flight=0)
    with pytest.raises(CacheError, match="`in_flight=3` groups cannot share a batch of 4 evenly"):
        generation_model(pipelined, in_flight=3).generate(ids, max_new_tokens=2)
    generator = generation_model(pipelined, in_flight=2)

    class Own(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores - scores.mean(dim=0)

    with pytest.raises(GenerationModeError, match="`Own` may look at several rows at once.*`in_flight=2`"):
        generator.generate(ids, max_new_tokens=2, logits_processor=transformers.LogitsProcessorList([Own()]))
    with pytest.raises(GenerationModeError, match="`in_flight=2` and .* asks for another one"):
        generator.generate(ids, max_new_tokens=2, custom_generate=lambda *args, **kwargs: None)
    with pytest.raises(GenerationModeError, match="`PrefixConstrainedLogitsProcessor` may"):
        generator.generate(ids, max_new_tokens=2, prefix_allowed_tokens_fn=lambda batch, tokens: [batch])
    watermark = transformers.SynthIDTextWatermarkingConfig(keys=[654, 400], ngram_len=3)
    with pytest.raises(GenerationModeError, match="`SynthIDTextWatermarkLogitsProcessor` may"):
        generator.generate(ids, max_new_tokens=2, watermarking_config=watermark, do_sample=True)
