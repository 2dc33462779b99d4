# SPDX-License-Identifier: Apache-2.0
"""Which devices decode steps run on, and what follows: their kernels, the card weights are rounded for, recorders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..cards import is_card
from ..checkpoints.lazy import device_of
from ..compile.disk_cache import ExecutableCache
from ..config.execution_config import ExecutionConfig
from ..kernels.card_quantization import card_with_products, refuse_compiled_exact_weights
from ..kernels.decode import CARDS, TORCH, DecodeKernels, decode_kernels
from ..runtime.devices import CPU, named_devices
from ..runtime.recording import Recorder, recorder_for, refuse_where_nothing_records
from ..runtime.replay import NO_RECORDERS
from .decode_step import ROUNDED

if TYPE_CHECKING:
    from ..model.mixin import PipelineMixin

logger = logging.getLogger(__name__)


def home_of(model: PipelineMixin, config: ExecutionConfig) -> torch.device:
    """Return the device of the model, where its steps run unless its stages are on devices of their own."""
    devices = {device_of(parameter) for parameter in model.parameters()}
    return devices.pop() if config.devices is None and len(devices) == 1 else CPU


def step_devices(model: PipelineMixin, config: ExecutionConfig) -> Sequence[torch.device]:
    """Return the devices that steps run on, each once."""
    return [*dict.fromkeys(named_devices(config) or [home_of(model, config)])]


def kernels_for(devices: Sequence[torch.device], config: ExecutionConfig, cache: ExecutableCache) -> DecodeKernels:
    """Return what steps are made of."""
    if not config.compile:
        return TORCH
    return CARDS if any(map(is_card, devices)) else decode_kernels(cache)


def card_to_round_for(
    model: PipelineMixin, config: ExecutionConfig, devices: Sequence[torch.device], weights: str | None
) -> torch.device | None:
    """Return the card that weights are rounded for; None where they are for the CPU."""
    if weights is None or not any(map(is_card, devices)):
        return None
    if weights not in ROUNDED:
        refuse_compiled_exact_weights(weights, {*devices}, compiles=config.compile)
        return None
    return card_with_products(weights, {*devices}, {parameter.dtype for parameter in model.parameters()})


def recorders_for(
    model: PipelineMixin, config: ExecutionConfig, devices: Sequence[torch.device]
) -> Mapping[torch.device, Recorder]:
    """Return what records steps on each device they run on, where the option `record` asks for it and it can."""
    refuse_where_nothing_records(model, config)
    if not config.record:
        return NO_RECORDERS
    name = type(model).__name__
    why, found = "", {device: made for device in devices if (made := recorder_for(device)) is not None}
    if config.parameters_offchip:
        why, found = "`parameters_offchip=True`", {}
    elif others := ", ".join(str(device) for device in devices if device not in found):
        why, found = f"some of its stages are on {others}", {}
    elif len(devices) > 1:
        logger.warning(
            "choosing tokens of %s is not recorded, and runs as before: its stages are on %d devices, each of "
            "which records its own",
            name,
            len(devices),
        )
    if why:
        logger.warning("steps of %s are not recorded, and run as before: %s", name, why)
    return found
