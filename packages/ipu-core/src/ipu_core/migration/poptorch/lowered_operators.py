# SPDX-License-Identifier: Apache-2.0
"""Which operators of torch PopTorch lowers: a forward that calls others is refused, all of them by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...engines.poptorch.rewriting import rewritten
from ...partition.stage_graph import StageGraph
from .errors import createPoptorchError


def refuse_what_is_not_lowered(stage_graphs: Sequence[StageGraph]) -> None:
    """Refuse operators that PopTorch does not lower, and that torch decomposes into none that it does.

    Raises:
        Error: there are some.
    """
    programs = {id(graph.program): graph.program for graph in stage_graphs}
    names = {name.partition(".")[0] for program in programs.values() for name in rewritten(program).refused}
    # Operators of other libraries, and those that run a graph within, are this package's own or the user's.
    if unknown := sorted(name for name in names if hasattr(torch.ops.aten, name)):
        listed = ", ".join(f"aten::{name}" for name in unknown)
        raise createPoptorchError(
            f"Unsupported ops found in compiled model: [{listed}]. Not all operations are supported yet by PopTorch: "
            "write that part of the forward with others, or let poptorch.custom_op run it"
        )
