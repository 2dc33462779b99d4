# SPDX-License-Identifier: Apache-2.0
"""`Component`: one model of a diffusion pipeline on its IPUs, with an executor for each shape it is called with.

A pipeline calls *stand-ins*: objects of the same class over the same modules and tensors, whose forward runs the
executor.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ipu_core import Executor, Family, IPUConfig, inference_model, to_pipelined
from ipu_core._torch import FORWARD_HOOKS, FORWARD_PRE_HOOKS, MODULES, pytree
from ipu_core.errors import ModelChangedError

from .attention import sliced_attention

logger = logging.getLogger(__name__)

TIMESTEP = "timestep"


class Component:
    """A model that runs as a pipeline of stages, for whatever shapes it is called with.

    ::

        component = Component(unet, IPUConfig(layers_per_ipu=[2, 2]))
        plain_looking = component.stand_in(guided=lambda: True)

    Args:
        model: the plain model, which is not touched.
        ipu_config: how it runs. Where it makes no micro-batches of its own, guidance makes two.
        family: its declaration, where the plugin has none for its class.
        target_mem_mb: what an attention matrix may take, in MiB.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        ipu_config: IPUConfig,
        *,
        family: Family | None = None,
        target_mem_mb: float | None = None,
    ) -> None:
        self.model = model
        self._ipu_config = ipu_config
        self._family = family
        self._rewrites = () if target_mem_mb is None else (sliced_attention(target_mem_mb),)
        self._executors: dict[Any, Executor] = {}
        self._makes_micro_batches = ipu_config.batch_size_factor(True) > 1
        self._refuse_other_layers()

    @property
    def executors(self) -> tuple[Executor, ...]:
        """What was compiled so far, an executor for each shape."""
        return tuple(self._executors.values())

    def run(self, batch: Mapping[str, Any], *, parts: int = 1) -> Any:
        """Run a batch in `parts` micro-batches, unless the configuration says in how many."""
        parts = 1 if self._makes_micro_batches else parts
        key = parts, _shapes(batch)
        if key in self._executors:
            try:
                return self._executors[key](**batch)
            except ModelChangedError as change:  # LoRA weights were loaded, say
                logger.info("compiling anew: %s", change)
                self._executors.clear()
        executor = inference_model(self._pipelined(parts))
        result = executor(**batch)
        self._executors[key] = executor
        return result

    def stand_in(self, *, guided: Callable[[], bool] = lambda: False) -> Any:
        """Return what looks like the model and runs on IPUs; `guided` says whether the rows of steps are two halves."""
        model = self.model
        signature = inspect.signature(model.forward)

        @functools.wraps(model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            batch = with_timesteps(inputs_of(signature, args, kwargs))
            is_halved = TIMESTEP in batch and guided() and num_rows(batch) % 2 == 0
            return self.run(batch, parts=2 if is_halved else 1)

        return with_forward(model, forward)

    def _pipelined(self, parts: int) -> Any:
        ipu_config = self._ipu_config if parts == 1 else self._ipu_config.replace(inference_device_iterations=parts)
        return to_pipelined(self.model, ipu_config, family=self._family, rewrites=self._rewrites)

    def _refuse_other_layers(self) -> None:
        """Hold `layers_per_ipu` against the model's layers, where they can be counted without a run."""
        pipelined = self._pipelined(1)
        with pipelined.parallelized(for_inference=True):
            pass
        if pipelined.family is not None and (blocks := num_blocks(self.model)):
            pipelined.ipu_config.for_inference().expand_layers(blocks)


class AutoencoderComponent:
    """An autoencoder whose encoder and decoder each run on the IPUs; what is around them stays upstream's.

    So slices and tiles of images are upstream's too. One configuration fits both: each has a block for each size.
    """

    def __init__(
        self, model: Any, ipu_config: IPUConfig, encoder: Family | None, decoder: Family | None, **options: Any
    ) -> None:
        self.model = model
        self._parts = {
            name: Component(getattr(model, name), ipu_config, family=family, **options)
            for name, family in (("encoder", encoder), ("decoder", decoder))
        }

    @property
    def executors(self) -> tuple[Executor, ...]:
        """What was compiled so far."""
        return tuple(executor for part in self._parts.values() for executor in part.executors)

    def stand_in(self, **options: Any) -> Any:
        """Return what looks like the autoencoder, and encodes and decodes on IPUs."""
        return with_children(self.model, {name: part.stand_in() for name, part in self._parts.items()})


class SafetyCheckerComponent(Component):
    """A safety checker that looks at images on IPUs; what it then decides, of single values, is upstream's."""

    def stand_in(self, **options: Any) -> Any:
        """Return what looks like the safety checker."""
        children = {"vision_model": _Embeds(self), "visual_projection": torch.nn.Identity()}
        return with_children(self.model, children)


class _Embeds(torch.nn.Module):
    """Gives the embeddings where upstream takes what they are projected from."""

    def __init__(self, component: Component) -> None:
        super().__init__()
        self._component = component

    def forward(self, clip_input: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, self._component.run({"clip_input": clip_input})


def num_blocks(model: torch.nn.Module) -> int:
    """Return the number of blocks of a UNet, of an encoder or of a decoder, 0 of other models."""
    return sum(len(getattr(model, name, ())) for name in ("down_blocks", "up_blocks"))


def with_forward(model: torch.nn.Module, forward: Callable[..., Any]) -> Any:
    """Return an object of a model's class over its modules with another forward; hooks are in what that one runs."""
    made = copy.copy(model)
    vars(made).update({name: OrderedDict() for name in (FORWARD_PRE_HOOKS, FORWARD_HOOKS)}, forward=forward)
    return made


def with_children(model: torch.nn.Module, children: Mapping[str, torch.nn.Module]) -> Any:
    """Return an object of a model's class over its tensors, with some of its modules replaced."""
    made = copy.copy(model)
    vars(made)[MODULES] = {**vars(model)[MODULES], **children}
    return made


def inputs_of(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names, those that are None left out."""
    named = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return {name: value for name, value in named.items() if value is not None}


def with_timesteps(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose timestep, a number, is a tensor [rows] of float32, as embeddings of time take it.

    So one graph serves all steps, and schedulers that count in integers and in fractions.
    """
    if TIMESTEP not in batch:
        return batch
    tensor = next(v for name, v in batch.items() if name != TIMESTEP and isinstance(v, torch.Tensor))
    steps = torch.as_tensor(batch[TIMESTEP], device=tensor.device).float()
    return {**batch, TIMESTEP: steps.expand(num_rows(batch))}


def num_rows(batch: Mapping[str, Any]) -> int:
    """Return the rows of a batch."""
    return next(v.shape[0] for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim)


def _shapes(batch: Mapping[str, Any]) -> Any:
    """Return what an executor is compiled for: names, shapes and types, and the value of what is no tensor."""
    leaves, spec = pytree.tree_flatten(dict(sorted(batch.items())))
    told = [(leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
    return tuple(told), repr(spec)
