# SPDX-License-Identifier: Apache-2.0
"""Pipelined models with their old methods, classes of scripts' own, and where layers lie."""

from __future__ import annotations

import copy
import functools
import importlib
import types
from abc import ABCMeta
from collections.abc import Callable, Hashable, Sequence, Sized
from typing import Any, Self

import ipu_core
import torch

from ...config.layers_per_ipu import layer_ipus
from ...model.mixin import view
from ..arguments import note, translated
from .ipu_configuration import INFERENCE, IPUConfig

# Arguments of `parallelize` -> those of `generation_model`.
RENAMED = {"on_device_generation_steps": "tokens_per_call"}
WITHOUT_EFFECT = {
    "use_cache": "keys and values are always kept",
    "use_cross_cache": "those of the source are always kept",
    "use_encoder_output_buffer": "the source is computed once",
    "use_cond_encoder": "the source is computed once",
    "batch_serialization_factor": "attention is not computed in slices",
    "sequence_serialization_factor": "attention is not computed in slices",
}
QUANTIZED = "use_group_quantized_linears"


class PipelineMixin(metaclass=ABCMeta):
    """What a class of a script's own mixes into a model to be pipelined; every pipelined model is an instance.

    ::

        @register()
        class PipelinedMine(Mine, PipelineMixin):
            def parallelize(self): ...

    `parallelize` is called once, on a copy of the model, for the changes that it makes. Stages are those of
    `layers_per_ipu`.
    """

    ipu_config: Any

    def parallelize(self) -> Self:
        """Return the model itself."""
        return self

    def deparallelize(self) -> Self:
        """Return the model itself."""
        return self

    @classmethod
    def from_transformers(cls, model: torch.nn.Module, ipu_config: Any) -> Any:
        """Make a pipelined model of this class."""
        return _pipelined_as(cls, model, ipu_config)

    @classmethod
    def from_pretrained_transformers(cls, model_name_or_path: Any, ipu_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as a pipelined model of this class."""
        return _pipelined_as(cls, plain_class_of(cls).from_pretrained(model_name_or_path, *args, **kwargs), ipu_config)


PipelineMixin.register(ipu_core.PipelineMixin)
IPUGenerationMixin = ABCMeta("IPUGenerationMixin", (), {"__doc__": "Every model that generates is one."})
IPUGenerationMixin.register(ipu_core.PipelineMixin)

# Plain class -> the class of a script's own that is run in its place.
REGISTERED: dict[type[Any], type[Any]] = {}


def register(transformers_cls: type[Any] | None = None) -> Callable[[type[Any]], type[Any]]:
    """Have models of a class run as another class, one of the script's own.

    Raises:
        ValueError: no class is given, and the decorated one has no base but the mixin.
    """

    def enter(cls: type[Any]) -> type[Any]:
        REGISTERED[transformers_cls or plain_class_of(cls)] = cls
        return cls

    return enter


def plain_class_of(cls: type[Any]) -> type[Any]:
    """Return the class that a pipelined class of a script's own is of.

    Raises:
        ValueError: it has no base but the mixins.
    """
    mixins = (PipelineMixin, IPUGenerationMixin)
    for base in cls.__bases__:
        if base not in mixins and issubclass(base, torch.nn.Module):
            return base
    raise ValueError(f"`{cls.__name__}` has no base that is a model: derive it from one, or give `register` the class")


def to_pipelined(model: torch.nn.Module, ipu_config: Any, force: bool = False) -> Any:
    """Return a pipelined model, with its old methods; its tensors are those of `model`.

    A model that no plugin declares needs no `force`: its layers are found. One that has none runs on one IPU.
    """
    if type(model) in REGISTERED:
        return _pipelined_as(REGISTERED[type(model)], model, ipu_config)
    if force:
        note("`force` of `to_pipelined` has no effect here: layers of any model are found")
    return _with_methods(ipu_core.to_pipelined(model, ipu_config))


def _pipelined_as(cls: type[Any], model: torch.nn.Module, ipu_config: Any) -> Any:
    """Pipeline a model as a class of a script's own, which changes a copy."""
    own = view(copy.deepcopy(model), cls)
    own.ipu_config = ipu_config
    own.parallelize()
    del own.ipu_config
    return _with_methods(ipu_core.to_pipelined(own, ipu_config))


def _with_methods(pipelined: Any) -> Any:
    cls: Any = type(pipelined)
    pipelined.__class__ = with_old_methods(cls)
    return pipelined


@functools.cache
def with_old_methods(cls: Hashable) -> type[Any]:
    """Return a pipelined class with the methods it had; of equal classes it is the same one."""
    assert isinstance(cls, type)
    if issubclass(cls, OldMethods):
        return cls
    made = types.new_class(cls.__name__, (OldMethods, cls))
    made.__module__ = cls.__module__
    return made


class OldMethods:
    """Methods of pipelined models as they were."""

    def parallelize(self, *, for_inference: bool | None = None, for_generation: bool = False, **sizes: Any) -> Any:
        """Make the changes of the configuration; with `for_generation`, generate with caches of these sizes.

        Raises:
            TypeError: an argument that there never was.
        """
        here: Any = self
        if for_generation or sizes:
            here._generator = ipu_core.generation_model(here, **_sizes_today(sizes))
        if for_inference is None:
            for_inference = for_generation or getattr(here.ipu_config, "mode", None) == INFERENCE
        parent: Any = super()
        return parent.parallelize(for_inference=for_inference)

    @classmethod
    def from_model(cls, model: torch.nn.Module) -> Any:
        """Pipeline a copy of a model, on one IPU."""
        return to_pipelined(copy.deepcopy(model), IPUConfig())


def _sizes_today(sizes: dict[str, Any]) -> dict[str, Any]:
    sizes = dict(sizes)
    weights = {"weights": "int4"} if sizes.pop(QUANTIZED, False) else {}
    steps = sizes.pop("on_device_generation_steps", None) or None
    given = translated(
        "parallelize", {**sizes, "on_device_generation_steps": steps}, renamed=RENAMED, without_effect=WITHOUT_EFFECT
    )
    return {**given, **weights}


def _view_of(ipu_config: Any) -> ipu_core.ExecutionConfig:
    is_inference = getattr(ipu_config, "mode", None) == INFERENCE
    view_of: ipu_core.ExecutionConfig = ipu_config.for_inference() if is_inference else ipu_config.for_training()
    return view_of


def _expand_layers_per_ipu_wildcard(
    ipu_config: Any, target_number_of_layers: int | Sized | None = None
) -> list[int] | str:
    """Return the number of layers on each IPU, wildcards replaced; a list is taken for its length."""
    if target_number_of_layers is None:
        layers = _view_of(ipu_config).layers_per_ipu
        return layers if isinstance(layers, str) else list(layers)
    return list(_view_of(ipu_config).expand_layers(_number(target_number_of_layers)))


def get_layer_ipu(ipu_config: Any, target_number_of_layers: int | Sequence[Any]) -> list[int]:
    """Return the IPU of each layer."""
    return list(layer_ipus(_view_of(ipu_config).expand_layers(_number(target_number_of_layers))))


def _number(layers: int | Sized) -> int:
    return layers if isinstance(layers, int) else len(layers)


def split_encoder_decoder_ipu_config(
    ipu_config: Any, num_encoder_layers: int, num_decoder_layers: int
) -> tuple[Any, Any]:
    """Split a configuration in two, by its execution mode; see `ipu_core.split_encoder_decoder_ipu_config`."""
    is_inference = getattr(ipu_config, "mode", None) == INFERENCE
    sides = ipu_core.split_encoder_decoder_ipu_config(
        ipu_config, num_encoder_layers, num_decoder_layers, for_inference=is_inference
    )
    if is_inference:
        sides = tuple(side.eval() for side in sides)
    return sides


def recomputation_checkpoint(module: torch.nn.Module) -> Any:
    """Mark a module's outputs for recomputation, by a forward hook; returns its handle."""
    checkpoint = importlib.import_module("poptorch").recomputationCheckpoint

    def mark(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(checkpoint(each) if isinstance(each, torch.Tensor) else each for each in output)
        return checkpoint(output)

    return module.register_forward_hook(mark)


def outline_attribute(module: torch.nn.Module, value: str) -> list[Any]:
    """Return no handles: which code is shared is decided by the graphs."""
    note("`outline_attribute` has no effect here: equal layers share compiled code")
    return []
