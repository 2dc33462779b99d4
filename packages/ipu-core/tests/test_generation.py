# SPDX-License-Identifier: Apache-2.0
"""Generation is upstream's: options, outputs and callables work, caches are reused, what does not fit is refused."""

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, to_pipelined
from ipu_core.errors import CacheError, GenerationModeError, IncompatibleIPUConfigError
from ipu_core.upstream import CACHE
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIG = IPUConfig(layers_per_ipu=[1, 1])
EOS = 7


def lively(model):
    """Return a model weights with which it does not say one token for ever."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.update(pad_token_id=0, eos_token_id=EOS, bos_token_id=1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))


@pytest.fixture(scope="module")
def pipelined(model):
    return to_pipelined(model, CONFIG)


@pytest.fixture(scope="module")
def generator(pipelined):
    return generation_model(pipelined, batch_size=2, num_beams=1, max_length=24, prefill_chunk_size=4)


@pytest.fixture
def ids():
    return torch.randint(8, 60, (2, 5), generator=torch.Generator().manual_seed(1))


def same(model, generator, *args, **options):
    """Return whether both generate the same, from the same random numbers, and give what they do."""
    results = []
    for which in (model, generator):
        torch.manual_seed(2)
        results.append(which.generate(*args, **options))
    return results


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.3},
        {"do_sample": False, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"do_sample": False, "suppress_tokens": [9, 10], "bad_words_ids": [[11, 12]]},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "prefill_chunk_size": 3},
    ],
    ids=str,
)
def test_options_are_upstreams(model, generator, ids, options):
    wanted, found = same(model, generator, ids, max_new_tokens=12, **options)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 3, "do_sample": True, "early_stopping": True}], ids=str
)
def test_beams_are_upstreams(model, pipelined, ids, options):
    wanted, found = same(model, generation_model(pipelined), ids, max_new_tokens=9, num_return_sequences=2, **options)
    assert torch.equal(found, wanted)


def test_several_sequences_of_one_prompt(model, pipelined, ids):
    wanted, found = same(model, pipelined, ids, max_new_tokens=6, num_return_sequences=3, do_sample=True)
    assert torch.equal(found, wanted)


def test_padded_prompts(model, generator, ids):
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    wanted, found = same(model, generator, ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)


def test_a_mask_that_an_earlier_call_did_not_have_is_read(ids):
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2}
    heads = {"decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = lively(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads)))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1])))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    options = {"max_new_tokens": 8, "do_sample": False}
    (wanted, found), (wanted_masked, masked) = (
        [which.generate(ids, attention_mask=given, **options) for which in (model, generator)] for given in (None, mask)
    )
    assert torch.equal(found, wanted)
    assert torch.equal(masked, wanted_masked)
    assert not torch.equal(masked, found)


def test_scores_and_logits(model, generator, ids):
    options = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    wanted, found = same(model, generator, ids, max_new_tokens=6, **options)
    assert torch.equal(found.sequences, wanted.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(wanted[name]), atol=1e-5, rtol=1e-5)
    scores = [m.compute_transition_scores(o.sequences, o.scores) for m, o in ((model, wanted), (model, found))]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


def test_a_streamer_is_fed(model, pipelined, ids):
    class Kept(transformers.generation.BaseStreamer):
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    kept = [Kept(), Kept()]
    for which, streamer in zip((model, generation_model(pipelined)), kept, strict=True):
        which.generate(ids[:1], max_new_tokens=5, do_sample=False, streamer=streamer)
    assert kept[0].values == kept[1].values
    assert kept[0].values[-1] == "end"


def test_a_callable_of_the_users_own_decodes(generator, ids):
    def twice_the_last(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        logits = model(**inputs, return_dict=True).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        return torch.cat([input_ids, token, token], -1)

    found = generator.generate(ids, max_new_tokens=2, custom_generate=twice_the_last)
    wanted = generator.generate(ids, max_new_tokens=1, do_sample=False)
    assert torch.equal(found[:, :6], wanted) and torch.equal(found[:, 5], found[:, 6])


def test_stopping_criteria_are_asked(model, generator, ids):
    def stops(input_ids, scores, **kwargs):
        return input_ids[:, -1] % 3 == 0

    wanted, found = same(model, generator, ids, max_new_tokens=12, stopping_criteria=[stops], do_sample=False)
    assert torch.equal(found, wanted)


def test_a_second_turn_goes_on_in_the_cache(model, generator, ids):
    first = generator.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    said = torch.randint(8, 60, (2, 3), generator=torch.Generator().manual_seed(5))
    prompt = torch.cat([first.sequences, said], -1)
    assert first[CACHE].get_seq_length() == 8  # the last token is not in it yet
    captures = generator.decoder.num_captures
    found = generator.generate(prompt, **{CACHE: first[CACHE]}, max_new_tokens=5, do_sample=False)
    wanted = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
    assert torch.equal(found, wanted)
    assert generator.decoder.num_captures == captures


def test_nothing_is_captured_while_it_decodes(generator, ids):
    generator.generate(ids, max_new_tokens=3, do_sample=False)
    captures = generator.decoder.num_captures
    for length in (1, 2, 4, 9):
        generator.generate(ids.repeat(1, 2)[:, :length], max_new_tokens=24 - length, do_sample=False)
    assert generator.decoder.num_captures == captures


def test_sliding_windows(ids):
    model = lively(MistralForCausalLM(MistralConfig(**SIZE, **HEADS, sliding_window=4)))
    pipelined = to_pipelined(model, CONFIG)
    for use_cache in (True, False):
        wanted, found = same(
            model, generation_model(pipelined), ids, max_new_tokens=10, do_sample=False, use_cache=use_cache
        )
        assert torch.equal(found, wanted)


def test_weights_that_change_are_read_again(ids):
    model = lively(LlamaForCausalLM(LlamaConfig(**SIZE, **HEADS)))
    pipelined = to_pipelined(model, CONFIG)
    before = pipelined.generate(ids, max_new_tokens=8, do_sample=False)
    model.load_state_dict({name: torch.flip(t, [0]) for name, t in model.state_dict().items()})
    wanted, found = same(model, pipelined, ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, before)
    model.load_state_dict({name: torch.flip(t, [0]) for name, t in model.state_dict().items()}, assign=True)
    assert torch.equal(pipelined.generate(ids, max_new_tokens=8, do_sample=False), before)


def test_stages_on_devices_of_their_own(model, ids):
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[1, 1], devices=["cpu", "cpu:0"]))
    wanted, found = same(model, pipelined, ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, wanted)


def test_the_users_model_is_as_it_was(model, pipelined, ids):
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    attributes = set(vars(model))
    generation_model(pipelined).generate(ids, max_new_tokens=2)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == state
    assert set(vars(model)) == attributes


def test_a_prompt_longer_than_the_cache_is_refused(generator, ids):
    with pytest.raises(CacheError, match=r"25 tokens and 4 new ones are 29, .* `max_length=24`"):
        generator.generate(ids.repeat(1, 5), max_new_tokens=4)


def test_more_tokens_than_the_cache_has_places_for_are_refused(generator, ids):
    turn = generator.generate(ids, max_new_tokens=12, min_new_tokens=12, return_dict_in_generate=True, do_sample=False)
    more = torch.randint(8, 60, (2, 9))
    with pytest.raises(CacheError, match=r"10 tokens after 16 in the cache are 26, and there are places for 24"):
        generator.decoder.step({"input_ids": torch.cat([more, more[:, :1]], -1), CACHE: turn[CACHE]})


def test_a_model_that_caches_nothing_runs_all_tokens_again(ids, caplog):
    config = transformers.OpenAIGPTConfig(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    model = lively(transformers.OpenAIGPTLMHeadModel(config))
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1]))
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 9}, {"do_sample": False, "use_cache": False}):
        wanted, found = same(model, generation_model(pipelined), ids, max_new_tokens=8, **options)
        assert torch.equal(found, wanted)
    assert "OpenAIGPTLMHeadModel keeps no keys and values of attention" in caplog.text
    with pytest.raises(GenerationModeError, match="keeps no keys and values for `cache_dtype='int8'`"):
        generation_model(pipelined, cache_dtype="int8").generate(ids, max_new_tokens=2)


@pytest.mark.parametrize(
    ("kind", "sizes", "kept"),
    [
        ("Rwkv", {"attention_hidden_size": 32, "intermediate_size": 32, "context_length": 16}, "its `state`"),
        ("Mamba", {"state_size": 4, "use_mambapy": False}, "a LinearAttentionLayer"),
    ],
)
def test_a_model_that_goes_on_from_something_else_is_refused_with_a_cache(ids, kind, sizes, kept):
    config = getattr(transformers, f"{kind}Config")(vocab_size=64, hidden_size=32, num_hidden_layers=2, **sizes)
    model = lively(getattr(transformers, f"{kind}ForCausalLM")(config))
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[-1])))
    with pytest.raises(CacheError, match=f"{kept}.* generate with `use_cache=False`"):
        generator.generate(ids, max_new_tokens=2)
    wanted, found = same(model, generator, ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(found, wanted)


def test_inputs_that_steps_do_not_take_are_refused_by_name(ids):
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    generator = generation_model(to_pipelined(lively(transformers.XLNetLMHeadModel(config)), CONFIG))
    with pytest.raises(
        GenerationModeError, match="`generate` hands `perm_mask` to the model, and steps take input_ids"
    ):
        generator.generate(ids, max_new_tokens=2, use_cache=False)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_other_beams_than_compiled_are_refused(generator, ids, options):
    with pytest.raises(CacheError, match="a batch of 2 and 2 beams .* `batch_size=2` and `num_beams=1`"):
        generator.generate(ids, max_new_tokens=4, **options)


def test_another_batch_than_compiled_is_refused(generator, ids):
    with pytest.raises(CacheError, match="a batch of 1 and 1 beams .* `batch_size=2`"):
        generator.generate(ids[:1], max_new_tokens=4)


def test_a_cache_of_somebody_elses_is_refused(generator, ids):
    cache = transformers.DynamicCache()
    with pytest.raises(CacheError, match="a DynamicCache that is not of this model's last generation"):
        generator.generate(ids, max_new_tokens=4, **{CACHE: cache})


def test_a_cache_that_another_generation_has_overwritten_is_refused(generator, ids):
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    first = generator.generate(ids, return_dict_in_generate=True, **options)
    generator.generate(ids.flip(1), **options)
    more = torch.cat([first.sequences, ids[:, :2]], -1)
    with pytest.raises(CacheError, match="not of this model's last generation"):
        generator.generate(more, **{CACHE: first[CACHE]}, **options)


def test_a_split_that_does_not_fit_is_named_as_such(model, ids):
    with pytest.raises(IncompatibleIPUConfigError, match="layers"):
        to_pipelined(model, IPUConfig(layers_per_ipu=[3, 2])).generate(ids, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"force_words_ids": [[9]], "num_beams": 2}, "constrained beam search"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam search"),
        ({"prompt_lookup_num_tokens": 3}, "prompt lookup"),
        ({"dola_layers": "low"}, "DoLa"),
    ],
    ids=str,
)
def test_modes_nobody_has_are_refused_by_name(generator, ids, options, name):
    with pytest.raises(GenerationModeError, match=f"{name}, which pipelined models do not have: .* beam sampling"):
        generator.generate(ids, max_new_tokens=4, **options)


def test_what_steps_do_not_give_is_refused(generator, ids):
    with pytest.raises(GenerationModeError, match="cache_implementation"):
        generator.generate(ids, max_new_tokens=2, cache_implementation="static")


def test_several_iterations_are_refused(model, ids):
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[2], inference_device_iterations=2))
    with pytest.raises(IncompatibleIPUConfigError, match="inference_device_iterations=2"):
        pipelined.generate(ids, max_new_tokens=2)


def test_a_model_without_a_head_is_refused(ids):
    base = to_pipelined(transformers.LlamaModel(LlamaConfig(**SIZE, **HEADS)), CONFIG)
    with pytest.raises(TypeError, match="no language-model head"):
        base.generate(ids)
    with pytest.raises(TypeError, match="not pipelined"):
        generation_model(transformers.LlamaModel(LlamaConfig(**SIZE, **HEADS)))
