# SPDX-License-Identifier: Apache-2.0
"""Models that PEFT put adapters into: where the transformers model is in them, and which kinds of adapters are taken.

PEFT is not imported here: a model of its classes exists only where somebody imported it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .errors import AdapterError, LossError

# Kinds that change what modules compute, and neither the shapes of what passes between them nor what a step is.
KINDS = ("FOURIERFT", "IA3", "LN_TUNING", "LORA", "OFT", "VERA")


def has_adapters(model: Any) -> bool:
    """Return whether a model, or a class of models, is one of PEFT's."""
    peft = sys.modules.get("peft")
    kinds = tuple(getattr(peft, name) for name in ("PeftModel", "PeftMixedModel") if hasattr(peft, name))
    return issubclass(model, kinds) if isinstance(model, type) else isinstance(model, kinds)


def adapted(model: torch.nn.Module) -> Any:
    """Return the transformers model that adapters were put into; a model without adapters is that itself."""
    return model.get_base_model() if has_adapters(model) else model  # type: ignore[operator]


def adapted_path(model: torch.nn.Module) -> str:
    """Return the path of the transformers model that adapters were put into, "" for a model without adapters."""
    inner = adapted(model)
    return next(path for path, module in model.named_modules() if module is inner)


def beside(model: torch.nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of the modules beside the way down to `path`, as a bank of vectors that adapters share."""
    way = path.split(".") if path else []
    for depth, below in enumerate(way):
        prefix = ".".join(way[:depth])
        names = (name for name, _ in model.get_submodule(prefix).named_children() if name != below)
        yield from (f"{prefix}.{name}".lstrip(".") for name in names)


def forward_parameters(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return what the forward of a model takes; a PEFT model hands on what it is called with."""
    return inspect.signature(adapted(model).forward).parameters


def refuse_other_kinds(model: Any) -> None:
    """Refuse adapters that a pipelined model does not run as they are meant.

    Raises:
        AdapterError: naming the kind.
    """
    name = type(model).__name__
    if not hasattr(model, "get_base_model"):
        raise AdapterError(
            f"`{name}` mixes kinds of adapters, and cannot be saved: give each kind a model of its own, of "
            "`peft.get_peft_model`"
        )
    for adapter, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind in KINDS:
            continue
        tokens = getattr(config, "num_virtual_tokens", None)
        why = f", which puts {tokens} tokens of its own into every row" if config.is_prompt_learning and tokens else ""
        raise AdapterError(
            f"the adapter `{adapter}` of `{name}` is of kind {kind}{why}: pipelined models take {', '.join(KINDS)}"
        )


def refuse_nothing_to_train(model: torch.nn.Module) -> None:
    """Refuse to train a model of which every parameter is frozen.

    Raises:
        LossError: it is.
    """
    parameters = list(model.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return
    if has_adapters(model):
        active: Any = model.active_adapters
        what = f", those of its active adapter {', '.join(f'`{name}`' for name in active)} neither"
        remedy = "load it to be trained, with `PeftModel.from_pretrained(model, directory, is_trainable=True)`"
    else:
        what, remedy = "", "call `requires_grad_()` on those to train"
    number = sum(parameter.numel() for parameter in parameters)
    raise LossError(f"0 of the {number} parameters of `{type(model).__name__}` require a gradient{what}: {remedy}")
