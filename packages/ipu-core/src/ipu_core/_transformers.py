# SPDX-License-Identifier: Apache-2.0
"""Everything private of transformers that these packages use, under public names.

A release of transformers that renames or changes one of them breaks this module, or the `_transformers.py` of a package
that uses more, and `tests/test_transformers_door.py` names it. Differences between releases are in `upstream.py`: that
module is read before torch and transformers are imported, and this one works on their objects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import GenerationMixin as _GenerationBase
else:
    _GenerationBase = object

# Attributes of a model that no forward reads: of `generate`, of saving, loading and sharding, of warnings given once.
UNREAD = frozenset(
    (
        *("generation_config", "model_tags", "name_or_path", "warnings_issued", "_is_hf_initialized"),
        *("_tp_plan", "_ep_plan", "_pp_plan", "_fsdp_plan", "all_tied_weights_keys", "_no_split_modules"),
        *("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_skip_keys_device_placement"),
        *("_keys_to_ignore_on_save", "_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"),
    )
)


def record_outputs(model: Any) -> None:
    """Let a model that was made without its constructor give `output_hidden_states` and `output_attentions`."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs


def class_with_head(auto: Any, config: Any) -> type[Any] | None:
    """Return the class that an auto class makes of a configuration; None where it makes none."""
    made: Any = auto._model_mapping.get(type(config), None)
    return made[0] if isinstance(made, (tuple, list)) else made


def classes_with_head(auto: Any) -> Iterator[str]:
    """Yield the names of all classes that an auto class makes, those that were registered with it too."""
    mapping = auto._model_mapping
    registered = [cls.__name__ for cls in mapping._extra_content.values()]
    for found in (*mapping._model_mapping.values(), *registered):
        yield from [found] if isinstance(found, str) else found


def attention_implementation(model: Any) -> str:
    """Return which attention a model runs: "eager", "sdpa", or another."""
    return str(model.config._attn_implementation)


def names_not_saved(model: Any) -> frozenset[str]:
    """Return the names of tensors that `save_pretrained` leaves out."""
    return frozenset(getattr(model, "_keys_to_ignore_on_save", None) or ())


def take_weights(model: Any, tensors: Mapping[str, Any], device: torch.device) -> Any:
    """Put tensors of a checkpoint into a model on the meta device, converted as `from_pretrained` does.

    Those that the model has no tensor for are left alone: of a slice of a file nothing is read then.

    Args:
        model: of transformers; it has other parameters afterwards, of the dtypes of those before.
        tensors: tensors, or slices of a file, by their names in the checkpoint.
        device: where the model has them.

    Returns:
        what upstream found: `missing_keys`, `unexpected_keys`, `mismatched_keys`, `conversion_errors`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    config = LoadStateDictConfig(device_map={"": device}, weight_mapping=get_model_conversion_mapping(model))
    with _without_bars():
        found, _ = convert_and_load_state_dict_in_model(model, dict(tensors), config)
    missing = found.missing_keys
    model._adjust_missing_and_unexpected_keys(found)
    found.missing_keys = missing
    return found


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Show no progress inside the block: each rank reads, and before it each compares names."""
    from transformers.utils import logging

    is_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_on:
            logging.enable_progress_bar()


def unsaved_buffers(model: Any, *, fill: int) -> dict[str, torch.Tensor]:
    """Return the buffers that are in no checkpoint, with the values that upstream begins with.

    Args:
        model: of transformers, on the meta device, and of no use afterwards.
        fill: what a buffer has that upstream gives no values.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)
    for _, buffer in model.named_non_persistent_buffers():
        buffer.fill_(fill)
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()
    return dict(model.named_non_persistent_buffers())


def num_frames(model: Any, num_samples: int, **options: Any) -> int:
    """Return the number of frames that the convolutions of a speech model make of a wave."""
    return int(model._get_feat_extract_output_lengths(num_samples, **options))


def pad_token(config: Any) -> Any:
    """Return the padding id as a tensor, which `generate` puts in its configuration; None where there is none."""
    return config._pad_token_tensor


def end_tokens(config: Any) -> Any:
    """Return the ids that end a sequence, [ids], which `generate` puts in its configuration; None for none."""
    return config._eos_token_tensor


def prefill(model: Any, ids: torch.Tensor, config: Any, model_kwargs: dict[str, Any]) -> Any:
    """Run the prompt of `generate` as upstream does, and return what the model returns."""
    return model._prefill(ids, config, model_kwargs)


def updated_model_kwargs(model: Any, outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what the next step of `generate` is called with, after a step that gave `outputs`."""
    updated: dict[str, Any] = model._update_model_kwargs_for_generation(
        outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
    )
    return updated


def top_continuations(model: Any, **state: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best continuations of each row in a beam search: scores, sequences and origins."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = model._get_top_k_continuations(**state)
    return found


def next_running_beams(model: Any, **state: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the beams that go on after a step: sequences, scores and origins."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = model._get_running_beams_for_next_iteration(**state)
    return found


def finished_beams(model: Any, **state: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best beams that have ended after a step: sequences, scores, origins, and whether there are any."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = model._update_finished_beams(**state)
    return found


def can_improve(model: Any, **state: Any) -> torch.Tensor:
    """Return, for each row, whether a beam that goes on may still become better than one that has ended, [B, 1]."""
    found: torch.Tensor = model._check_early_stop_heuristic(**state)
    return found


def goes_on(model: Any, *state: Any) -> torch.Tensor:
    """Return whether a beam search goes on, one bool."""
    found: torch.Tensor = model._beam_search_has_unfinished_sequences(*state)
    return found


class GenerationHooks(_GenerationBase):
    """The private methods that `generate` calls and these packages change, under public names.

    Mix it in before the model's class, and override what is to be another: each does what upstream does.
    """

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        self.begin_cache(generation_config, model_kwargs, batch_size)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self.changed_processors(super()._get_logits_processor(*args, **kwargs))

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        return self.sample_tokens(*args, **kwargs)

    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        return self.search_beams(*args, **kwargs)

    def _reorder_cache(self, cache: Any, beam_idx: torch.Tensor) -> Any:
        return self.reordered_cache(cache, beam_idx)

    def _postprocess_outputs(self, seek_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._postprocess_outputs(self.results_to_divide(seek_outputs), *args, **kwargs)

    def begin_cache(self, config: Any, model_kwargs: dict[str, Any], batch_size: int) -> None:
        """Put the cache of a generation into `model_kwargs`."""
        raise NotImplementedError

    def changed_processors(self, processors: Any) -> Any:
        """Return the processors of logits to use in the place of upstream's."""
        return processors

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Run greedy search or sampling."""
        return super()._sample(*args, **kwargs)

    def search_beams(self, *args: Any, **kwargs: Any) -> Any:
        """Run beam search or beam sampling."""
        return super()._beam_search(*args, **kwargs)

    def results_to_divide(self, results: Any) -> Any:
        """Return what a call gave, as a model takes it that divides it by rows (Whisper)."""
        return results

    def reordered_cache(self, cache: Any, rows: torch.Tensor) -> Any:
        """Return a cache in which each row goes on from the row that `rows` names."""
        cache.reorder_cache(rows)
        return cache
