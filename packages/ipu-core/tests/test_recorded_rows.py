# SPDX-License-Identifier: Apache-2.0
"""Decode steps that are recorded with the choice of tokens give the plain model's; what is not recorded is named.

`Tape` stands in for CUDA graphs: it runs recorded operations again, and refuses a look of the host while it records.
"""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.generation import loops
from ipu_core.generation.recorded_rows import Choice, obstacle_to_choosing
from ipu_core.runtime.recording import Recorded
from ipu_core.upstream import CACHE
from simulated_devices import simulating
from standing_in import Tape
from test_device_loops import BART, BART_LAYERS, both
from test_generation import EOS, HEADS, SIZE, lively
from torch.utils import _pytree as pytree
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process, stopping_criteria

pytestmark = pytest.mark.usefixtures("no_plugins")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 12, "top_p": 0.9}


@pytest.fixture(scope="module")
def llama():
    return lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))


@pytest.fixture
def recorder(monkeypatch):
    made = Tape()
    monkeypatch.setattr("ipu_core.runtime.recording.recorder_for", lambda device: made)
    monkeypatch.setattr("ipu_core.generation.step_devices.recorder_for", lambda device: made)
    return made


@pytest.fixture
def looks(monkeypatch):
    """Count the steps between two looks of the host."""
    seen, looked = [], loops._surplus
    monkeypatch.setattr(loops, "_surplus", lambda ends: seen.append(len(ends)) or looked(ends))
    return seen


@pytest.fixture
def ids():
    return torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))


def recorded(model, **options):
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], record=True))
    return generation_model(pipelined, max_length=32, prefill_chunk_size=8, **options)


ROWS = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.5, "remove_invalid_values": True},
    {"do_sample": True},
    SAMPLING,
    {"do_sample": True, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01, "renormalize_logits": True},
]


@pytest.mark.parametrize("options", ROWS, ids=",".join)
def test_recorded_choices_are_the_plain_models(llama, ids, recorder, looks, options):
    generator = recorded(llama)
    for prompt in (ids, ids + 1, ids + 2):
        wanted, found = both(llama, generator, prompt, max_new_tokens=19, eos_token_id=None, **options)
        assert torch.equal(found, wanted)
    assert looks == 3 * [8, 8, 3]
    assert recorder.recorded == 1  # for all calls: tokens, caches and weights stay where they are
    assert recorder.replayed == 3 * (19 - 3) - 2  # but a prompt, two steps that are compared, and two to begin with


def test_sequences_end_in_the_middle_of_a_call(llama, ids, recorder):
    generator = recorded(llama)
    plain = llama.generate(ids, max_new_tokens=19, do_sample=False, eos_token_id=None)[:, 5:]
    for first, last in ((6, 9), (7, 8), (3, 12), (4, 4)):
        ends = {"eos_token_id": [plain[0, first].item(), plain[1, last].item()]}
        for options in ({"do_sample": False}, SAMPLING):
            wanted, found = both(llama, generator, ids, max_new_tokens=19, **ends, **options)
            assert torch.equal(found, wanted)
    assert recorder.replayed > 0


def test_padding_on_the_left_is_hidden(llama, ids, recorder):
    generator = recorded(llama)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for options in ({"do_sample": False}, SAMPLING):
        more = {"attention_mask": mask, "pad_token_id": 0, "eos_token_id": EOS}
        wanted, found = both(llama, generator, ids * mask, max_new_tokens=17, **more, **options)
        assert torch.equal(found, wanted)
    assert recorder.replayed > 0


def test_other_options_of_a_choice_are_recorded_anew(llama, ids, recorder):
    generator = recorded(llama)
    for temperature in (0.7, 0.7, 1.5, 1.5):
        options = {**SAMPLING, "temperature": temperature, "eos_token_id": None}
        wanted, found = both(llama, generator, ids, max_new_tokens=12, **options)
        assert torch.equal(found, wanted)
    assert recorder.recorded == 2


def test_what_was_returned_stays_as_it_is(llama, ids, recorder):
    generator = recorded(llama)
    kept = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    results = [
        both(llama, generator, ids + i, max_new_tokens=12, eos_token_id=None, **SAMPLING, **kept) for i in (0, 1)
    ]
    for wanted, found in results:
        assert torch.equal(found.sequences, wanted.sequences)
        for name in ("scores", "logits"):
            torch.testing.assert_close(torch.stack(found[name]), torch.stack(wanted[name]), atol=1e-5, rtol=1e-5)
    again = generator.generate(results[0][1].sequences[:, :9], max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(again[:, :9], results[0][0].sequences[:, :9])


def test_a_second_turn_goes_on_in_the_cache(llama, ids, recorder):
    generator = recorded(llama)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    first = [which.generate(ids, return_dict_in_generate=True, **options) for which in (llama, generator)]
    assert first[1][CACHE].get_seq_length() == first[0][CACHE].get_seq_length()
    more = torch.cat([first[0].sequences, ids[:, :2]], dim=1)
    second = [
        which.generate(more, **{CACHE: result[CACHE]}, **options)
        for which, result in zip((llama, generator), first, strict=True)
    ]
    assert torch.equal(*second)


class Own(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class Never(transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


UNRECORDED = [
    ({"no_repeat_ngram_size": 2}, {}, "`NoRepeatNGramLogitsProcessor` looks at more than logits"),
    ({"min_new_tokens": 4, "eos_token_id": EOS}, {}, "`MinLengthLogitsProcessor` looks at more than logits"),
    ({"logits_processor": transformers.LogitsProcessorList([Own()])}, {}, "`Own` looks at more than logits"),
    ({"stopping_criteria": transformers.StoppingCriteriaList([Never()])}, {}, "`Never` looks at tokens, or at the"),
    ({"use_cache": False}, {}, "there is no cache"),
    ({}, {"in_flight": 2}, "`in_flight=2` groups choose theirs one after the other"),
    ({"num_beams": 2}, {}, "beams are chosen step by step"),
]


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    UNRECORDED,
    ids=["ngrams", "shortest", "own", "criterion", "cache", "groups", "beams"],
)
def test_what_is_not_recorded_is_named_once_and_runs_as_before(llama, ids, recorder, caplog, asked, options, said):
    generator = recorded(llama, **options)
    for _ in range(2):
        wanted, found = both(llama, generator, ids, max_new_tokens=9, do_sample=False, **asked)
        assert torch.equal(found, wanted)
    named = f"choosing tokens of PipelinedLlamaForCausalLM is not recorded, and runs as before: {said}"
    assert caplog.text.count(named) == 1


def test_an_encoder_decoders_choices_are_recorded(ids, recorder, looks):
    model = lively(BartForConditionalGeneration(BartConfig(**BART, **BART_LAYERS)))
    model.generation_config.update(decoder_start_token_id=2, forced_eos_token_id=None)
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1], record=True)), max_length=32)
    for options in ({"do_sample": False}, SAMPLING):
        wanted, found = both(model, generator, ids, max_new_tokens=19, eos_token_id=EOS, **options)
        assert torch.equal(found, wanted)
    assert recorder.replayed > 0 and max(looks) == 8


class Watching:
    """Notes copies between devices in what it is given to record, and calls it again."""

    def __init__(self, simulation):
        self.simulation, self.copies, self.recorded = simulation, [], 0

    def record(self, function):
        before = self.simulation.copies.copy()
        result = function()
        self.copies += [self.simulation.copies - before]
        self.recorded += 1

        def again():
            for kept, made in zip(pytree.tree_leaves(result), pytree.tree_leaves(function()), strict=True):
                kept.copy_(made)

        return Recorded(result, again)


def test_a_recording_copies_nothing_from_the_memory_of_the_host(ids, monkeypatch, caplog):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(ids, **options)
    with simulating(monkeypatch) as simulation:
        made = Watching(simulation)
        monkeypatch.setattr("ipu_core.runtime.recording.recorder_for", lambda device: made)
        monkeypatch.setattr("ipu_core.generation.step_devices.recorder_for", lambda device: made)
        config = IPUConfig(layers_per_ipu=[1, 1], record=True, devices=["meta:0", "meta:0"])
        generator = generation_model(to_pipelined(model, config), max_length=32, prefill_chunk_size=8)
        found = generator.generate(ids, **options)
    assert torch.equal(found, wanted)
    assert made.recorded == 1 and not made.copies[0]
    assert "the prompt is on cpu, and steps run on meta:0: move model and prompt there" in caplog.text


@pytest.mark.parametrize("options", [{}, {"in_flight": 2}], ids=["alone", "groups"])
def test_stages_on_several_cards_are_recorded_each_on_its_own(options, ids, monkeypatch, caplog):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    asked = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    prompts = ids, ids + 1
    wanted = [model.generate(prompt, **asked) for prompt in prompts]
    with simulating(monkeypatch) as simulation:
        made = {}
        at = lambda device: made.setdefault(device, Watching(simulation))  # noqa: E731
        monkeypatch.setattr("ipu_core.runtime.recording.recorder_for", at)
        monkeypatch.setattr("ipu_core.generation.step_devices.recorder_for", at)
        config = IPUConfig(layers_per_ipu=[1, 1], record=True, devices=["meta:0", "meta:1"])
        generator = generation_model(to_pipelined(model, config), max_length=32, prefill_chunk_size=8, **options)
        found = [generator.generate(prompt, **asked) for prompt in prompts]
    assert all(map(torch.equal, found, wanted))
    watching = [made[torch.device("meta", i)] for i in (0, 1)]
    assert [each.recorded for each in watching] == [len(generator.decoders)] * 2
    assert not any(copies for each in watching for copies in each.copies), "a recording copied between devices"
    assert "choosing tokens of PipelinedLlamaForCausalLM is not recorded, and runs as before: its stages" in caplog.text


def test_tokens_one_by_one_are_upstreams_loop(llama, ids, recorder, looks):
    generator = recorded(llama, tokens_per_call=1)
    wanted, found = both(llama, generator, ids, max_new_tokens=9, eos_token_id=None, **SAMPLING)
    assert torch.equal(found, wanted)
    assert looks == [] and recorder.replayed > 0


def test_hidden_states_are_upstreams_loop(llama, ids, recorder, looks):
    asked = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True}
    found = recorded(llama).generate(ids, **asked)
    assert len(found.hidden_states) == 5 and looks == []


def test_logits_that_are_no_numbers_are_refused(llama, ids, recorder):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    generator = recorded(model)
    generator.generate(ids, max_new_tokens=12, do_sample=True, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        generator.generate(ids, max_new_tokens=12, do_sample=True, eos_token_id=None)


def test_tokens_are_drawn_as_torch_draws_them():
    choice = Choice(processors=[], is_drawn=True, ends=None, pad=None, longest=9, key=())
    scores = torch.randn(3, 50).masked_fill(torch.rand(3, 50) < 0.5, -torch.inf)
    for seed in range(20):
        torch.manual_seed(seed)
        wanted, then = torch.multinomial(scores.softmax(-1), 1).squeeze(1), torch.rand(())
        torch.manual_seed(seed)
        found, is_valid = choice.tokens(scores)
        assert torch.equal(found, wanted) and torch.equal(torch.rand(()), then) and is_valid
    assert not choice.tokens(scores.fill_(torch.nan))[1]


def test_every_processor_that_waits_or_counts_is_an_obstacle():
    longest = stopping_criteria.MaxLengthCriteria(9)
    repeated = logits_process.RepetitionPenaltyLogitsProcessor
    assert obstacle_to_choosing([repeated(1.2)], [longest]) == ""
    assert "leaves the prompt out" in obstacle_to_choosing([repeated(1.2, 3)], [longest])
    assert "looks at more" in obstacle_to_choosing([logits_process.EtaLogitsWarper(0.1)], [longest])
    assert "its stopping criteria are none" in obstacle_to_choosing([], [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA devices")
@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLING], ids=",".join)
def test_a_gpu_records_choices(options):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS))).cuda()
    prompt = torch.randint(8, 60, (2, 5)).cuda()
    generator = recorded(model)
    for _ in range(3):
        wanted, found = both(model, generator, prompt, max_new_tokens=19, eos_token_id=EOS, **options)
        assert torch.equal(found, wanted)
