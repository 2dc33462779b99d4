# SPDX-License-Identifier: Apache-2.0
"""`IPUConfig` with what it had besides: an execution mode, names that follow it, and options for PopTorch."""

from __future__ import annotations

import importlib
from typing import Any, Self

import ipu_core

from ..arguments import note
from .poplar_options import poplar_options

ALLOWED_N_IPU = [1, 2, 4, 8, 16, 32, 64]
TRAINING, INFERENCE = MODES = ("training", "inference")
MANAGED = (
    "layers_per_ipu",
    "ipus_per_replica",
    "matmul_proportion",
    "embedding_serialization_factor",
    "serialized_embedding_splits_per_ipu",
    "projection_serialization_factor",
    "serialized_projection_splits_per_ipu",
    "parallelize_kwargs",
)
# Kept for scripts that hand them to `parallelize`, and for `pipeline`.
PARALLELIZE = ("parallelize_kwargs", "inference_parallelize_kwargs")


class ByMode:
    """A private name that reads and writes `x`, or `inference_x` in inference."""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name.removeprefix("_")

    def __get__(self, config: Any, owner: type[Any] | None = None) -> Any:
        return self if config is None else getattr(config, config._get_managed_attr_mode_name(self._name))

    def __set__(self, config: Any, value: Any) -> None:
        setattr(config, config._get_managed_attr_mode_name(self._name), value)


class IPUConfig(ipu_core.IPUConfig):
    """`ipu_core.IPUConfig`, and an execution mode.

    ::

        config = IPUConfig(layers_per_ipu=[1, 2, 2, 1]).eval()
        config.mode, config._layers_per_ipu                # "inference", the value of inference

    Raises:
        ValueError: a mode that is none.
    """

    _mode = TRAINING
    _layers_per_ipu = ByMode()
    _ipus_per_replica = ByMode()
    _matmul_proportion = ByMode()
    _embedding_serialization_factor = ByMode()
    _serialized_embedding_splits_per_ipu = ByMode()
    _projection_serialization_factor = ByMode()
    _serialized_projection_splits_per_ipu = ByMode()
    _parallelize_kwargs = ByMode()

    def __init__(self, **options: Any) -> None:
        kept = {name: options.pop(name, None) or {} for name in PARALLELIZE}
        self.__dict__.update(kept)
        super().__init__(**options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in (*PARALLELIZE, "mode"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def mode(self) -> str:
        """Which values the private names read: "training" or "inference"."""
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:
        if value not in MODES:
            raise ValueError(f"`mode={value!r}` is no execution mode: set one of {MODES}")
        self._mode = value

    def train(self) -> Self:
        """Be in training mode."""
        self.mode = TRAINING
        return self

    def eval(self) -> Self:
        """Be in inference mode."""
        self.mode = INFERENCE
        return self

    def _get_managed_attr_mode_name(self, name: str) -> str:
        plain = name.removeprefix("_")
        if plain not in MANAGED:
            return name
        return f"inference_{plain}" if self.mode == INFERENCE else plain

    def to_dict(self) -> dict[str, Any]:
        """Return every option, and the arguments of `parallelize` where there are some."""
        return {**super().to_dict(), **{name: dict(vars(self)[name]) for name in PARALLELIZE if vars(self)[name]}}

    def to_options(self, for_inference: bool = False, compile_only: bool = False) -> Any:
        """Return `poptorch.Options` of this configuration.

        Raises:
            ImportError: there is no `poptorch`, neither a real one nor ours.
        """
        if compile_only:
            note("`compile_only` of `to_options` has no effect here: there is no device to do without")
        view = self.for_inference() if for_inference else self.for_training()
        return poplar_options(importlib.import_module("poptorch"), self, view)
