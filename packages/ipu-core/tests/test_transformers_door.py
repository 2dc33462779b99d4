# SPDX-License-Identifier: Apache-2.0
"""What is private of transformers exists, and behaves as it is used: each name of `_transformers.py`."""

import inspect

import pytest
import torch
import transformers
from ipu_core import _transformers
from transformers.modeling_outputs import CausalLMOutputWithPast


def tiny_llama():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=16, pad_token_id=0)).eval()


def a_model_without_its_constructor():
    model = tiny_llama()
    view = object.__new__(type(model))
    view.__dict__.update(vars(model))
    _transformers.record_outputs(view)
    assert len(view(torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states) == 2


def unread_attributes():
    found = set(dir(tiny_llama()))
    assert _transformers.UNREAD - found <= {"_is_hf_initialized", "warnings_issued"}  # set by loading, and by trainers


def names_left_out():
    model = tiny_llama()
    assert hasattr(model, "_keys_to_ignore_on_save") and _transformers.names_not_saved(model) == frozenset()
    model._keys_to_ignore_on_save = {"lm_head.weight"}
    assert _transformers.names_not_saved(model) == {"lm_head.weight"}


def weights_of_a_checkpoint():
    from transformers.utils import logging

    saved, before = tiny_llama().state_dict(), logging.is_progress_bar_enabled()
    with torch.device("meta"):
        model = tiny_llama()
    first = saved.pop("model.norm.weight")
    found = _transformers.take_weights(model, {**saved, "more": first}, torch.device("cpu"))
    assert found.missing_keys == {"model.norm.weight"} and found.unexpected_keys == {"more"}
    assert torch.equal(model.lm_head.weight, saved["lm_head.weight"]) and model.model.norm.weight.is_meta
    assert logging.is_progress_bar_enabled() == before


def buffers_of_no_checkpoint():
    with torch.device("meta"):
        model = tiny_llama()
    found = _transformers.unsaved_buffers(model, fill=7)
    for name, buffer in tiny_llama().named_non_persistent_buffers():
        assert torch.equal(found.pop(name), buffer)
    assert not found


def frames_of_a_wave():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (4, 4), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    config = transformers.Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embeddings=4)
    config.num_conv_pos_embedding_groups = 2
    assert _transformers.num_frames(transformers.Wav2Vec2Model(config), 100) == 9


def special_tokens():
    model, seen = tiny_llama(), []

    def note(ids, scores):
        config = inspect.currentframe().f_back.f_back.f_locals["generation_config"]
        seen.append((_transformers.pad_token(config), _transformers.end_tokens(config)))
        return scores

    options = {"max_new_tokens": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
    model.generate(torch.tensor([[5]]), logits_processor=[note], **options)
    assert int(seen[0][0]) == 0 and seen[0][1].tolist() == [2, 3]


def the_first_step():
    inspect.signature(transformers.GenerationMixin._prefill).bind(None, None, None, {})


def the_next_arguments():
    model = tiny_llama()
    mask = torch.ones(1, 3, dtype=torch.long)
    made = _transformers.updated_model_kwargs(model, CausalLMOutputWithPast(), {"attention_mask": mask})
    assert made["attention_mask"].shape == (1, 4)


def a_step_of_beams():
    """Search with two beams over four ids, after a prompt of one token."""
    model = transformers.GenerationMixin()
    running = torch.zeros(1, 2, 3, dtype=torch.long)
    origins = torch.full((1, 2, 2), -1, dtype=torch.int32)
    log_probs = torch.tensor([[0.1, 0.4, 0.2, 0.3, *[1e-9] * 4]]).log()
    scores, best, best_origins = _transformers.top_continuations(
        model,
        accumulated_log_probs=log_probs,
        running_sequences=running,
        running_beam_indices=origins,
        cur_len=1,
        decoder_prompt_len=1,
        do_sample=False,
        beams_to_keep=4,
        num_beams=2,
        batch_size=1,
    )
    assert best[0, :, 1].tolist() == [1, 3, 2, 0]
    ended = torch.tensor([[True, False, False, False]])
    going, going_scores, _ = _transformers.next_running_beams(
        model,
        topk_log_probs=scores,
        topk_running_sequences=best,
        topk_running_beam_indices=best_origins,
        next_token_hits_stopping_criteria=ended,
        num_beams=2,
    )
    assert going[0, :, 1].tolist() == [3, 2]
    no = torch.zeros(1, 2, dtype=torch.bool)
    finished, finished_scores, _, is_finished = _transformers.finished_beams(
        model,
        sequences=running,
        topk_running_sequences=best,
        beam_scores=torch.full((1, 2), -1e9),
        topk_log_probs=scores,
        beam_indices=origins,
        topk_running_beam_indices=best_origins,
        is_early_stop_heuristic_unsatisfied=~no[:, :1],
        is_sent_finished=no,
        next_token_hits_stopping_criteria=ended,
        top_num_beam_mask=torch.arange(4) < 2,
        num_beams=2,
        cur_len=1,
        decoder_prompt_len=1,
        length_penalty=1.0,
        early_stopping=False,
    )
    assert is_finished.tolist() == [[True, False]] and finished[0, 0, 1] == 1
    improvable = _transformers.can_improve(
        model,
        is_early_stop_heuristic_unsatisfied=~no[:, :1],
        running_beam_scores=going_scores,
        beam_scores=finished_scores,
        is_sent_finished=is_finished,
        cur_len=2,
        max_length=3,
        decoder_prompt_len=1,
        early_stopping=False,
        length_penalty=1.0,
    )
    assert improvable.shape == (1, 1)
    assert bool(_transformers.goes_on(model, improvable, is_finished, ended, False))


def the_hooks_of_generation():
    """Every method that is overridden is one that upstream calls, with arguments it takes."""
    upstream = transformers.GenerationMixin
    for name, method in vars(_transformers.GenerationHooks).items():
        if (
            inspect.isfunction(method)
            and name.startswith("_")
            and not name.endswith("__")
            and name not in ("_reorder_cache", "_postprocess_outputs")
        ):
            assert name in vars(upstream), name
    assert "self._reorder_cache(" in inspect.getsource(inspect.getmodule(upstream))
    whisper = transformers.WhisperForConditionalGeneration
    assert [*inspect.signature(whisper._postprocess_outputs).parameters][:2] == ["self", "seek_outputs"]
    assert "self._postprocess_outputs(" in inspect.getsource(whisper.generate_with_fallback)
    taken = list(inspect.signature(upstream._prepare_cache_for_generation).parameters)
    assert taken[:5] == ["self", "generation_config", "model_kwargs", "generation_mode", "batch_size"]


def auto_classes():
    config = transformers.BertConfig()
    auto = transformers.AutoModelForMaskedLM
    assert _transformers.class_with_head(auto, config) is transformers.BertForMaskedLM
    assert _transformers.class_with_head(transformers.AutoModelForCTC, config) is None
    assert {"BertForMaskedLM", "RobertaForMaskedLM"} <= set(_transformers.classes_with_head(auto))


def how_attention_is_computed():
    config = transformers.BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    for name in ("eager", "sdpa"):
        model = transformers.BertModel._from_config(config, attn_implementation=name)
        assert _transformers.attention_implementation(model) == name


OF_TRANSFORMERS = {
    "_without_bars": weights_of_a_checkpoint,
    "attention_implementation": how_attention_is_computed,
    "GenerationHooks": the_hooks_of_generation,
    "UNREAD": unread_attributes,
    "can_improve": a_step_of_beams,
    "class_with_head": auto_classes,
    "classes_with_head": auto_classes,
    "end_tokens": special_tokens,
    "finished_beams": a_step_of_beams,
    "goes_on": a_step_of_beams,
    "names_not_saved": names_left_out,
    "next_running_beams": a_step_of_beams,
    "num_frames": frames_of_a_wave,
    "pad_token": special_tokens,
    "prefill": the_first_step,
    "record_outputs": a_model_without_its_constructor,
    "take_weights": weights_of_a_checkpoint,
    "top_continuations": a_step_of_beams,
    "unsaved_buffers": buffers_of_no_checkpoint,
    "updated_model_kwargs": the_next_arguments,
}


def test_every_name_of_the_door_is_tested():
    own = {n for n, v in vars(_transformers).items() if getattr(v, "__module__", None) == _transformers.__name__}
    assert set(OF_TRANSFORMERS) == own | {"UNREAD"}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers_has_what_is_used(name):
    OF_TRANSFORMERS[name]()
