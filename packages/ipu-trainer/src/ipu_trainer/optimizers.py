# SPDX-License-Identifier: Apache-2.0
"""Optimizers beyond those that transformers makes by name, each from a library that keeps it."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import torch
from transformers import TrainingArguments


def lamb(model: torch.nn.Module, decaying: Collection[str], args: TrainingArguments) -> torch.optim.Optimizer:
    """Make LAMB for the trainable parameters of a model, from `pytorch-optimizer`.

    There are three groups: weights decay; biases do not, and take Adam's step without the ratio of trust; what is left,
    such as the weights of norms, does not decay.

    Args:
        model: whose parameters step.
        decaying: the names of the parameters with weight decay.
        args: learning rate, decay, betas and epsilon.

    Raises:
        ImportError: `pytorch-optimizer` is not installed.

    Source: You et al., Large Batch Optimization for Deep Learning, version 3, 2020, which corrects no bias.
    """
    try:
        library = importlib.import_module("pytorch_optimizer")
    except ImportError as error:
        raise ImportError("`lamb=True` needs pytorch-optimizer: pip install 'pytorch-optimizer>=4.1,<5'") from error
    groups = {kind: [p for n, p in _trainable(model) if _kind(n, decaying) == kind] for kind in _KINDS}
    options: dict[str, Any] = {
        "decaying": {"weight_decay": args.weight_decay},
        "bias": {"weight_decay": 0.0, "adam": True},
        "other": {"weight_decay": 0.0},
    }
    made: torch.optim.Optimizer = library.Lamb(
        [{"params": parameters, **options[kind]} for kind, parameters in groups.items() if parameters],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        adam_debias=True,  # the library's other choice corrects the bias of the first moment alone
        weight_decouple=False,  # decay is part of the update whose norm the ratio of trust is about
    )
    return made


_KINDS = ("decaying", "bias", "other")


def _kind(name: str, decaying: Collection[str]) -> str:
    if name in decaying:
        return "decaying"
    return "bias" if name.endswith("bias") else "other"


def _trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
