# SPDX-License-Identifier: Apache-2.0
"""What generation needs of the memory of CUDA devices, held against what they have before anything is there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import cards
from ..cards import is_card
from ..config.execution_config import ExecutionConfig
from ..errors import MemoryLimitError
from ..kernels.quantize_pass import QuantizedWeight
from ..memory.estimate import GIB, refuse_small_cards, with_memory
from ..partition.cost import num_bytes
from ..partition.lowered import Lowered
from ..partition.stage_graph import StageGraph
from .cache import Attention


def refuse_small_card_for_cache(model: torch.nn.Module, attentions: Sequence[Attention], device: torch.device) -> None:
    """Refuse caches that a CUDA device has no memory for beside the model, before they are made.

    Raises:
        MemoryLimitError: what is needed, and what is there.
    """
    if not is_card(device):
        return
    held = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers()) if t.device == device}
    cached = sum(math.prod(shape) * dtype.itemsize for each in attentions for shape, dtype in each.tensors)
    needed, card = sum(held.values()) + cached, cards.card_of(device)
    if needed > card.total_bytes:
        raise MemoryLimitError(
            f"keys and values of {attentions[0].keys[0]} rows and {attentions[0].keys[2]} tokens are "
            f"{cached / GIB:.2f} GiB, with the model {needed / GIB:.2f} GiB on {device}, and {card.name} has "
            f'{card.total_bytes / GIB:.2f} GiB: take a smaller `max_length` or batch, `cache_dtype="int8"`, or name '
            "more `devices`"
        )


def refuse_small_cards_for_steps(
    model: torch.nn.Module,
    config: ExecutionConfig,
    lowered: Lowered,
    stage_graphs: Sequence[StageGraph],
    quantized_weights: Sequence[QuantizedWeight],
    devices: Sequence[torch.device],
) -> None:
    """Refuse steps that need more memory than a CUDA device has, before they run.

    Args:
        model: that generates.
        config: its options for inference.
        lowered: a step of it.
        stage_graphs: those that run, which read quantized weights.
        quantized_weights: beside the parameters they were made of.
        devices: of each IPU.

    Raises:
        MemoryLimitError: how much more which card would need, of what it has.
    """
    captured = lowered.captured
    inputs = {value for value, source in captured.sources.items() if source.kind == "input"}
    sizes = {node.name: num_bytes(node.meta.get("val")) for node in captured.graph.nodes if node.name in inputs}
    sizes |= {weight.name: weight.like.nbytes for weight in quantized_weights}
    beside = [0] * len(devices)
    for stage_graph in stage_graphs:
        beside[stage_graph.ipu] += sum(sizes.pop(name, 0) for name in stage_graph.inputs)
    made = with_memory(lowered, config, model, optimizer=None, loss=None)
    refuse_small_cards(made, config, devices, beside=beside)
